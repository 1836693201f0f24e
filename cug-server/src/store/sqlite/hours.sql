-- When the user may log in, as `Mon-Fri 07:00-19:00 in Europe/Berlin`; NULL for always.
ALTER TABLE user ADD COLUMN hours TEXT;
-- When the session must be looked at, because its user's account expires or the permitted hours end; 0 for at once, NULL for never.
ALTER TABLE session ADD COLUMN look INTEGER;
CREATE INDEX session_look ON session (look) WHERE look IS NOT NULL;
