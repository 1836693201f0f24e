-- Rows of an installation of the first version: A is in VPN1 and logged in, B was in it and is disabled.
INSERT INTO setting (name, value) VALUES ('organisation', 'Test'), ('ula', '0101010101');
INSERT INTO user (id, name, salt, hash, memory_kib, iterations, lanes, disabled, failures, last_failure, created) VALUES
    (1, 'USER-A', zeroblob(16), randomblob(32), 64, 1, 1, 0, 0, 0, 1700000000),
    (2, 'USER-B', zeroblob(16), randomblob(32), 64, 1, 1, 1, 2, 1700000001, 1700000000);
INSERT INTO card (fingerprint, user, public_key, bits, kind, issued) VALUES
    (x'0101010101010101010101010101010101010101010101010101010101010101', 1, x'00', 2048, 'piv', 1700000000);
INSERT INTO closed_group (id, name, prefix4, prefix6, epoch, created) VALUES (1, 'VPN1', '10.96.0.0/20', 'fd01:101:101:1::/64', 1, 1700000000);
INSERT INTO group_key (closed_group, epoch, wrapped) VALUES (1, 1, x'010203');
INSERT INTO seat (closed_group, user, host) VALUES (1, 1, 1), (1, 2, 2);
INSERT INTO membership (closed_group, user, since) VALUES (1, 1, 1700000000);
INSERT INTO session (id, user, card, state, wrapped_secret, wg_public_key, source, host_name, addresses, created, seen) VALUES
    (x'09090909090909090909090909090909', 1, x'0101010101010101010101010101010101010101010101010101010101010101', 'up', x'00',
     zeroblob(32), '10.0.0.1', 'terminal-1', '10.0.0.1', 1700000000, 1700000000);
INSERT INTO session_group (session, closed_group, epoch, port) VALUES (x'09090909090909090909090909090909', 1, 1, 51820);
INSERT INTO change (kind, closed_group, user) VALUES ('member', 1, 'USER-A');
INSERT INTO audit (at, actor, event, user, outcome) VALUES (1700000000, 'root', 'user-add', 'USER-A', 'done');
INSERT INTO audit (at, actor, event, user, card, source, outcome, reason) VALUES
    (1700000000, 'USER-A', 'login', 'USER-A', '0101', '10.0.0.1', 'granted', 'terminal-1');
