use super::*;
use cug_proto::message::GroupPort;
use std::{net::IpAddr, sync::atomic::AtomicU32};

struct Fixture {
    store: Sqlite,
    path: PathBuf,
    key: AuditKey,
}

const NOW: UnixTime = 1_800_000_000;
const BY: By<'static> = By { actor: "root", now: NOW };

fn mint(group: GroupId, epoch: Epoch) -> Result<Vec<u8>> {
    Ok(format!("{group} {epoch}").into_bytes())
}

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("cug-store-{}-{number}.db", std::process::id()));
    remove(&path);
    path
}

fn remove(path: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

impl Fixture {
    /// A and B in VPN1, A also in VPN2; card [1; 32] is A's, [2; 32] B's.
    fn new() -> Self {
        let path = path();
        let key = AuditKey::random(&mut crate::clock::rng());
        let store = Sqlite::open(&path, &key).unwrap();
        let password = PasswordRecord { salt: [1; 16], hash: [2; 32], memory_kib: 64, iterations: 1, lanes: 1 };
        for (name, card) in [("A", 1), ("B", 2)] {
            store.add_user(BY, &user(name), &password).unwrap();
            let card =
                NewCard { fingerprint: [card; 32], user: &user(name), public_key: &[0], bits: 2048, kind: "piv" };
            store.add_card(BY, &card).unwrap();
        }
        for name in ["VPN1", "VPN2"] {
            store.add_group(BY, &new_group(&group(name), None), &mint).unwrap();
            store.join(BY, &group(name), &user("A")).unwrap();
        }
        store.join(BY, &group("VPN1"), &user("B")).unwrap();
        Self { store, path, key }
    }

    fn pending(&self, id: u8, name: &str, card: u8) {
        let groups: Vec<_> = self.store.group_keys(&user(name)).unwrap().iter().map(|g| (g.id, g.epoch)).collect();
        self.store
            .create_session(&NewSession {
                login: LoginFacts { user: &user(name), card: &[card; 32], source: source(), now: NOW },
                id: [id; 16],
                wg_public_key: [id; 32],
                host_name: &format!("host-{id}").parse().unwrap(),
                addresses: &["192.0.2.1".parse().unwrap(), source()],
                wrapped_secret: &[9],
                groups: &groups,
                new_password: None,
            })
            .unwrap();
    }

    fn up(&self, id: u8, name: &str, card: u8) {
        self.pending(id, name, card);
        assert!(self.store.register(&[id; 16], NOW).unwrap());
        let keys = self.store.group_keys(&user(name)).unwrap();
        let ports: Vec<_> = keys.iter().map(|g| GroupPort { group: g.id, port: 5 }).collect();
        let place = Place { source: source(), addresses: &[], ports: &ports };
        assert!(self.store.announce(&[id; 16], &place, NOW).unwrap());
    }

    fn audit(&self) -> i64 {
        self.store.read(|t| Ok(t.query_row("SELECT COUNT(*) FROM audit", [], |r| r.get(0))?)).unwrap()
    }

    fn since(&self, revision: u64) -> Vec<Change> {
        self.store.changes_since(revision).unwrap().into_iter().map(|(_, change)| change).collect()
    }
}

fn source() -> IpAddr {
    "10.0.0.1".parse().unwrap()
}

fn new_group(name: &GroupName, prefix4: Option<Ipv4Net>) -> NewGroup<'_> {
    NewGroup { name, prefix4, prefix6: None, pool: "100.96.0.0/12".parse().unwrap(), ula: [1; 5] }
}

fn refused<T>(result: Result<T>) -> String {
    match result {
        Err(StoreError::Refused(sentence)) => sentence,
        Err(StoreError::Fault(error)) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let f = Fixture::new();
    let (audit, revision) = (f.audit(), f.store.revision().unwrap());
    let s = &f.store;
    let password = s.account(&user("A")).unwrap().unwrap().password;
    refused(s.add_user(BY, &user("A"), &password));
    refused(s.set_password(BY, &user("nobody"), &password, &UserSettings::default()));
    refused(s.enable_user(BY, &user("A")));
    refused(s.add_group(BY, &new_group(&group("VPN1"), None), &mint));
    refused(s.add_group(BY, &new_group(&group("tiny"), Some("10.0.0.0/31".parse().unwrap())), &mint));
    refused(s.join(BY, &group("VPN1"), &user("A")));
    refused(s.join(BY, &group("VPN3"), &user("A")));
    refused(s.leave(BY, &group("VPN2"), &user("B"), &mint));
    refused(s.revoke_card(BY, &[9; 32], &mint));
    refused(s.end_user_session(BY, &user("A"), &EndReason::Administrator));
    let card = NewCard { fingerprint: [1; 32], user: &user("B"), public_key: &[0], bits: 2048, kind: "piv" };
    refused(s.add_card(BY, &card));
    assert_eq!((f.audit(), s.revision().unwrap()), (audit, revision));
    assert_eq!(s.groups().unwrap().len(), 2);
}

#[test]
fn a_write_that_fails_in_the_middle_changes_nothing() {
    let f = Fixture::new();
    f.up(1, "A", 1);
    let (audit, revision) = (f.audit(), f.store.revision().unwrap());
    let broken = |_: GroupId, epoch: Epoch| if epoch > 1 { refuse("no key today") } else { Ok(vec![]) };
    assert_eq!(refused(f.store.disable_user(BY, &user("A"), &broken)), "no key today");
    assert!(!f.store.account(&user("A")).unwrap().unwrap().disabled);
    assert_eq!(f.store.sessions().unwrap().len(), 2);
    assert_eq!((f.audit(), f.store.revision().unwrap()), (audit, revision));
}

#[test]
fn displacing_is_one_step() {
    let f = Fixture::new();
    f.up(1, "A", 1);
    f.pending(2, "A", 1);
    assert_eq!(f.store.live_sessions().unwrap(), [[1; 16]], "pending sessions do not count");
    let revision = f.store.revision().unwrap();
    assert!(f.store.register(&[2; 16], NOW).unwrap());
    assert_eq!(f.store.live_sessions().unwrap(), [[2; 16]]);
    let displaced = EndReason::Displaced("host-2".parse().unwrap());
    assert!(f.since(revision).contains(&Change::Ended([1; 16], displaced.clone())));
    assert!(matches!(f.store.session(&[1; 16]).unwrap(), SessionState::Ended(reason) if reason == displaced));
    assert!(!f.store.register(&[2; 16], NOW).unwrap(), "once");
    assert!(!f.store.announce(&[1; 16], &Place { source: source(), addresses: &[], ports: &[] }, NOW).unwrap());
}

#[test]
fn a_grant_that_nobody_acknowledged_in_time_is_void() {
    let f = Fixture::new();
    f.pending(1, "A", 1);
    assert!(!f.store.register(&[1; 16], NOW + 31).unwrap());
    f.pending(2, "A", 1);
    f.store.disable_user(BY, &user("A"), &mint).unwrap();
    assert!(!f.store.register(&[2; 16], NOW).unwrap(), "disabled meanwhile");
    f.pending(3, "B", 2);
    f.store.revoke_card(BY, &[2; 32], &mint).unwrap();
    assert!(!f.store.register(&[3; 16], NOW).unwrap(), "revoked meanwhile");
    f.store.prune(NOW + 31, 0).unwrap();
}

#[test]
fn revoking_ends_only_sessions_of_that_card() {
    let f = Fixture::new();
    let other = NewCard { fingerprint: [7; 32], user: &user("A"), public_key: &[0], bits: 4096, kind: "piv" };
    f.store.add_card(BY, &other).unwrap();
    f.up(1, "A", 1);
    f.store.revoke_card(BY, &[7; 32], &mint).unwrap();
    assert_eq!(f.store.live_sessions().unwrap().len(), 1);
    f.store.revoke_card(BY, &[1; 32], &mint).unwrap();
    assert!(f.store.live_sessions().unwrap().is_empty());
    assert!(f.store.card(&[1; 32]).unwrap().0.unwrap().revoked);
    assert_eq!(f.store.card(&[99; 32]).unwrap().1, [true, false, true], "sizes in use");
}

#[test]
fn an_epoch_is_pending_until_it_is_activated_and_old_keys_go() {
    let f = Fixture::new();
    f.up(1, "A", 1);
    assert_eq!(f.store.rotate(BY, &group("VPN1"), &mint).unwrap(), 2);
    assert_eq!(f.store.rotate(BY, &group("VPN1"), &mint).unwrap(), 3, "the second gives the first up");
    let id = f.store.group(&group("VPN1")).unwrap().0.id;
    assert_eq!(f.store.pending_epoch(id).unwrap(), Some((3, vec![[1; 16]])));
    assert_eq!(f.store.rotating_groups().unwrap(), [id]);
    assert_eq!(f.store.group_keys(&user("A")).unwrap()[0].epoch, 1, "logins get the active one");
    assert!(!f.store.activate(id, 2, &[], NOW).unwrap(), "given up");
    assert!(f.store.activate(id, 3, &[[1; 16]], NOW).unwrap());
    assert!(!f.store.activate(id, 3, &[], NOW).unwrap(), "once");
    let key = f.store.group_keys(&user("A")).unwrap().remove(0);
    assert_eq!((key.epoch, key.wrapped), (3, format!("{id} 3").into_bytes()));
    let keys: i64 = f
        .store
        .read(|t| Ok(t.query_row("SELECT COUNT(*) FROM group_key WHERE closed_group = ?1", [id], |r| r.get(0))?))
        .unwrap();
    assert_eq!(keys, 1);
}

#[test]
fn a_member_keeps_the_address_for_ever() {
    let f = Fixture::new();
    let seat = |name: &str| {
        let members = f.store.group(&group("VPN1")).unwrap().1;
        members.iter().find(|m| m.user.as_str() == name).map(|m| m.overlay4.to_string())
    };
    let (a, b) = (seat("A"), seat("B"));
    f.store.leave(BY, &group("VPN1"), &user("A"), &mint).unwrap();
    let password = f.store.account(&user("A")).unwrap().unwrap().password;
    f.store.add_user(BY, &user("C"), &password).unwrap();
    f.store.join(BY, &group("VPN1"), &user("C")).unwrap();
    f.store.join(BY, &group("VPN1"), &user("A")).unwrap();
    assert_eq!((seat("A"), seat("B"), seat("C")), (a, b, Some("100.96.0.3".into())));
}

#[test]
fn a_full_group_takes_nobody_more() {
    let f = Fixture::new();
    let small = group("small");
    f.store.add_group(BY, &new_group(&small, Some("10.9.0.0/30".parse().unwrap())), &mint).unwrap();
    f.store.join(BY, &small, &user("A")).unwrap();
    f.store.join(BY, &small, &user("B")).unwrap();
    let password = f.store.account(&user("A")).unwrap().unwrap().password;
    f.store.add_user(BY, &user("C"), &password).unwrap();
    assert!(refused(f.store.join(BY, &small, &user("C"))).contains("full"));
    assert_eq!(f.store.group(&small).unwrap().1.len(), 2);
}

#[test]
fn a_terminal_gets_what_changed_or_everything() {
    let f = Fixture::new();
    f.up(1, "A", 1);
    let id = f.store.group(&group("VPN1")).unwrap().0.id;
    let view = |known: &[Known]| f.store.session_view(&[1; 16], known, Some(id)).unwrap().unwrap().groups.remove(0);
    let revision = f.store.revision().unwrap();
    let known = |revision| [Known { group: id, revision, epoch: 1 }];
    f.up(2, "B", 2);
    assert!(view(&[]).full);
    let delta = view(&known(revision));
    assert!(!delta.full && delta.gone.is_empty());
    assert_eq!(delta.present[0].user.as_str(), "B");
    assert_eq!(delta.present[0].endpoints.len(), 1);
    let by = By { actor: "B", now: NOW };
    f.store.end_session(&[2; 16], &Ending { event: "session-clear", by, reason: "", tell: None }).unwrap();
    assert_eq!(view(&known(revision)).gone, [user("B")]);
    assert!(view(&known(f.store.revision().unwrap())).present.is_empty());
    assert!(view(&known(u64::MAX)).full, "from another database");
    let now = f.store.revision().unwrap();
    f.store.prune(NOW, now + 100_000).unwrap();
    assert_eq!(f.store.revision().unwrap(), now, "a revision never goes back");
    assert!(view(&known(revision)).full, "too far behind");
    assert!(!view(&known(now)).full);
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let f = Fixture::new();
    f.store.write(|t| Ok(t.pragma_update(None, "user_version", 99)?)).unwrap();
    let sentence = Sqlite::open(&f.path, &f.key).err().unwrap().to_string();
    assert!(sentence.contains("newer version"), "{sentence}");
}

#[test]
fn a_file_that_is_no_database_gives_a_sentence() {
    let path = path();
    std::fs::write(&path, [7; 5000]).unwrap();
    assert!(matches!(Sqlite::open(&path, &AuditKey::random(&mut crate::clock::rng())), Err(StoreError::Fault(_))));
    assert_eq!(std::fs::read(&path).unwrap(), [7; 5000], "and is left alone");
    remove(&path);
}

#[test]
fn migrating_again_changes_nothing() {
    let f = Fixture::new();
    let before = (f.audit(), f.store.users().unwrap().len());
    let again = Sqlite::open(&f.path, &f.key).unwrap();
    assert_eq!((f.audit(), again.users().unwrap().len()), before);
    let check: String = again.read(|t| Ok(t.query_row("PRAGMA integrity_check", [], |r| r.get(0))?)).unwrap();
    assert_eq!(check, "ok");
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date() {
    let path = path();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(include_str!("schema-1.sql")).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    let group = "INSERT INTO closed_group (name, prefix4, prefix6, epoch, created) VALUES ('VPN1', '10.0.0.0/24', 'fd00::/64', 1, 0)";
    connection.execute(group, []).unwrap();
    drop(connection);
    assert!(Sqlite::verify(&path).unwrap_err().to_string().contains("older version"));
    let key = AuditKey::random(&mut crate::clock::rng());
    let f = Fixture { store: Sqlite::open(&path, &key).unwrap(), path, key };
    let groups = f.store.groups().unwrap();
    assert_eq!((groups[0].policy, groups[0].allow.len()), (PolicyKind::Open, 0));
    Sqlite::verify(&f.path).unwrap();
}

mod audit;
mod copies;
mod cost;
mod opening;
mod seats;

#[test]
fn what_is_announced_again_is_no_news() {
    let f = Fixture::new();
    f.up(1, "A", 1);
    let keys: Vec<GroupId> = f.store.group_keys(&user("A")).unwrap().iter().map(|g| g.id).collect();
    let [one, two] = keys[..] else { panic!("two groups") };
    let announce = |source: &str, addresses: &[&str], ports: [u16; 2], at: UnixTime| {
        let (revision, audit) = (f.store.revision().unwrap(), f.audit());
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let ports = [GroupPort { group: one, port: ports[0] }, GroupPort { group: two, port: ports[1] }];
        let place = Place { source: source.parse().unwrap(), addresses: &addresses, ports: &ports };
        assert!(f.store.announce(&[1; 16], &place, at).unwrap());
        (f.since(revision), f.audit() - audit)
    };
    let news = |groups: &[GroupId]| groups.iter().map(|g| Change::Member(*g, user("A"))).collect::<Vec<_>>();
    let seen = || f.store.read(|t| Ok(t.query_row("SELECT seen FROM session", [], |r| r.get::<_, i64>(0))?)).unwrap();

    assert_eq!(announce("10.0.0.1", &[], [5, 5], NOW + 9), (vec![], 0), "nothing is new");
    assert_eq!(seen(), NOW + 9, "but the terminal is there");
    assert_eq!(announce("10.0.0.1", &[], [5, 6], NOW), (news(&[two]), 0), "another port of one group");
    assert_eq!(announce("10.0.0.1", &["192.0.2.7"], [5, 6], NOW), (news(&[one, two]), 0), "one address more");
    assert_eq!(announce("10.0.0.1", &["192.0.2.7"], [5, 6], NOW), (vec![], 0));
    assert_eq!(announce("10.0.0.2", &["192.0.2.7"], [5, 6], NOW), (news(&[one, two]), 1), "seen elsewhere");
    // A group that is joined later has no port yet: only its members hear of it.
    f.store.leave(BY, &group("VPN2"), &user("A"), &mint).unwrap();
    f.store.join(BY, &group("VPN2"), &user("A")).unwrap();
    assert_eq!(announce("10.0.0.2", &["192.0.2.7"], [5, 6], NOW), (news(&[two]), 0));
}
