//! Packets lost, doubled, delayed and overtaken, between the terminals and on the way to the server.

use crate::faults::pair;
use crate::support::overlay;
use anyhow::{Context, ensure};
use cug_tests::flow::{Pings, Trickle, wall};
use cug_tests::probe::Echo;
use cug_tests::space::scenario;
use cug_tests::wait;
use cug_tests::wire::{Faults, Wire};
use std::net::SocketAddr;
use std::time::Duration;

/// A fifth of what goes to terminal 2 is lost, and a tenth of what comes from it.
const TO: Faults = Faults { lost: 200, twice: 60, delay: (1, 14) };
const FROM: Faults = Faults { lost: 100, twice: 60, delay: (1, 14) };

/// How long WireGuard goes on asking for a session, every five seconds (REKEY_ATTEMPT_TIME). Of its tries on this wire 28 in 100 are lost there or back,
/// six in a row once in 2,000 times; in this time there are seventeen.
const ASKING: Duration = Duration::from_secs(90);

#[test]
fn a_bad_wire_loses_packets_and_nothing_else() {
    scenario("wire-bad", |logs| {
        let pair = pair(logs, "heartbeat-seconds = 2\nlease-seconds = 60")?;
        let (a, b) = (pair.world.terminal(1).space(), pair.world.terminal(2).space());
        let _echo = Echo::start_as(b, "USER-B", 7007)?;
        let to = overlay(&pair.world, "USER-B", "VPN1")?[0];
        let wire = Wire::put(&pair.world.lan, &pair.world.terminal(2).cable, 7531, FROM, TO)?;
        let outside = Pings::start(a, "root", "10.0.0.2".parse()?)?;
        let stream = Trickle::start(a, "USER-A", SocketAddr::new(to, 7007))?;
        let pings = Pings::start(a, "USER-A", to)?;
        let before = pair.epochs().context("epochs")?;
        // In seconds; the engine's clock for it ticks four times a second.
        let age = || {
            let peers = pair.world.terminal(1).cugctl("peers").unwrap_or_default();
            peers[0]["peers"][0]["handshake_ms"].as_f64().map(|age| age / 1e3)
        };
        wait::for_true("the first handshake to be past", Duration::from_secs(30), || {
            age().is_some_and(|age| age > 1.5)
        })?;
        let mut last = age().context("no session")?;
        let rotated = wall();
        pair.world.server.run(&["group", "rotate", "VPN1"])?;
        pair.wait_epoch_after(before, Duration::from_secs(40))?;
        let took = wall() - rotated;
        // Under the new key: nobody still lives on the session of the old one. Only a new session makes its age smaller.
        wait::for_true("a handshake with the new key", ASKING, || {
            age().is_some_and(|age| std::mem::replace(&mut last, age) > age)
        })
        .with_context(|| format!("the last one was {:?} s ago", age()))?;
        // Something of both before the wire is judged.
        wait::for_true("two hundred answers", Duration::from_secs(30), || pings.answers().len() > 200)?;
        let bytes = stream.finish().context("the TCP connection over the overlay")?;
        let (doubled, doubled_outside) = (pings.doubled(), outside.doubled());
        let (count, count_outside) = (pings.finish()?, outside.finish()?);
        let counts = wire.mend()?;
        println!("wire: {counts:?}; below the tunnel {count_outside:?}, {doubled_outside} of them twice");
        println!("wire: in the tunnel {count:?}, {doubled} twice; rotation took {took:.1} s; {bytes} bytes by TCP");
        // The wire is as bad as was asked.
        ensure!(counts.lost > 100 && counts.twice > 20 && counts.overtaken > 20, "{counts:?}");
        ensure!(doubled_outside > 0, "nothing arrived twice");
        let part = f64::from(count.answered) / f64::from(count.sent);
        ensure!((0.5..0.9).contains(&part), "{part:.2} of the pings were answered: {count:?}");
        // WireGuard takes no packet twice.
        ensure!(doubled == 0, "{doubled} answers came twice through the tunnel");
        ensure!(bytes > 10_000, "{bytes}");
        wait::for_true("both to be attached", Duration::from_secs(20), || pair.attached(1) && pair.attached(2))?;
        pair.leave()
    });
}
