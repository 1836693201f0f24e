//! The network and the machine misbehave. After each fault nothing is left over, and the next login works.

use crate::support::{SOON, overlay, reaches_by_ping, still_works, wait_seats};
use anyhow::{Context, ensure};
use cug_tests::card::InReader;
use cug_tests::flow::{Pings, Trickle};
use cug_tests::login::{Login, Script};
use cug_tests::probe::{self, Echo};
use cug_tests::script::stream;
use cug_tests::server::PORT;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::world::World;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A and B, logged in at terminals 1 and 2.
pub struct Pair {
    pub world: World,
    pub held: Vec<(Login, InReader)>,
}

pub fn pair(logs: &std::path::Path, config: &str) -> anyhow::Result<Pair> {
    let mut pair = Pair { world: World::with_config(logs, 2, config)?, held: Vec::new() };
    pair.log_in()?;
    Ok(pair)
}

impl Pair {
    fn log_in(&mut self) -> anyhow::Result<()> {
        for (number, user, password) in [(1, "USER-A", "passwd1"), (2, "USER-B", "passwd2")] {
            let card = self.world.terminal(number).insert(self.world.card(user)?)?;
            self.held.push((self.world.terminal(number).log_in(user, password)?, card));
        }
        Ok(())
    }

    /// Which epoch each of the two uses.
    pub fn epochs(&self) -> Option<(u64, u64)> {
        let epoch = |number, user| self.world.terminal(number).overlay(user).ok()?[0]["epoch"].as_u64();
        epoch(1, "USER-A").zip(epoch(2, "USER-B"))
    }

    /// Both have gone over to the same epoch, later than `before`.
    pub fn wait_epoch_after(&self, before: (u64, u64), limit: Duration) -> anyhow::Result<()> {
        wait::for_true("both terminals to use a new key", limit, || {
            self.epochs().is_some_and(|(a, b)| a == b && a > before.0)
        })
        .with_context(|| format!("{before:?} -> {:?}", self.epochs()))
    }

    /// Terminal 2's packets to the server are lost from now on, or arrive again.
    fn cut(&self, cut: bool) -> anyhow::Result<()> {
        let what = if cut { "add" } else { "del" };
        self.world.terminal(2).space().ip(&[format!("route {what} blackhole 10.0.0.254/32")]).map(drop)
    }

    /// The channel of the session at this terminal stands.
    pub fn attached(&self, number: usize) -> bool {
        self.world.terminal(number).cugctl("status").is_ok_and(|status| status["sessions"][0]["attached"] == true)
    }

    /// Everybody leaves; nothing stays behind, and the next login works.
    pub fn leave(self) -> anyhow::Result<()> {
        let mut cards = Vec::new();
        for (login, in_reader) in self.held {
            login.close()?;
            cards.push(in_reader.pull());
        }
        self.world.terminals.iter().try_for_each(|terminal| terminal.wait_clean(SOON))?;
        wait_seats(&self.world, &[])?;
        let card = cards.into_iter().next().context("a card")?;
        still_works(&self.world, 1, "USER-A", card).map(drop)
    }
}

#[test]
fn rotations_lose_nothing() {
    scenario("faults-rotations", |logs| {
        let pair = pair(logs, "")?;
        let (a, b) = (pair.world.terminal(1).space(), pair.world.terminal(2).space());
        let _echo = Echo::start_as(b, "USER-B", 7007)?;
        let to = overlay(&pair.world, "USER-B", "VPN1")?[0];
        let stream = Trickle::start(a, "USER-A", SocketAddr::new(to, 7007))?;
        let pings = Pings::start(a, "USER-A", to)?;
        for _ in 0..5 {
            let before = pair.epochs().context("epochs")?;
            pair.world.server.run(&["group", "rotate", "VPN1"])?;
            pair.wait_epoch_after(before, SOON)?;
        }
        let (bytes, count) = (stream.finish()?, pings.finish()?);
        println!("faults: five rotations: {count:?}, {bytes} bytes by TCP");
        // The last one may be on its way when ping ends.
        ensure!(count.sent - count.answered <= 1, "{count:?}");
        pair.leave()
    });
}

#[test]
fn a_terminal_that_was_cut_off_during_a_rotation_recovers() {
    scenario("faults-cut-rotation", |logs| {
        let pair = pair(logs, "heartbeat-seconds = 2\nlease-seconds = 60")?;
        let to = overlay(&pair.world, "USER-B", "VPN1")?[0];
        let pings = Pings::start(pair.world.terminal(1).space(), "USER-A", to)?;
        let before = pair.epochs().context("epochs")?;
        pair.cut(true)?;
        pair.world.server.run(&["group", "rotate", "VPN1"])?;
        wait::for_true("terminal 2 to notice", Duration::from_secs(20), || !pair.attached(2))?;
        ensure!(pair.epochs() == Some(before), "the key turned without terminal 2");
        pair.cut(false)?;
        pair.wait_epoch_after(before, Duration::from_secs(40))?;
        let count = pings.finish()?;
        println!("faults: cut off during a rotation: {count:?}");
        ensure!(count.sent - count.answered <= 1, "{count:?}");
        pair.leave()
    });
}

#[test]
fn a_server_that_is_killed_during_a_rotation_finishes_it_later() {
    scenario("faults-killed-rotation", |logs| {
        let mut pair = pair(logs, "heartbeat-seconds = 2\nlease-seconds = 60")?;
        let to = overlay(&pair.world, "USER-B", "VPN1")?[0];
        let pings = Pings::start(pair.world.terminal(1).space(), "USER-A", to)?;
        let before = pair.epochs().context("epochs")?;
        // It waits for terminal 2, so it is under way.
        pair.cut(true)?;
        pair.world.server.run(&["group", "rotate", "VPN1"])?;
        pair.world.server.kill()?;
        pair.cut(false)?;
        pair.world.server.serve()?;
        pair.wait_epoch_after(before, Duration::from_secs(60))?;
        let count = pings.finish()?;
        println!("faults: server killed during a rotation: {count:?}");
        ensure!(count.sent - count.answered <= 1, "{count:?}");
        pair.leave()
    });
}

/// Between the terminals and the server: a wire that misbehaves.
struct Relay {
    /// Milliseconds by which every piece is delayed.
    delay: Arc<AtomicU64>,
    /// Bytes are swallowed, in both directions; nobody is told.
    silent: Arc<AtomicBool>,
    lines: Arc<Mutex<Vec<TcpStream>>>,
}

/// The relay's port on the server's host.
const RELAY: u16 = 7600;

impl Relay {
    fn start(world: &World) -> anyhow::Result<Self> {
        let relay = Self { delay: Arc::default(), silent: Arc::default(), lines: Arc::default() };
        let listener = stream::listen(world.server.space(), RELAY)?;
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", world.server.space().pid()))?;
        let (delay, silent, lines) = (relay.delay.clone(), relay.silent.clone(), relay.lines.clone());
        std::thread::spawn(move || {
            // This thread alone; it ends with the test program.
            if nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", PORT)) else { continue };
                let copies = [near.try_clone(), near.try_clone(), far.try_clone(), far.try_clone()];
                let [Ok(near_in), Ok(near_kept), Ok(far_in), Ok(far_kept)] = copies else { continue };
                lines.lock().unwrap_or_else(PoisonError::into_inner).extend([near_kept, far_kept]);
                for (from, to) in [(near_in, far), (far_in, near)] {
                    let _ = from.set_nodelay(true);
                    let (delay, silent) = (delay.clone(), silent.clone());
                    std::thread::spawn(move || copy(from, to, &delay, &silent));
                }
            }
        });
        Ok(relay)
    }

    /// Ends all connections: in the middle of whatever is under way.
    fn cut(&self) {
        for line in self.lines.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = line.shutdown(Shutdown::Both);
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, delay: &AtomicU64, silent: &AtomicBool) {
    let mut piece = [0; 97];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if silent.load(Ordering::Acquire) {
            continue;
        }
        std::thread::park_timeout(Duration::from_millis(delay.load(Ordering::Acquire)));
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The server sees the relay's address first, where no member is: the members find each other all the same.
#[test]
fn a_wire_that_delays_cuts_and_falls_silent() {
    scenario("faults-wire", |logs| {
        let mut world = World::with_config(logs, 2, "heartbeat-seconds = 2\nlease-seconds = 60")?;
        let relay = Relay::start(&world)?;
        for number in [1, 2] {
            world.terminal(number).configure(&format!("servers = [\"10.0.0.254:{RELAY}\"]"))?;
            world.terminal_mut(number).stop_cugd()?;
            world.terminal_mut(number).start_cugd()?;
        }
        // Every 97 bytes take 10 ms, each way.
        relay.delay.store(10, Ordering::Release);
        let mut pair = Pair { world, held: Vec::new() };
        pair.log_in().context("over a slow wire")?;
        relay.delay.store(0, Ordering::Release);
        let to = overlay(&pair.world, "USER-B", "VPN1")?;
        let host = pair.world.terminal(1).space();
        probe::wait_ping(host, "USER-A", to[0], Duration::from_secs(20)).context("members behind one address")?;
        let pings = Pings::start(host, "USER-A", to[0])?;
        for round in 0..10 {
            relay.cut();
            let again = || pair.attached(1) && pair.attached(2);
            wait::for_true("both to attach again", Duration::from_secs(40), again)
                .with_context(|| format!("cut {round}"))?;
        }
        // Half open: both ends have a connection, and nothing comes through.
        relay.silent.store(true, Ordering::Release);
        wait::for_true("both to notice a silent wire", Duration::from_secs(30), || {
            !pair.attached(1) && !pair.attached(2)
        })?;
        relay.silent.store(false, Ordering::Release);
        relay.cut();
        wait::for_true("both to attach again", Duration::from_secs(60), || pair.attached(1) && pair.attached(2))?;
        let count = pings.finish()?;
        println!("faults: over ten cuts and a silent wire: {count:?}");
        ensure!(count.sent - count.answered <= 2, "the tunnel suffered: {count:?}");
        // And the channel works.
        let before = pair.epochs().context("epochs")?;
        pair.world.server.run(&["group", "rotate", "VPN1"])?;
        pair.wait_epoch_after(before, SOON)?;
        for (login, card) in pair.held {
            login.close()?;
            drop(card);
        }
        pair.world.terminals.iter().try_for_each(|terminal| terminal.wait_clean(SOON))
    });
}

/// Twenty pulls, as fast as a reader allows, once while a session is up and then with nothing but a card.
#[test]
fn a_card_with_a_loose_contact() {
    scenario("faults-flapping", |logs| {
        let mut world = World::new(logs, 2)?;
        let mut card = world.card("USER-A")?;
        let open_files = |world: &mut World| {
            let pid = world.terminal_mut(1).cugd()?.pid()?;
            let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
            anyhow::Ok((count("fd")?, count("task")?))
        };
        card = still_works(&world, 1, "USER-A", card)?;
        let before = open_files(&mut world)?;
        let in_reader = world.terminal(1).insert(card)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        card = in_reader.pull();
        for _ in 0..20 {
            card = world.terminal(1).insert(card)?.pull();
        }
        world.terminal(1).wait_clean(SOON)?;
        wait_seats(&world, &[])?;
        login.close()?;
        // Logins that a flapping card interrupts at any point.
        for _ in 0..5 {
            let in_reader = world.terminal(1).insert(card)?;
            let script = Script::new("USER-A").password("passwd1");
            let mut login = world.terminal(1).login(&script)?;
            login.wait("the prompt for the password", |event| {
                event.event == "prompt" && event.text.as_deref().unwrap_or_default().contains("assword")
            })?;
            card = in_reader.pull();
            for _ in 0..4 {
                card = world.terminal(1).insert(card)?.pull();
            }
            drop(login);
            world.terminal(1).wait_clean(SOON)?;
        }
        wait_seats(&world, &[])?;
        let mut after = (0, 0);
        // The guard is kept ready for a while after a login has begun.
        wait::for_true("cugd to hold no more than before", SOON + Duration::from_secs(20), || {
            after = open_files(&mut world).unwrap_or((usize::MAX, usize::MAX));
            after.0 <= before.0 + 1 && after.1 <= before.1 + 1
        })
        .with_context(|| format!("files and threads: {before:?} -> {after:?}"))?;
        let card = still_works(&world, 1, "USER-A", card)?;
        let _in = world.terminal(1).insert(card)?;
        let b = world.terminal(2).insert(world.card("USER-B")?)?;
        let _logins = (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        let at = overlay(&world, "USER-B", "VPN1")?;
        reaches_by_ping(world.terminal(1).space(), "USER-A", at)?;
        drop(b);
        Ok(())
    });
}
