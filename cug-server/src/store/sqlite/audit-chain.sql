-- Each row's code (HMAC-SHA256 under a key outside the database) covers the code before it and all fields of the row.
ALTER TABLE audit ADD COLUMN code BLOB CHECK (code IS NULL OR length(code) = 32);

-- The last row and its code, sealed: rows that are cut off at the end are missed.
CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last INTEGER NOT NULL,
    code BLOB NOT NULL CHECK (length(code) = 32),
    seal BLOB NOT NULL CHECK (length(seal) = 32)
) STRICT;
