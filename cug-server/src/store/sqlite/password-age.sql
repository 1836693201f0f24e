-- Since when a user has the password (0: since the user was added), whether it must be changed, and from when on nobody logs in as this user.
ALTER TABLE user ADD COLUMN password_set INTEGER NOT NULL DEFAULT 0;
ALTER TABLE user ADD COLUMN must_change INTEGER NOT NULL DEFAULT 0 CHECK (must_change IN (0, 1));
ALTER TABLE user ADD COLUMN expires INTEGER;
