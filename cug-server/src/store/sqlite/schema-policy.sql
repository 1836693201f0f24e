-- What the members' processes may reach besides the group. Exceptions are kept while a group is open, and count once it is closed.
ALTER TABLE closed_group ADD COLUMN policy TEXT NOT NULL DEFAULT 'open' CHECK (policy IN ('open', 'closed'));

CREATE TABLE policy_exception (
    closed_group INTEGER NOT NULL REFERENCES closed_group (id) ON DELETE CASCADE,
    network TEXT NOT NULL,
    PRIMARY KEY (closed_group, network)
) STRICT, WITHOUT ROWID;

-- 1: the group's policy changed since the session's grant, so the terminal is sent it whenever it attaches.
ALTER TABLE session_group ADD COLUMN policy_changed INTEGER NOT NULL DEFAULT 0 CHECK (policy_changed IN (0, 1));
