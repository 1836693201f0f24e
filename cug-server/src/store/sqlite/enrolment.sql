-- A user may enrol with a one-time code. The user need not be there yet: everything is registered at once, when the code is used.
-- verifier: a hash of the code; NULL once it was used and the enrolment waits for an administrator. From then on the other columns hold what was enrolled.
CREATE TABLE invitation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL UNIQUE,
    verifier BLOB CHECK (length(verifier) = 32),
    approve INTEGER NOT NULL CHECK (approve IN (0, 1)),
    replace_cards INTEGER NOT NULL CHECK (replace_cards IN (0, 1)),
    actor TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    enrolled INTEGER,
    source TEXT,
    host_name TEXT,
    salt BLOB,
    hash BLOB,
    memory_kib INTEGER,
    iterations INTEGER,
    lanes INTEGER,
    fingerprint BLOB UNIQUE CHECK (length(fingerprint) = 32),
    public_key BLOB,
    bits INTEGER,
    kind TEXT,
    CHECK (verifier IS NOT NULL OR (enrolled IS NOT NULL AND hash IS NOT NULL))
) STRICT;

CREATE TABLE invitation_group (
    invitation INTEGER NOT NULL REFERENCES invitation (id) ON DELETE CASCADE,
    closed_group INTEGER NOT NULL REFERENCES closed_group (id) ON DELETE CASCADE,
    PRIMARY KEY (invitation, closed_group)
) STRICT, WITHOUT ROWID;
CREATE INDEX invitation_group_group ON invitation_group (closed_group);

-- Who is deleted does not come back by a code that was given out before.
CREATE TRIGGER invitation_of_deleted_user AFTER DELETE ON user BEGIN
    DELETE FROM invitation WHERE user = OLD.name;
END;
