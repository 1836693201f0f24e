-- Times are seconds since 1970 UTC. Numbers of users and groups are never given twice (AUTOINCREMENT).
CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE user (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    salt BLOB NOT NULL,
    hash BLOB NOT NULL,
    memory_kib INTEGER NOT NULL,
    iterations INTEGER NOT NULL,
    lanes INTEGER NOT NULL,
    disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    failures INTEGER NOT NULL DEFAULT 0,
    last_failure INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE card (
    fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
    user INTEGER NOT NULL REFERENCES user (id),
    public_key BLOB NOT NULL,
    bits INTEGER NOT NULL CHECK (bits IN (2048, 3072, 4096)),
    kind TEXT NOT NULL,
    issued INTEGER NOT NULL,
    revoked INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX card_user ON card (user);
CREATE INDEX card_bits ON card (bits);

CREATE TABLE closed_group (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    prefix4 TEXT NOT NULL,
    prefix6 TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT;

-- The active epoch's key, and while a rotation goes on the next one's.
CREATE TABLE group_key (
    closed_group INTEGER NOT NULL REFERENCES closed_group (id),
    epoch INTEGER NOT NULL,
    wrapped BLOB NOT NULL,
    PRIMARY KEY (closed_group, epoch)
) STRICT, WITHOUT ROWID;

-- A user's number in a group's overlay network. It stays when the membership ends, so that no address is ever given to another user.
CREATE TABLE seat (
    closed_group INTEGER NOT NULL REFERENCES closed_group (id),
    user INTEGER NOT NULL REFERENCES user (id),
    host INTEGER NOT NULL,
    PRIMARY KEY (closed_group, user),
    UNIQUE (closed_group, host)
) STRICT, WITHOUT ROWID;

CREATE TABLE membership (
    closed_group INTEGER NOT NULL,
    user INTEGER NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (closed_group, user),
    FOREIGN KEY (closed_group, user) REFERENCES seat (closed_group, user)
) STRICT, WITHOUT ROWID;
CREATE INDEX membership_user ON membership (user);

-- Where users are now (patent, Fig. 8). pending: granted, not acknowledged. registered: acknowledged. up: announced to the members.
CREATE TABLE session (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    user INTEGER NOT NULL REFERENCES user (id),
    card BLOB NOT NULL REFERENCES card (fingerprint),
    state TEXT NOT NULL CHECK (state IN ('pending', 'registered', 'up')),
    wrapped_secret BLOB NOT NULL,
    wg_public_key BLOB NOT NULL CHECK (length(wg_public_key) = 32),
    source TEXT NOT NULL,
    host_name TEXT NOT NULL,
    addresses TEXT NOT NULL,
    created INTEGER NOT NULL,
    seen INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_user ON session (user);
CREATE INDEX session_card ON session (card);
CREATE INDEX session_pending ON session (created) WHERE state = 'pending';
CREATE UNIQUE INDEX session_one_per_user ON session (user) WHERE state <> 'pending';

-- epoch: the newest key that the terminal is known to have, 0 for none. port: once announced.
CREATE TABLE session_group (
    session BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    closed_group INTEGER NOT NULL REFERENCES closed_group (id),
    epoch INTEGER NOT NULL,
    port INTEGER,
    PRIMARY KEY (session, closed_group)
) STRICT, WITHOUT ROWID;
CREATE INDEX session_group_group ON session_group (closed_group);

-- Why a session is over, for a terminal that asks later.
CREATE TABLE ended (
    session BLOB PRIMARY KEY,
    reason TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ended_at ON ended (at);

-- What terminals are told, in order. The revision never goes back.
CREATE TABLE change (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    closed_group INTEGER,
    user TEXT,
    session BLOB,
    detail TEXT
) STRICT;
CREATE INDEX change_group ON change (closed_group, revision);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    event TEXT NOT NULL,
    user TEXT,
    card TEXT,
    source TEXT,
    outcome TEXT NOT NULL,
    reason TEXT
) STRICT;
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_user ON audit (user);
