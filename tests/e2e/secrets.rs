//! What is in memory, and what a tampered list of members is good for.

use crate::support::{SOON, does_not_reach, overlay};
use anyhow::ensure;
use cug_proto::message::{Peer, Peers, ServerMessage};
use cug_proto::secret::Secret;
use cug_proto::session::preshared_key;
use cug_tests::card::PIN;
use cug_tests::lan::Lan;
use cug_tests::login::{Login, Script};
use cug_tests::memory::{self, Pattern};
use cug_tests::probe::{self, Echo};
use cug_tests::script::authority::Authority;
use cug_tests::script::client::Member;
use cug_tests::script::random;
use cug_tests::script::server::{GROUP, ScriptedServer};
use cug_tests::server::ServerHost;
use cug_tests::space::scenario;
use cug_tests::terminal::Terminal;
use cug_tests::world::World;
use std::time::Duration;
use x25519_dalek::{PublicKey, StaticSecret};

/// Not words that a program contains by itself.
const PASSWORD: &str = "Zq7!correct-Horse-9-battery";

/// P2, with a server of the test's own, which knows every secret that there is.
#[test]
fn nothing_secret_is_left_in_memory_after_the_card_was_pulled() {
    scenario("secrets-memory", |logs| {
        let lan = Lan::new(logs)?;
        let server_host = ServerHost::new(&lan, logs)?;
        let authority = Authority::new()?;
        let mut terminal = Terminal::ready(&lan, logs, 1, &authority.ca_pin()?)?;
        let (card, key) = authority.card()?;
        let server = ScriptedServer::start(server_host.space(), authority, key)?;
        let in_reader = terminal.insert(card)?;

        // The search sees: while the password is being typed, the login program holds the PIN or just held it, and no key.
        let mut login = terminal.login(&Script::new("USER-A").password(PASSWORD))?;
        let said = server.grant_login()?;
        let other = StaticSecret::from(random::<32>()?);
        let wg = said.wg_public_key;
        let mut channel = server.attach(one_peer(&PublicKey::from(&other)))?;
        login.open()?;
        let cugd = terminal.cugd()?.pid()?;

        let group_key = Secret::copy_from(&server.group_key).ok_or_else(|| anyhow::anyhow!("length"))?;
        let psk = preshared_key(&group_key, GROUP, 1, &wg, PublicKey::from(&other).as_bytes());
        let private = memory::hunt(cugd, 1, |bytes| PublicKey::from(&StaticSecret::from(*bytes)).as_bytes() == &wg)?;
        let private = private.ok_or_else(|| {
            anyhow::anyhow!(
                "the WireGuard private key was not found in cugd while the tunnel is up: the search is blind"
            )
        })?;
        let secrets = [
            Pattern::new("group key", &server.group_key),
            Pattern::new("session secret", &server.session_secret),
            Pattern::new("preshared key", psk.expose()),
            Pattern::new("WireGuard private key", &private),
        ];
        let found = memory::find(cugd, &secrets)?;
        for secret in &secrets {
            ensure!(
                found.iter().any(|at| at.starts_with(&secret.name)),
                "{} was not found while in use: the search is blind ({found:?})",
                secret.name
            );
        }
        // What was typed is not needed any more while the tunnel is up.
        let mut typed = vec![Pattern::new("password", PASSWORD.as_bytes()), Pattern::new("PIN", &padded_pin())];
        typed.extend(secrets);
        let host = login.pid()?;
        let found = memory::find(host, &typed)?;
        ensure!(found.is_empty(), "the login program holds {found:?}");

        drop(in_reader);
        let cleared = channel.hear();
        ensure!(
            matches!(cleared, Ok(cug_proto::message::ClientMessage::Clear(_))),
            "no clear after the card was pulled"
        );
        channel.wire.send(&ServerMessage::Cleared)?;
        terminal.wait_clean(SOON)?;
        for (name, pid) in [("cugd", cugd), ("the login program", host)] {
            let found = memory::find(pid, &typed)?;
            ensure!(found.is_empty(), "after the removal {name} still holds {found:#?}");
        }
        login.close()
    });
}

/// As it goes to the card: digits alone are too short a pattern to look for in a whole process.
fn padded_pin() -> Vec<u8> {
    let mut pin = PIN.as_bytes().to_vec();
    pin.resize(8, 0xff);
    pin
}

fn one_peer(key: &PublicKey) -> Peers {
    let peer = Peer {
        user: "USER-B".parse().unwrap(),
        host_name: "terminal2".parse().unwrap(),
        wg_public_key: *key.as_bytes(),
        endpoints: vec!["10.0.0.2:51820".parse().unwrap()],
        address4: "100.96.0.2".parse().unwrap(),
        address6: "fd7e:1:2:1::2".parse().unwrap(),
    };
    Peers { group: GROUP, revision: 1, full: true, present: vec![peer], gone: Vec::new() }
}

/// The password and the PIN are in no process after a login that failed, either.
#[test]
fn a_refused_login_leaves_no_password_in_memory() {
    scenario("secrets-refused", |logs| {
        let mut world = World::new(logs, 1)?;
        world
            .server
            .run_with(&["user", "set-password", "USER-A", "--password-stdin"], &format!("{PASSWORD}\n"))?
            .ok()?;
        let _card = world.terminal(1).insert(world.card("USER-A")?)?;
        let typed = [Pattern::new("password", PASSWORD.as_bytes()), Pattern::new("PIN", &padded_pin())];
        let mut login: Login = world.terminal(1).login(&Script::new("USER-A").password(PASSWORD))?;
        login.open()?;
        let (host, cugd) = (login.pid()?, world.terminal_mut(1).cugd()?.pid()?);
        let server = world.server.process()?.pid()?;
        for (name, pid) in [("the login program", host), ("cugd", cugd), ("the server", server)] {
            let found = memory::find(pid, &typed)?;
            ensure!(found.is_empty(), "{name} holds {found:#?}");
        }
        Ok(())
    });
}

/// P3: whoever changes the list of members, at the server or on the way, has no group key, and so gets no handshake.
#[test]
fn a_member_that_was_slipped_in_gets_no_handshake() {
    scenario("secrets-tampered", |logs| {
        let lan = Lan::new(logs)?;
        let server_host = ServerHost::new(&lan, logs)?;
        let authority = Authority::new()?;
        let pin = authority.ca_pin()?;
        let (one, two) = (Terminal::ready(&lan, logs, 1, &pin)?, Terminal::ready(&lan, logs, 2, &pin)?);
        let (card_one, key_one) = authority.card()?;
        let mut server = ScriptedServer::start(server_host.space(), authority, key_one)?;
        let _one_card = one.insert(card_one)?;
        let mut login_one = one.login(&Script::new("USER-A").password(PASSWORD))?;
        let said_one = server.grant_login()?;
        let mut channel_one = server.attach(cug_tests::script::server::nobody())?;
        login_one.open()?;

        // Terminal 2 is told the same group, with another key: that is what one who only edits the list can do.
        let (card_two, key_two) = server.authority.card()?;
        server.card_key = key_two;
        let right_key = server.group_key;
        server.group_key = random()?;
        server.next_member(2)?;
        let _two_card = two.insert(card_two)?;
        let mut login_two = two.login(&Script::new("USER-B").password(PASSWORD))?;
        let said_two = server.grant_login()?;
        let at = |number: u8, port: u16| vec![format!("10.0.0.{number}:{port}").parse().unwrap()];
        let peer = |user: &str, number: u8, key: [u8; 32], port: u16| Peers {
            group: GROUP,
            revision: 2,
            full: false,
            present: vec![Peer {
                user: user.parse().unwrap(),
                host_name: format!("terminal{number}").parse().unwrap(),
                wg_public_key: key,
                endpoints: at(number, port),
                address4: std::net::Ipv4Addr::new(100, 96, 0, number),
                address6: format!("fd7e:1:2:1::{number}").parse().unwrap(),
            }],
            gone: Vec::new(),
        };
        let mut channel_two = server.attach(cug_tests::script::server::nobody())?;
        login_two.open()?;
        channel_two.wire.send(&ServerMessage::Peers(peer("USER-A", 1, said_one.wg_public_key, channel_one.port)))?;
        channel_one.wire.send(&ServerMessage::Peers(peer("USER-B", 2, said_two.wg_public_key, channel_two.port)))?;
        let known = |terminal: &Terminal, user: &str| {
            terminal.cugctl("peers").is_ok_and(|peers| peers.to_string().contains(user))
        };
        cug_tests::wait::for_true("both to know the other", SOON, || known(&one, "USER-B") && known(&two, "USER-A"))?;
        let to = ["100.96.0.1".parse()?, "fd7e:1:2:1::1".parse()?];
        does_not_reach(two.space(), "USER-B", to)?;
        // Longer than WireGuard waits before it tries a handshake again.
        ensure!(!probe::ping(two.space(), "USER-B", to[0], Duration::from_secs(6))?);
        for terminal in [&one, &two] {
            let peers = terminal.cugctl("peers")?;
            ensure!(peers[0]["peers"][0]["handshake_ms"].is_null(), "a handshake without the group key: {peers}");
        }

        // The test can fail: with the right key the same list is good for a handshake.
        server.group_key = right_key;
        channel_one.send_group(&server.group(1, 2)?)?;
        channel_two.send_group(&server.group(2, 2)?)?;
        let activate = cug_proto::message::KeyAck { group: GROUP, epoch: 2 };
        for channel in [&mut channel_one, &mut channel_two] {
            channel.wire.send(&ServerMessage::Activate(activate))?;
        }
        probe::wait_ping(two.space(), "USER-B", to[0], Duration::from_secs(20))
    });
}

/// The same without the script's server: a stranger who knows everything that the server tells about a member, but not the group's key.
#[test]
fn groups_do_not_meet_even_with_the_same_addresses() {
    scenario("secrets-prefix", |logs| {
        let world = World::new(logs, 2)?;
        // Two groups with one prefix: legal, and still two groups.
        world.server.run(&["group", "add", "VPN3", "--prefix4", "100.111.0.0/20"])?;
        world.server.run(&["group", "join", "VPN3", "USER-B"])?;
        let _echoes: Vec<_> =
            world.terminals.iter().map(|terminal| Echo::start(terminal.space())).collect::<Result<_, _>>()?;
        let (a, b) = (world.card("USER-A")?, world.card("USER-B")?);
        let (_a, _b) = (world.terminal(1).insert(a)?, world.terminal(2).insert(b)?);
        let (_login_a, _login_b) =
            (world.terminal(1).log_in("USER-A", "passwd1")?, world.terminal(2).log_in("USER-B", "passwd2")?);
        does_not_reach(world.terminal(1).space(), "USER-A", overlay(&world, "USER-B", "VPN3")?)?;
        crate::support::reaches(world.terminal(1).space(), "USER-A", overlay(&world, "USER-B", "VPN1")?)
    });
}

/// The group key comes only with the card: it is not in what the server stores in clear.
#[test]
fn the_servers_files_do_not_hold_group_keys_or_passwords_in_clear() {
    scenario("secrets-at-rest", |logs| {
        let world = World::new(logs, 0)?;
        let member = Member::register(&world.server, "USER-A")?;
        let session = member.log_in(world.server.space(), "passwd1")?;
        let secrets = [
            Pattern::new("group key", session.grant.groups[0].key.expose()),
            Pattern::new("session secret", session.grant.secret.expose()),
            Pattern::new("password", b"passwd1"),
        ];
        let dir = world.server.space().path("/var/lib/cug-server");
        let mut read = 0;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_file() {
                let bytes = std::fs::read(&path)?;
                read += bytes.len();
                for secret in &secrets {
                    ensure!(!memory::contains(&bytes, &secret.bytes), "{} is in {}", secret.name, path.display());
                }
                use std::os::unix::fs::MetadataExt;
                ensure!(path.metadata()?.mode() & 0o077 == 0, "{} is open to others", path.display());
            }
        }
        ensure!(read > 10_000, "only {read} bytes of state were found at {}", dir.display());
        Ok(())
    });
}
