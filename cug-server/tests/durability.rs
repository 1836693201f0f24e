//! The server killed at any moment, with administrators and terminals at work: what was acknowledged is there, nothing is half done, the store opens at once.
#![allow(
    missing_docs,
    clippy::too_many_lines,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod common;

use common::*;
use cug_proto::{
    id::{GroupName, UserId},
    message::SessionId,
};
use cug_server::{
    admin::{self, Password, Reply, Request},
    clock,
    keys::Keys,
    store::{Sqlite, Store},
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const ADMINISTRATORS: usize = 4;

/// How many; `CUG_KILL_ROUNDS` for more.
fn rounds() -> usize {
    std::env::var("CUG_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// What is done with each user, in this order.
const STEPS: usize = 6;

fn step(number: usize, user: &UserId, group: &GroupName) -> Request {
    let password = || Password::new(b"korrekt-7531").unwrap();
    match number {
        0 => Request::UserAdd {
            user: user.clone(),
            password: password(),
            settings: cug_server::store::UserSettings::default(),
        },
        1 => Request::GroupJoin(group.clone(), user.clone()),
        2 => Request::UserSetPassword { user: user.clone(), password: password(), must_change: false },
        3 => Request::UserDisable(user.clone()),
        4 => Request::UserEnable(user.clone()),
        _ => Request::GroupLeave(group.clone(), user.clone()),
    }
}

/// What must be seen of a user after so many steps: member, disabled. `None`: no such user.
fn expected(steps: usize) -> Option<(bool, bool)> {
    (steps > 0).then_some((steps > 1 && steps < STEPS, steps == 4))
}

/// The real program.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cug-server"))
            .args(["--config", config.to_str().unwrap(), "serve"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = vec![];
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the server did not start: {said:?}") };
            if let Some((_, address)) = line.rsplit_once("listening on ") {
                break address.parse().unwrap();
            }
            said.push(line);
        };
        // Its log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request over the socket; `None` when the server is gone. Never works on the store itself, as the command would.
fn ask(socket: &Path, request: &Request) -> Option<Reply> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = serde_json::to_vec(request).unwrap();
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).ok()?;
    stream.write_all(&body).ok()?;
    let mut len = [0; 4];
    stream.read_exact(&mut len).ok()?;
    let mut reply = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
    stream.read_exact(&mut reply).ok()?;
    serde_json::from_slice(&reply).ok()
}

/// Steps of each user that were acknowledged; the next one may have been under way.
type Acknowledged = BTreeMap<String, usize>;

fn administrate(socket: &Path, round: usize, number: usize, count: &AtomicUsize) -> Acknowledged {
    let group: GroupName = format!("VPN{}", number + 10).parse().unwrap();
    let mut acknowledged = Acknowledged::new();
    for i in 0.. {
        let user: UserId = format!("u{round}-{number}-{i}").parse().unwrap();
        for steps in 0..STEPS {
            acknowledged.insert(user.to_string(), steps);
            match ask(socket, &step(steps, &user, &group)) {
                Some(Reply::Done(_)) => count.fetch_add(1, Ordering::Relaxed),
                Some(Reply::Refused(sentence)) => panic!("{user}, step {steps}: {sentence}"),
                Some(_) => panic!("another reply"),
                None => return acknowledged,
            };
        }
        acknowledged.insert(user.to_string(), STEPS);
    }
    unreachable!()
}

/// What a terminal knows of its session.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Session {
    /// Cleared, and the server said so.
    None,
    /// Registered, and the server said so.
    Registered(SessionId),
    /// A login or a clear is under way.
    Between,
}

/// Logs in, announces, clears, again and again; ends by a panic when the server is gone.
async fn sit_and_leave(server: Arc<TestServer>, person: Person, known: Arc<Mutex<Session>>, count: Arc<AtomicUsize>) {
    loop {
        *known.lock().unwrap() = Session::Between;
        let grant = person.log_in(&server).await;
        *known.lock().unwrap() = Session::Registered(grant.session);
        count.fetch_add(1, Ordering::Relaxed);
        let Ok(mut terminal) = Terminal::attach(&person, &server, grant, &[]).await else { panic!("not attached") };
        terminal.synced().await;
        terminal.announce(51820).await;
        *known.lock().unwrap() = Session::Between;
        terminal.clear().await;
        *known.lock().unwrap() = Session::None;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

const TERMINALS: &str = "terminals";

/// A terminal ends by a panic when the server is gone; hundreds of backtraces would say nothing.
fn quiet_terminals() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(TERMINALS) {
            usual(info);
        }
    }));
}

#[test]
fn killed_at_any_moment() {
    quiet_terminals();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(TERMINALS)
        .enable_all()
        .build()
        .unwrap();
    let mut server = runtime.block_on(TestServer::start(""));
    let people = runtime.block_on(server.patent());
    runtime.block_on(async {
        for number in 0..ADMINISTRATORS {
            let group = format!("VPN{}", number + 10).parse().unwrap();
            server.done(Request::GroupAdd { group, prefix4: None, prefix6: None }).await;
        }
        server.stop().await;
    });
    let config = server.write_config();
    let (socket, state) = (server.config.admin_socket.clone(), server.config.state_dir.clone());
    let keys = Keys::load(&state).unwrap();
    let mut sessions: Vec<_> = people.iter().take(2).map(|_| Session::None).collect();
    let (mut changes, mut slowest) = (0, Duration::ZERO);

    for round in 0..rounds() {
        let mut process = Process::start(&config);
        server.elsewhere = Some(process.address);
        let shared = Arc::new(server.nowhere());
        let count = Arc::new(AtomicUsize::new(0));
        let known: Vec<_> = sessions.iter().map(|s| Arc::new(Mutex::new(*s))).collect();
        let terminals: Vec<_> = people
            .iter()
            .zip(&known)
            .map(|(p, k)| runtime.spawn(sit_and_leave(shared.clone(), p.clone(), k.clone(), count.clone())))
            .collect();
        let acknowledged = std::thread::scope(|scope| {
            let (socket, count) = (&socket, &count);
            let administrators: Vec<_> = (0..ADMINISTRATORS)
                .map(|number| scope.spawn(move || administrate(socket, round, number, count)))
                .collect();
            let [wanted, later] = clock::random::<2>().map(usize::from);
            let deadline = clock::monotonic() + PATIENCE;
            while count.load(Ordering::Relaxed) < 1 + wanted % 48 {
                assert!(clock::monotonic() < deadline, "round {round}: nothing goes on");
                std::thread::yield_now();
            }
            // Not only right after an answer.
            let moment = clock::monotonic() + Duration::from_micros(u64::try_from(later * 16).unwrap());
            while clock::monotonic() < moment {
                std::thread::yield_now();
            }
            process.kill();
            administrators.into_iter().flat_map(|a| a.join().unwrap()).collect::<Acknowledged>()
        });
        runtime.block_on(async {
            for terminal in terminals {
                terminal.abort();
                let _gone = terminal.await;
            }
        });

        let begun = clock::monotonic();
        let store = Sqlite::open(&admin::database(&state), keys.audit()).unwrap();
        slowest = slowest.max(begun.elapsed());
        changes += count.load(Ordering::Relaxed);
        let sql = rusqlite::Connection::open(admin::database(&state)).unwrap();
        for (user, steps) in &acknowledged {
            check_user(&store, &sql, user, *steps, round);
        }
        sessions = known.iter().map(|k| *k.lock().unwrap()).collect();
        for (person, session) in people.iter().zip(&mut sessions) {
            *session = check_session(&sql, person.user.as_str(), *session, round);
        }
        check_keys(&sql, round);
        assert_eq!(store.audit_verify(None).unwrap().wrong, None, "round {round}");
    }
    eprintln!("{} rounds, {changes} acknowledged changes, slowest opening {slowest:?}", rounds());
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// The state is that after the acknowledged steps, or after one more; and the audit has exactly these steps.
fn check_user(store: &Sqlite, sql: &rusqlite::Connection, user: &str, acknowledged: usize, round: usize) {
    let seen = store.user(&user.parse().unwrap()).ok();
    let seen = seen.map(|u| (!u.groups.is_empty(), u.disabled));
    let rows: usize = sql
        .query_row(
            "SELECT COUNT(*) FROM audit WHERE user = ?1 AND event IN
             ('user-add', 'group-join', 'user-set-password', 'user-disable', 'user-enable', 'group-leave')",
            [user],
            |r| r.get(0),
        )
        .unwrap();
    let possible = acknowledged..=(acknowledged + 1).min(STEPS);
    assert!(possible.contains(&rows), "round {round}: {user}: {acknowledged} steps acknowledged, {rows} in the audit");
    assert_eq!(seen, expected(rows), "round {round}: {user} after {rows} steps");
}

/// A registered session is there, a cleared one is not; the answer is what is there now.
fn check_session(sql: &rusqlite::Connection, user: &str, known: Session, round: usize) -> Session {
    let mut query = sql
        .prepare("SELECT s.id FROM session s JOIN user ON user.id = s.user WHERE user.name = ?1 AND state <> 'pending'")
        .unwrap();
    let found: Vec<SessionId> = query.query_map([user], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    match known {
        Session::None => assert!(found.is_empty(), "round {round}: {user}'s cleared session is back"),
        Session::Registered(id) => assert_eq!(found, [id], "round {round}: {user}'s session is lost or doubled"),
        Session::Between => assert!(found.len() <= 1, "round {round}: {user}"),
    }
    let count = |events: &str| -> i64 {
        let events = format!("SELECT COUNT(*) FROM audit WHERE user = ?1 AND event IN ({events})");
        sql.query_row(&events, [user], |r| r.get(0)).unwrap()
    };
    let began = count("'session-registered'");
    let ended = count("'session-clear', 'session-displaced', 'session-end'");
    assert_eq!(began - ended, i64::try_from(found.len()).unwrap(), "round {round}: {user}: a session without its rows");
    found.first().map_or(Session::None, |id| Session::Registered(*id))
}

/// Each rotation has its key and its row, and no group is without a key.
fn check_keys(sql: &rusqlite::Connection, round: usize) {
    let wrong: i64 = sql
        .query_row(
            "SELECT COUNT(*) FROM closed_group g WHERE
             (SELECT MAX(epoch) FROM group_key k WHERE k.closed_group = g.id)
                <> 1 + (SELECT COUNT(*) FROM audit WHERE event = 'group-rotate' AND reason = g.name)
             OR NOT EXISTS (SELECT 1 FROM group_key k WHERE k.closed_group = g.id AND k.epoch = g.epoch)",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(wrong, 0, "round {round}: a rotation is half done");
}
