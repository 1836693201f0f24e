//! What a login and its end cost does not grow with the directory: counted in steps of SQLite's machine, not in time.

use super::*;
use rusqlite::StatementStatus;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Members of each group, however many groups there are.
const MEMBERS: usize = 10;

/// A directory of so many users, all of them logged in.
struct House {
    f: Fixture,
    steps: Arc<AtomicU64>,
}

impl House {
    fn new(users: usize) -> Self {
        let f = Fixture::new();
        lock(&f.store.writer).connection.pragma_update(None, "synchronous", "OFF").unwrap();
        let name = |n: usize| format!("user-{n}");
        let users_of = (0..users).map(|n| copies::one(0, &name(n), &[&format!("group-{}", n / MEMBERS)]));
        let directory = Directory { users: users_of.collect(), make_groups: true, ..Directory::default() };
        f.store.import(BY, &directory, &audit::means(), &mut vec![], &mut |_| ()).unwrap();
        let house = Self { f, steps: Arc::default() };
        for n in 0..users {
            let fingerprint = wide(n);
            let card = NewCard { fingerprint, user: &user(&name(n)), public_key: &[0], bits: 2048, kind: "piv" };
            house.f.store.add_card(BY, &card).unwrap();
            house.open(n);
        }
        house.count();
        house
    }

    /// Both connections tell each step.
    fn count(&self) {
        let store = &self.f.store;
        store.read(|_| Ok(())).unwrap();
        let mut readers = lock(&store.readers);
        let mut writer = lock(&store.writer);
        for connection in readers.iter_mut().chain([&mut writer.connection]) {
            let steps = Arc::clone(&self.steps);
            let step = move || {
                steps.fetch_add(1, Ordering::Relaxed);
                false
            };
            connection.progress_handler(1, Some(step)).unwrap();
        }
    }

    fn costs<T>(&self, work: impl FnOnce() -> T) -> (u64, T) {
        let before = self.steps.load(Ordering::Relaxed);
        let result = work();
        (self.steps.load(Ordering::Relaxed) - before, result)
    }

    fn open(&self, n: usize) {
        self.create(n);
        assert!(self.f.store.register(&id(n), NOW).unwrap());
        self.announce(n);
    }

    fn create(&self, n: usize) {
        let user = user(&format!("user-{n}"));
        let groups: Vec<_> = self.f.store.group_keys(&user).unwrap().iter().map(|g| (g.id, g.epoch)).collect();
        let session = NewSession {
            login: LoginFacts { user: &user, card: &wide(n), source: source(), now: NOW },
            id: id(n),
            wg_public_key: wide(n),
            host_name: &format!("host-{n}").parse().unwrap(),
            addresses: &[source()],
            wrapped_secret: &[9],
            groups: &groups,
            new_password: None,
        };
        self.f.store.create_session(&session).unwrap();
    }

    fn announce(&self, n: usize) {
        let keys = self.f.store.group_keys(&user(&format!("user-{n}"))).unwrap();
        let ports: Vec<_> = keys.iter().map(|g| GroupPort { group: g.id, port: 5 }).collect();
        let place = Place { source: source(), addresses: &[], ports: &ports };
        assert!(self.f.store.announce(&id(n), &place, NOW).unwrap());
    }

    /// One login and its end, a name and the steps for each call that they take.
    fn login(&self, n: usize) -> Vec<(&'static str, u64)> {
        let s = &self.f.store;
        let who = user(&format!("user-{n}"));
        let group = s.group_keys(&who).unwrap()[0].id;
        let ending = Ending { event: "session-clear", by: BY, reason: "logged out", tell: None };
        let before = s.revision().unwrap();
        let mut all = vec![
            ("end_session", self.costs(|| assert!(s.end_session(&id(n), &ending).unwrap())).0),
            ("card", self.costs(|| s.card(&wide(n)).unwrap()).0),
            ("account", self.costs(|| s.account(&who).unwrap()).0),
            ("group_keys", self.costs(|| s.group_keys(&who).unwrap()).0),
            ("create_session", self.costs(|| self.create(n)).0),
            ("register", self.costs(|| assert!(s.register(&id(n), NOW).unwrap())).0),
            ("session", self.costs(|| s.session(&id(n)).unwrap()).0),
            ("session_groups", self.costs(|| s.session_groups(&id(n)).unwrap()).0),
            ("announce", self.costs(|| self.announce(n)).0),
            ("presence", self.costs(|| s.presence(group, std::slice::from_ref(&who)).unwrap()).0),
            ("pending_epoch", self.costs(|| s.pending_epoch(group).unwrap()).0),
            ("seen", self.costs(|| s.seen(&[id(n)], NOW).unwrap()).0),
            ("watched", self.costs(|| s.watched(NOW).unwrap()).0),
        ];
        let (steps, view) = self.costs(|| s.session_view(&id(n), &[], None).unwrap());
        assert_eq!(view.unwrap().groups[0].present.len(), MEMBERS - 1);
        all.push(("session_view", steps));
        let (steps, changes) = self.costs(|| s.changes_since(before).unwrap());
        assert!(!changes.is_empty());
        all.push(("changes_since", steps));
        all
    }
}

fn id(n: usize) -> SessionId {
    u128::try_from(n + 1000).unwrap().to_be_bytes()
}

fn wide(n: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&id(n));
    bytes
}

#[test]
fn a_login_costs_the_same_among_many() {
    let (few, many) = (House::new(20), House::new(600));
    // Statements are prepared, and pages are where they stay.
    few.login(7);
    many.login(7);
    // The last ones: whoever looks through all of them comes to these at the end.
    for ((what, among_few), (_, among_many)) in few.login(19).into_iter().zip(many.login(599)) {
        assert!(among_few > 0, "{what} is not counted");
        assert!(
            among_many <= among_few + among_few / 4,
            "{what}: {among_few} steps among 20 users, {among_many} among 600"
        );
    }
}

/// SQLite would plan a query again for each user who is asked for: a third of what a login costs the database.
#[test]
fn a_query_is_planned_once() {
    let f = Fixture::new();
    let store = &f.store;
    store.read(|_| Ok(())).unwrap();
    let mut readers = lock(&store.readers);
    let mut writer = lock(&store.writer);
    for connection in readers.iter_mut().chain([&mut writer.connection]) {
        for name in ["A", "B", "A", "nobody"] {
            let groups = view::group_keys(&connection.transaction().unwrap(), &user(name)).unwrap();
            assert_eq!(groups.is_empty(), name == "nobody");
        }
        let query = connection.prepare_cached(&view::keys_of_user()).unwrap();
        assert_eq!((query.get_status(StatementStatus::Run), query.get_status(StatementStatus::RePrepare)), (4, 0));
    }
}
