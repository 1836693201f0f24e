//! Invitations and what comes of them.

use super::{admin, audit::Entry, row, *};
use crate::clock::rfc3339;
use cug_proto::message::MAX_GROUPS;

/// How long an expired invitation is still listed, in seconds.
const REMEMBERED: UnixTime = 30 * 86_400;

pub(super) fn invitation(t: &Transaction<'_>, user: &UserId, now: UnixTime) -> Result<Option<Invitation>> {
    let found = t
        .prepare_cached(
            "SELECT verifier, approve FROM invitation WHERE user = ?1 AND verifier IS NOT NULL AND expires > ?2",
        )?
        .query_row(params![user.as_str(), now], |r| Ok((r.get_ref(0)?.as_blob()?.try_into().ok(), r.get(1)?)))
        .optional()?;
    let Some((verifier, approve)) = found else { return Ok(None) };
    let verifier: Option<[u8; 32]> = verifier;
    let verifier = verifier.and_then(|bytes| cug_proto::secret::Secret::copy_from(&bytes));
    Ok(verifier.map(|verifier| Invitation { verifier, approve }))
}

/// A new invitation takes the place of an open one: of two codes for one user the newer works. What waits for an approval is not thrown away so.
pub(super) fn invite(t: &Transaction<'_>, by: By<'_>, new: &NewInvitation<'_>) -> Result<()> {
    if new.groups.len() > MAX_GROUPS {
        return refuse(format!("a user may be in {MAX_GROUPS} groups at most"));
    }
    let waiting: bool = t.query_row(
        "SELECT EXISTS (SELECT 1 FROM invitation WHERE user = ?1 AND verifier IS NULL)",
        [new.user.as_str()],
        |r| r.get(0),
    )?;
    if waiting {
        return refuse(format!(
            "an enrolment of user {0} waits for an approval: `cug-server user approve {0}` or `user uninvite {0}` first",
            new.user
        ));
    }
    t.execute("DELETE FROM invitation WHERE user = ?1", [new.user.as_str()])?;
    t.execute("DELETE FROM invitation WHERE verifier IS NOT NULL AND expires < ?1", [by.now - REMEMBERED])?;
    t.execute(
        "INSERT INTO invitation (user, verifier, approve, replace_cards, actor, created, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![new.user.as_str(), new.verifier, new.approve, new.replace, by.actor, by.now, new.expires],
    )?;
    let id = t.last_insert_rowid();
    for group in new.groups {
        t.execute(
            "INSERT OR IGNORE INTO invitation_group (invitation, closed_group) VALUES (?1, ?2)",
            params![id, group_row(t, group)?],
        )?;
    }
    Entry::new(by, "user-invite").user(new.user.as_str()).write(t)
}

pub(super) fn uninvite(t: &Transaction<'_>, by: By<'_>, user: &UserId) -> Result<()> {
    if t.execute("DELETE FROM invitation WHERE user = ?1", [user.as_str()])? == 0 {
        return refuse(format!("there is no invitation of user {user}"));
    }
    Entry::new(by, "user-uninvite").user(user.as_str()).write(t)
}

pub(super) fn enrol_refused(
    t: &Transaction<'_>,
    user: &UserId,
    source: IpAddr,
    reason: &str,
    now: UnixTime,
) -> Result<()> {
    let by = By { actor: user.as_str(), now };
    Entry::new(by, "enrol").user(user.as_str()).source(source).outcome("refused").reason(reason).write(t)
}

/// Uses the code up: everything is registered, or kept for an approval, or nothing happens.
pub(super) fn enrol(t: &Transaction<'_>, new: &NewEnrolment<'_>, mint: Mint<'_>) -> Result<Enrolled> {
    let open = t
        .query_row(
            "SELECT id, approve FROM invitation WHERE user = ?1 AND verifier = ?2 AND expires > ?3",
            params![new.user.as_str(), new.verifier, new.now],
            |r| Ok((r.get::<_, i64>(0)?, r.get::<_, bool>(1)?)),
        )
        .optional()?;
    let Some((id, approve)) = open else { return Ok(Enrolled::Withdrawn) };
    if let Some(card) = &new.card {
        let taken: bool = t.query_row(
            "SELECT EXISTS (SELECT 1 FROM card WHERE fingerprint = ?1) OR EXISTS (SELECT 1 FROM invitation WHERE fingerprint = ?1)",
            [card.fingerprint],
            |r| r.get(0),
        )?;
        if taken {
            return Ok(Enrolled::CardTaken);
        }
    } else {
        // Without a card there must be somebody who has one.
        user_row(t, new.user)?;
    }
    let by = By { actor: new.user.as_str(), now: new.now };
    let waiting = approve || new.approve;
    keep(t, id, new)?;
    if !waiting {
        apply(t, by, id, mint)?;
    }
    let mut entry = Entry::new(by, "enrol").user(new.user.as_str()).source(new.source).reason(new.host_name.as_str());
    if let Some(card) = &new.card {
        entry = entry.card(&card.fingerprint);
    }
    entry.outcome(if waiting { "waiting" } else { "done" }).write(t)?;
    Ok(if waiting { Enrolled::Waiting } else { Enrolled::Active })
}

/// Writes down what was enrolled; the code's hash is gone.
fn keep(t: &Transaction<'_>, id: i64, new: &NewEnrolment<'_>) -> Result<()> {
    let card = new.card.as_ref();
    t.execute(
        "UPDATE invitation SET verifier = NULL, enrolled = ?2, source = ?3, host_name = ?4, salt = ?5, hash = ?6, memory_kib = ?7,
             iterations = ?8, lanes = ?9, fingerprint = ?10, public_key = ?11, bits = ?12, kind = ?13 WHERE id = ?1",
        params![
            id,
            new.now,
            new.source.to_string(),
            new.host_name.as_str(),
            new.password.salt,
            new.password.hash,
            new.password.memory_kib,
            new.password.iterations,
            new.password.lanes,
            card.map(|c| c.fingerprint),
            card.map(|c| c.public_key),
            card.map(|c| c.bits),
            card.map(|c| c.kind),
        ],
    )?;
    Ok(())
}

/// What was kept.
struct Kept {
    user: UserId,
    replace: bool,
    password: PasswordRecord,
    card: Option<KeptCard>,
}

struct KeptCard {
    fingerprint: Fingerprint,
    public_key: Vec<u8>,
    bits: u32,
    kind: String,
}

fn kept(t: &Transaction<'_>, id: i64) -> Result<Kept> {
    Ok(t.query_row(
        "SELECT user, replace_cards, salt, hash, memory_kib, iterations, lanes, fingerprint, public_key, bits, kind FROM invitation WHERE id = ?1",
        [id],
        |r| {
            let fingerprint: Option<Fingerprint> = r.get(7)?;
            let card = match fingerprint {
                Some(fingerprint) => {
                    Some(KeptCard { fingerprint, public_key: r.get(8)?, bits: r.get(9)?, kind: r.get(10)? })
                }
                None => None,
            };
            let (memory_kib, iterations, lanes) = (r.get(4)?, r.get(5)?, r.get(6)?);
            let password = PasswordRecord { salt: r.get(2)?, hash: r.get(3)?, memory_kib, iterations, lanes };
            Ok(Kept { user: row::parse(r, 0)?, replace: r.get(1)?, password, card })
        },
    )?)
}

/// Registers what was kept and removes the invitation.
fn apply(t: &Transaction<'_>, by: By<'_>, id: i64, mint: Mint<'_>) -> Result<Kept> {
    let kept = kept(t, id)?;
    let known: bool =
        t.query_row("SELECT EXISTS (SELECT 1 FROM user WHERE name = ?1)", [kept.user.as_str()], |r| r.get(0))?;
    if known {
        account::set_password(t, by, &kept.user, &kept.password, &UserSettings::default())?;
    } else {
        admin::add_user(t, by, &kept.user, &kept.password)?;
    }
    if let Some(card) = &kept.card {
        if kept.replace {
            revoke_cards(t, by, &kept.user, mint)?;
        }
        let new = NewCard {
            fingerprint: card.fingerprint,
            user: &kept.user,
            public_key: &card.public_key,
            bits: card.bits,
            kind: &card.kind,
        };
        admin::add_card(t, by, &new)?;
    }
    let user = user_row(t, &kept.user)?;
    for group in groups(t, id)? {
        let member: bool = t.query_row(
            "SELECT EXISTS (SELECT 1 FROM membership m JOIN closed_group g ON g.id = m.closed_group WHERE m.user = ?1 AND g.name = ?2)",
            params![user, group.as_str()],
            |r| r.get(0),
        )?;
        if !member {
            admin::join(t, by, &group, &kept.user)?;
        }
    }
    t.execute("DELETE FROM invitation WHERE id = ?1", [id])?;
    Ok(kept)
}

fn revoke_cards(t: &Transaction<'_>, by: By<'_>, user: &UserId, mint: Mint<'_>) -> Result<()> {
    let mut query = t.prepare_cached(
        "SELECT fingerprint FROM card WHERE revoked IS NULL AND user = (SELECT id FROM user WHERE name = ?1)",
    )?;
    let cards: Vec<Fingerprint> = query.query_map([user.as_str()], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    cards.iter().try_for_each(|card| admin::revoke_card(t, by, card, mint))
}

fn groups(t: &Transaction<'_>, invitation: i64) -> rusqlite::Result<Vec<GroupName>> {
    let mut query = t.prepare_cached(
        "SELECT g.name FROM invitation_group i JOIN closed_group g ON g.id = i.closed_group WHERE i.invitation = ?1 ORDER BY g.name",
    )?;
    query.query_map([invitation], |r| row::parse(r, 0))?.collect()
}

/// Approves what was enrolled; with `card`, only if its fingerprint begins so. The fingerprint.
pub(super) fn approve(
    t: &Transaction<'_>,
    by: By<'_>,
    user: &UserId,
    card: Option<&str>,
    mint: Mint<'_>,
) -> Result<Option<String>> {
    let waiting = t
        .query_row("SELECT id FROM invitation WHERE user = ?1 AND verifier IS NULL", [user.as_str()], |r| r.get(0))
        .optional()?;
    let Some(id) = waiting else { return refuse(format!("no enrolment of user {user} waits for an approval")) };
    let found = kept(t, id)?.card.map(|card| hex::encode(&card.fingerprint));
    if let Some(wanted) = card
        && !found.as_ref().is_some_and(|fingerprint| fingerprint.starts_with(&wanted.to_ascii_lowercase()))
    {
        return refuse(format!("the card that user {user} enrolled is another one: see `cug-server user invitations`"));
    }
    let kept = apply(t, by, id, mint)?;
    let mut entry = Entry::new(by, "user-approve").user(user.as_str());
    if let Some(card) = &kept.card {
        entry = entry.card(&card.fingerprint);
    }
    entry.write(t)?;
    Ok(found)
}

pub(super) fn invitations(t: &Transaction<'_>, now: UnixTime) -> Result<Vec<InvitationInfo>> {
    let mut query = t.prepare_cached(
        "SELECT id, user, verifier IS NULL, approve, replace_cards, actor, created, expires, enrolled, host_name, source, fingerprint, bits, kind
         FROM invitation ORDER BY user",
    )?;
    let infos = query.query_map([], |r| {
        let (waiting, expires): (bool, UnixTime) = (r.get(2)?, r.get(7)?);
        let state = match waiting {
            true => "waiting",
            false if expires > now => "open",
            false => "expired",
        };
        let enrolled: Option<UnixTime> = r.get(8)?;
        let fingerprint: Option<Fingerprint> = r.get(11)?;
        Ok(InvitationInfo {
            user: row::parse(r, 1)?,
            state: state.into(),
            groups: groups(t, r.get(0)?)?,
            approve: r.get(3)?,
            replace: r.get(4)?,
            by: r.get(5)?,
            created: rfc3339(r.get(6)?),
            expires: rfc3339(expires),
            enrolled: enrolled.map(rfc3339),
            host: row::parse_optional(r, 9)?,
            address: row::parse_optional(r, 10)?,
            fingerprint: fingerprint.map(|f| hex::encode(&f)),
            bits: r.get(12)?,
            kind: r.get(13)?,
        })
    })?;
    Ok(infos.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sqlite;
    use rusqlite::Connection;
    use std::path::PathBuf;

    const NOW: UnixTime = 1_800_000_000;
    const BY: By<'static> = By { actor: "root", now: NOW };

    struct Fixture {
        store: Sqlite,
        path: PathBuf,
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            for end in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{end}", self.path.display()));
            }
        }
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cug-enrol-{name}-{}.db", std::process::id()))
    }

    /// A and B in the group SMALL, which has no room for a third; C is invited to it.
    fn fixture(name: &str) -> Fixture {
        let path = path(name);
        let store = Sqlite::open(&path, &AuditKey::random(&mut crate::clock::rng())).unwrap();
        let fixture = Fixture { store, path };
        let store = &fixture.store;
        let group: GroupName = "SMALL".parse().unwrap();
        let (prefix4, pool) = (Some("10.1.0.0/30".parse().unwrap()), "10.0.0.0/8".parse().unwrap());
        let new = NewGroup { name: &group, prefix4, prefix6: None, pool, ula: [1; 5] };
        store.add_group(BY, &new, &mint).unwrap();
        for name in ["A", "B"] {
            store.add_user(BY, &user(name), &password()).unwrap();
            store.join(BY, &group, &user(name)).unwrap();
        }
        invite(store, "C", &[group]);
        fixture
    }

    fn mint(_: GroupId, _: Epoch) -> Result<Vec<u8>> {
        Ok(vec![1])
    }

    fn user(name: &str) -> UserId {
        name.parse().unwrap()
    }

    fn password() -> PasswordRecord {
        PasswordRecord { salt: [1; 16], hash: [2; 32], memory_kib: 64, iterations: 1, lanes: 1 }
    }

    fn invite(store: &Sqlite, name: &str, groups: &[GroupName]) {
        let (user, expires) = (user(name), NOW + 10);
        let new = NewInvitation { user: &user, verifier: &[7; 32], groups, approve: false, replace: false, expires };
        store.invite(BY, &new).unwrap();
    }

    fn enrol(store: &Sqlite, name: &str, now: UnixTime) -> Result<Enrolled> {
        let (user, password) = (user(name), password());
        let card = NewCard { fingerprint: [3; 32], user: &user, public_key: &[0], bits: 2048, kind: "piv" };
        let host_name = "terminal-1".parse().unwrap();
        let source = "10.0.0.1".parse().unwrap();
        let new = NewEnrolment {
            user: &user,
            verifier: &[7; 32],
            password: &password,
            card: Some(card),
            approve: false,
            source,
            host_name: &host_name,
            now,
        };
        store.enrol(&new, &mint)
    }

    #[test]
    fn what_cannot_be_done_whole_is_not_done_at_all() {
        let fixture = fixture("whole");
        let store = &fixture.store;
        assert!(matches!(enrol(store, "C", NOW), Err(StoreError::Refused(why)) if why.contains("full")));
        assert!(store.account(&user("C")).unwrap().is_none(), "the user is there");
        assert!(store.card(&[3; 32]).unwrap().0.is_none(), "the card is there");
        assert!(store.invitation(&user("C"), NOW).unwrap().is_some(), "the code is used up");
        // In a group with room it works, until the very second at which the code expires.
        invite(store, "C", &[]);
        assert!(store.invitation(&user("C"), NOW + 10).unwrap().is_none());
        assert_eq!(enrol(store, "C", NOW + 10).unwrap(), Enrolled::Withdrawn);
        assert_eq!(enrol(store, "C", NOW + 9).unwrap(), Enrolled::Active);
        assert_eq!(enrol(store, "C", NOW + 9).unwrap(), Enrolled::Withdrawn);
    }

    #[test]
    fn a_deleted_user_does_not_come_back_by_an_old_code() {
        let fixture = fixture("deleted");
        let store = &fixture.store;
        store.add_user(BY, &user("D"), &password()).unwrap();
        invite(store, "D", &["SMALL".parse().unwrap()]);
        lock(&store.writer).connection.execute("DELETE FROM user WHERE name = 'D'", []).unwrap();
        assert!(store.invitation(&user("D"), NOW).unwrap().is_none());
        assert!(store.invitation(&user("C"), NOW).unwrap().is_some(), "somebody else's");
    }

    #[test]
    fn a_database_of_the_first_version_gets_the_tables() {
        let path = path("upgrade");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(include_str!("schema-1.sql")).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        old.execute(
            "INSERT INTO user (name, salt, hash, memory_kib, iterations, lanes, created) VALUES ('A', x'01', x'02', 64, 1, 1, 5)",
            [],
        )
        .unwrap();
        drop(old);
        let store = Sqlite::open(&path, &AuditKey::random(&mut crate::clock::rng())).unwrap();
        let fixture = Fixture { store, path };
        invite(&fixture.store, "A", &[]);
        assert_eq!(fixture.store.invitations(NOW).unwrap().len(), 1);
        assert_eq!(fixture.store.users().unwrap().len(), 1);
    }
}
