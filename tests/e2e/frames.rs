//! Bytes that no honest program sends, to the server and to cugd: nothing crashes, the connection ends, others are unaffected.

use crate::support::{SOON, still_works};
use anyhow::{Context, ensure};
use cug_proto::local::{Request, SOCKET_PATH};
use cug_proto::message::{Ack, Attach, ClientMessage};
use cug_proto::{PROTOCOL_VERSION, frame};
use cug_tests::script::client::{Member, server_address};
use cug_tests::script::random;
use cug_tests::script::stream::{self, Wire};
use cug_tests::space::scenario;
use cug_tests::terminal::Terminal;
use cug_tests::world::World;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Frames that are wrong in themselves.
fn bad_frames() -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let noise: [u8; 600] = random()?;
    let mut long_noise = 600_u32.to_be_bytes().to_vec();
    long_noise.extend_from_slice(&noise);
    Ok(vec![
        ("empty", vec![0, 0, 0, 0]),
        ("largest length", vec![0xff; 64]),
        ("one byte over the limit", (frame::MAX_SESSION as u32 + 1).to_be_bytes().to_vec()),
        ("noise in a frame", long_noise),
        ("noise", noise.to_vec()),
        ("deep nesting", [&200_u32.to_be_bytes()[..], &[0x81; 200]].concat()),
        ("endless array", [&9_u32.to_be_bytes()[..], &[0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat()),
        ("huge string", [&9_u32.to_be_bytes()[..], &[0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat()),
    ])
}

#[test]
fn to_the_server() {
    scenario("frames-server", |logs| {
        let mut world = World::new(logs, 1)?;
        let member = Member::register(&world.server, "USER-B")?;
        let in_reader = world.terminal(1).insert(world.card("USER-A")?)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let before = world.terminal(1).tunnels();
        let host = world.terminal(1).space();
        for (name, bytes) in bad_frames()? {
            let mut wire = member.connect(host)?;
            wire.send_raw(&bytes)?;
            wire.expect_close().context(name)?;
        }
        // Not even TLS.
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &random::<300>()?] {
            let mut tcp = stream::connect(host, server_address())?;
            tcp.write_all(bytes)?;
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest);
        }
        // A truncated frame, and then silence: bounded by the server's patience, and harmless for others.
        let mut half = member.connect(host)?;
        half.send_raw(&[0, 0, 1, 0, 0x82])?;
        let idle = member.connect(host)?;

        for (name, message) in out_of_order()? {
            let mut wire = member.connect(host)?;
            wire.send(&message)?;
            // An `Attach` for a session that is not there is answered; then the connection ends, too.
            let _ = wire.receive_raw();
            wire.expect_close().context(name)?;
        }
        replayed(&member, &world)?;
        wrong_proof(&member, &world)?;
        on_the_channel(&member, &world)?;
        // The member who was logged in all the time has noticed nothing.
        ensure!(world.terminal(1).tunnels() == before, "the tunnel of a member who was logged in has changed");
        let attached = world.terminal(1).cugctl("status")?["sessions"][0]["attached"] == true;
        ensure!(attached, "the channel of a member who was logged in is gone");
        login.close()?;
        world.server.run(&["session", "end", "USER-B"])?;
        still_works(&world, 1, "USER-A", in_reader.pull())?;
        drop((half, idle));
        ensure!(world.server.process()?.exited().is_none(), "the server ended");
        ensure!(!world.server.log().contains("panicked"), "the server panicked");
        Ok(())
    });
}

fn out_of_order() -> anyhow::Result<Vec<(&'static str, ClientMessage)>> {
    let attach = Attach { version: PROTOCOL_VERSION, session: random()?, proof: random()?, known: Vec::new() };
    Ok(vec![
        ("ack first", ClientMessage::Ack(Ack { mac: random()? })),
        ("heartbeat first", ClientMessage::Heartbeat(1)),
        ("clear first", ClientMessage::Clear(cug_proto::message::ClearReason::LoggedOut)),
        ("attach to nothing", ClientMessage::Attach(attach)),
    ])
}

/// The login of one connection, sent again on another, is worth nothing.
fn replayed(member: &Member, world: &World) -> anyhow::Result<()> {
    let host = world.terminal(1).space();
    let mut first = member.challenge(member.connect(host)?)?;
    let (login, _) = member.login(&first, "passwd2", random()?)?;
    let message = ClientMessage::Login(login);
    let body = first.wire.send(&message)?;
    let _outcome = first.wire.receive_raw()?;
    let mut second = member.challenge(member.connect(host)?)?;
    let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    second.wire.send_raw(&frame)?;
    rejected(&mut second.wire).context("a replayed login")
}

/// Nor is a login whose envelope was exchanged after the proof was made.
fn wrong_proof(member: &Member, world: &World) -> anyhow::Result<()> {
    let host = world.terminal(1).space();
    let mut challenged = member.challenge(member.connect(host)?)?;
    let (mut login, _) = member.login(&challenged, "passwd2", random()?)?;
    let (other, _) = member.login(&challenged, "passwd2", random()?)?;
    login.envelope = other.envelope;
    challenged.wire.send(&ClientMessage::Login(login))?;
    rejected(&mut challenged.wire).context("an exchanged envelope")
}

/// A terminal that is attached and then misbehaves loses its connection, not its session: it may attach again.
fn on_the_channel(member: &Member, world: &World) -> anyhow::Result<()> {
    let host = world.terminal(1).space();
    let session = member.log_in(host, "passwd2")?;
    let hello = cug_proto::message::Hello {
        version: PROTOCOL_VERSION,
        user: member.user.parse()?,
        card: member.fingerprint()?,
    };
    let again = frame::encode(&ClientMessage::Hello(hello), frame::MAX_LOGIN)?.to_vec();
    for (name, bytes) in bad_frames()?.into_iter().chain([("hello on the channel", again)]) {
        let mut wire = member.attach(host, &session).with_context(|| format!("attach before: {name}"))?;
        while !matches!(wire.receive()?, cug_proto::message::ServerMessage::Synced) {}
        wire.send_raw(&bytes)?;
        wire.expect_close().with_context(|| format!("on the channel: {name}"))?;
    }
    member.attach(host, &session).map(drop)
}

fn rejected(wire: &mut Wire) -> anyhow::Result<()> {
    let cug_proto::message::ServerMessage::Rejected = wire.receive()? else { anyhow::bail!("not rejected") };
    wire.expect_close()
}

#[test]
fn to_cugd() {
    scenario("frames-cugd", |logs| {
        let mut world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let before = world.terminal(1).tunnels();
        for (name, bytes) in bad_frames()? {
            let mut socket = local(world.terminal(1))?;
            let _ = socket.write_all(&bytes);
            let _ = socket.shutdown(std::net::Shutdown::Write);
            // Whatever it answers, it hangs up; without having read everything, with a reset.
            match socket.read_to_end(&mut Vec::new()) {
                Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => {
                    anyhow::bail!("{name}: cugd keeps the connection: {e}")
                }
                _ => {}
            }
        }
        // Connections that say nothing do not keep others out.
        let idle: Vec<_> = (0..40).map(|_| local(world.terminal(1))).collect::<Result<_, _>>()?;
        world.terminal(1).wait_state("USER-A", "up", SOON)?;
        drop(idle);
        ensure!(world.terminal(1).tunnels() == before, "the tunnel of the session that was up has changed");
        ensure!(world.terminal_mut(1).cugd()?.exited().is_none(), "cugd ended");
        ensure!(!world.terminal(1).cugd_log().contains("panicked"), "cugd panicked");
        login.close()?;
        world.terminal(1).wait_clean(SOON)
    });
}

fn local(terminal: &Terminal) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(terminal.space().path(SOCKET_PATH))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

#[test]
fn ordinary_users_may_ask_only_about_themselves() {
    scenario("frames-permits", |logs| {
        let world = World::new(logs, 1)?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let _login = world.terminal(1).log_in("USER-A", "passwd1")?;
        let space = world.terminal(1).space();
        let before = world.terminal(1).tunnels();
        let requests = [
            Request::Prepare(cug_proto::local::Prepare {
                version: cug_proto::local::LOCAL_VERSION,
                user: "USER-A".parse()?,
                service: "login".into(),
            }),
            Request::Close("USER-A".parse()?),
            Request::Open(cug_proto::local::Open {
                user: "USER-A".parse()?,
                service: "login".into(),
                tty: String::new(),
                holds: true,
            }),
        ];
        let [prepare, ..] = &requests;
        for user in ["porter", "USER-A"] {
            for request in &requests {
                if user == "USER-A" && matches!(request, Request::Prepare(_)) {
                    continue;
                }
                let reply = ask_as(space, user, request)?;
                let Ok(cug_proto::local::Reply::Refused(refusal)) = frame::decode(&reply) else {
                    anyhow::bail!("{user} was not refused")
                };
                ensure!(refusal == cug_proto::local::Refusal::NotPermitted, "{refusal:?}");
            }
        }
        // A locker that runs as the user may ask for its own account: a check only, while the tunnel stands.
        let reply = ask_as(space, "USER-A", prepare)?;
        let Ok(cug_proto::local::Reply::Offer(offer)) = frame::decode(&reply) else { anyhow::bail!("no offer") };
        ensure!(offer.purpose == cug_proto::message::Purpose::Verify && offer.without_groups);
        // What it says about offers that are not its own changes nothing.
        for user in ["porter", "USER-A"] {
            let reply = ask_as(space, user, &Request::Cancel(random()?))?;
            ensure!(matches!(frame::decode(&reply), Ok(cug_proto::local::Reply::Done)));
        }
        ensure!(world.terminal(1).tunnels() == before);
        let own = ctl_as(space, "USER-A")?;
        ensure!(own.contains("USER-A"), "{own}");
        let other = ctl_as(space, "porter")?;
        ensure!(!other.contains("USER-A") && !other.contains("100."), "another user sees {other}");
        Ok(())
    });
}

fn ctl_as(space: &cug_tests::space::Space, user: &str) -> anyhow::Result<String> {
    let mut command = space.command_as(user, cug_tests::paths::built("cugctl")?)?;
    command.args(["status", "--json"]);
    cug_tests::process::run(command, b"", SOON)?.ok()
}

/// One request as `user`: the body of the reply.
fn ask_as(space: &cug_tests::space::Space, user: &str, request: &Request) -> anyhow::Result<Vec<u8>> {
    let mut command = space.command_as(user, cug_tests::paths::built("rig")?)?;
    command.args(["local", SOCKET_PATH]);
    let sent: String = frame::encode(request, frame::MAX_LOGIN)?.iter().map(|byte| format!("{byte:02x}")).collect();
    let answer = cug_tests::process::run(command, sent.as_bytes(), SOON)?.ok()?;
    let bytes: Vec<u8> = (0..answer.trim().len() / 2)
        .map(|at| u8::from_str_radix(&answer[at * 2..at * 2 + 2], 16))
        .collect::<Result<_, _>>()?;
    Ok(bytes.get(frame::HEADER_LEN..).context("no reply")?.to_vec())
}
