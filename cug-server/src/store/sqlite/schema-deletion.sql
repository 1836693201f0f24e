-- What is left of deleted users, so that no card ever comes to mean another person, and no overlay address too soon.
CREATE TABLE retired_card (
    fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32)
) STRICT, WITHOUT ROWID;

CREATE TABLE retired_seat (
    closed_group INTEGER NOT NULL REFERENCES closed_group (id) ON DELETE CASCADE,
    host INTEGER NOT NULL,
    freed INTEGER NOT NULL,
    PRIMARY KEY (closed_group, host)
) STRICT, WITHOUT ROWID;
