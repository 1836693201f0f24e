//! Writes real messages into the corpora: what a server and terminals of today send each other.

use cug_proto::{
    envelope::EnvelopeKey,
    frame,
    hours::{Closed, Opening, Weekday},
    local::{self, CardBinding, Deliver, MediumBinding, Open, Prepare, ReaderBinding, Refusal, Reply, Request},
    message::*,
    policy::Policy,
    secret::{Secret, SecretBytes},
    session::ChannelKeys,
    trust,
};
use cug_server::{
    admin::{self, Request as Ask},
    config::Config,
};
use getrandom::{SysRng, rand_core::UnwrapErr};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{error::Error, fs, path::Path};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let (clients, servers) = (client_messages()?, server_messages()?);
    for (i, body) in clients.iter().chain(&servers).enumerate() {
        write("messages", &format!("message-{i:02}"), body)?;
    }
    let stream = |bodies: &[Vec<u8>]| -> Vec<u8> {
        bodies.iter().flat_map(|b| [&u32::try_from(b.len()).unwrap_or(0).to_be_bytes()[..], b].concat()).collect()
    };
    write("frames", "login", &stream(&clients))?;
    write("frames", "channel", &stream(&servers))?;
    for (i, body) in local_messages()?.iter().enumerate() {
        write("local", &format!("message-{i:02}"), body)?;
        write("frames", &format!("local-{i:02}"), &stream(std::slice::from_ref(body)))?;
    }
    certificates_and_envelope()?;
    texts()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join(format!("seed-{name}")), bytes)?)
}

fn body(message: &impl minicbor::Encode<()>) -> Result<Vec<u8>> {
    Ok(frame::encode(message, frame::MAX_SESSION)?[frame::HEADER_LEN..].to_vec())
}

fn group(id: u32, policy: Policy) -> Result<GroupGrant> {
    Ok(GroupGrant {
        id,
        name: format!("VPN{id}").parse()?,
        epoch: 3,
        key: Secret::fill(|key| key.fill(1)),
        prefix4: "100.96.0.0/20".parse::<ipnet::Ipv4Net>()?.into(),
        prefix6: "fd00:1::/64".parse::<ipnet::Ipv6Net>()?.into(),
        address4: "100.96.0.1".parse()?,
        address6: "fd00:1::1".parse()?,
        policy,
    })
}

fn closed() -> Result<Policy> {
    Ok(Policy::Closed(vec!["192.0.2.0/24".parse()?, "192.0.2.7:53".parse()?, "[2001:db8::/64]:443".parse()?]))
}

fn grant() -> Result<Grant> {
    let groups = vec![group(1, Policy::Open)?, group(2, closed()?)?];
    Ok(Grant { session: [2; 16], secret: Secret::fill(|secret| secret.fill(3)), groups, attach_within: 60 })
}

fn credentials() -> Result<Credentials> {
    Ok(Credentials {
        user: "USER-A".parse()?,
        password: SecretBytes::copy_from(b"passwd1").ok_or("too long")?,
        purpose: Purpose::Open,
        wg_public_key: [4; 32],
        host_name: "terminal-1".parse()?,
        addresses: vec!["10.0.0.1".parse()?, "fd00::1".parse()?],
        outcome_secret: Secret::fill(|s| s.fill(0x0c)),
        new_password: None,
    })
}

fn client_messages() -> Result<Vec<Vec<u8>>> {
    let known = vec![Known { group: 1, revision: 9, epoch: 3 }];
    let endpoints =
        Endpoints { ports: vec![GroupPort { group: 1, port: 51820 }], addresses: vec!["192.0.2.7".parse()?] };
    [
        ClientMessage::Hello(Hello { version: cug_proto::PROTOCOL_VERSION, user: "USER-A".parse()?, card: [1; 32] }),
        ClientMessage::Login(Login { envelope: vec![5; 700], proof: [6; 32] }),
        ClientMessage::Ack(Ack { mac: [7; 32] }),
        ClientMessage::Attach(Attach { version: cug_proto::PROTOCOL_VERSION, session: [2; 16], proof: [8; 32], known }),
        ClientMessage::Endpoints(endpoints),
        ClientMessage::Heartbeat(44),
        ClientMessage::KeyAck(KeyAck { group: 1, epoch: 4 }),
        ClientMessage::Clear(ClearReason::CardRemoved),
    ]
    .iter()
    .map(body)
    .collect()
}

fn server_messages() -> Result<Vec<Vec<u8>>> {
    let peer = Peer {
        user: "USER-B".parse()?,
        host_name: "terminal-2".parse()?,
        wg_public_key: [9; 32],
        endpoints: vec!["10.0.0.2:51820".parse()?, "[fd00::2]:51820".parse()?],
        address4: "100.96.0.2".parse()?,
        address6: "fd00:1::2".parse()?,
    };
    let peers = Peers { group: 1, revision: 10, full: true, present: vec![peer], gone: vec!["USER-X".parse()?] };
    let channel = ChannelKeys::new([2; 16], &Secret::fill(|secret| secret.fill(3)), &[8; 32]);
    let mut bodies: Vec<_> = [
        ServerMessage::Challenge(Challenge { ciphertext: vec![1; 256] }),
        ServerMessage::Rejected,
        ServerMessage::Outcome(SealedOutcome { sealed: vec![2; 300] }),
        ServerMessage::Registered,
        ServerMessage::Unavailable(Unavailable::Busy(2)),
        ServerMessage::Attached(Attached {
            proof: [3; 32],
            lease: 60,
            heartbeat: 15,
            seen_at: Some([10, 0, 0, 1].into()),
        }),
        ServerMessage::Peers(peers),
        ServerMessage::Synced,
        ServerMessage::Group(channel.seal_group(&group(1, closed()?)?, [1; 12])?),
        ServerMessage::Activate(KeyAck { group: 1, epoch: 4 }),
        ServerMessage::Left(1),
        ServerMessage::Alive(44),
        ServerMessage::Cleared,
        ServerMessage::End(EndReason::Displaced("terminal-4".parse()?)),
    ]
    .iter()
    .map(body)
    .collect::<Result<_>>()?;
    bodies.push(body(&Outcome::Grant(grant()?))?);
    bodies.push(body(&Outcome::Denied(DenyReason::TooManyAttempts(4)))?);
    bodies.push(body(&group(2, closed()?)?)?);
    bodies.push(body(&credentials()?)?);
    let next = Weekday::from_monday(0).map(|weekday| Opening { days: 2, weekday, minute: 420 });
    let closed = Closed { hours: "Mon-Fri 07:00-19:00; Sat 22:00-06:00".parse()?, next, offset: Some(60) };
    bodies.push(body(&Outcome::Denied(DenyReason::OutsideHours(Some(closed))))?);
    bodies.push(body(&ServerMessage::End(EndReason::Disabled(Some(Lapse::OutsideHours))))?);
    Ok(bodies)
}

fn local_messages() -> Result<Vec<Vec<u8>>> {
    let deliver = |card| -> Result<Request> {
        let (grant, server) = (grant()?, "vpn.example.org:7531".to_owned());
        Ok(Request::Deliver(Deliver { offer: [1; 16], grant, server, ca_pin: [2; 32], card }))
    };
    let reader =
        ReaderBinding { reader: "Reader 00 00".into(), event_count: 3, atr: vec![0x3b; 11], fingerprint: [4; 32] };
    let medium = MediumBinding { directory: "/media/stick/cug".into(), device: 5, inode: 6, fingerprint: [4; 32] };
    let mut bodies: Vec<_> = [
        Request::Prepare(Prepare { version: local::LOCAL_VERSION, user: "USER-A".parse()?, service: "login".into() }),
        deliver(CardBinding::Reader(reader))?,
        deliver(CardBinding::Medium(medium))?,
        Request::Cancel([1; 16]),
        Request::Open(Open { user: "USER-A".parse()?, service: "login".into(), tty: "tty1".into(), holds: true }),
        Request::Close("USER-A".parse()?),
        Request::Status,
        Request::Peers,
    ]
    .iter()
    .map(body)
    .collect::<Result<_>>()?;
    for reply in
        [Reply::Delivered(true), Reply::Done, Reply::NoGrant, Reply::Peers(vec![]), Reply::Refused(Refusal::Busy)]
    {
        bodies.push(body(&reply)?);
    }
    Ok(bodies)
}

/// With the keys of an organisation that is made for it and thrown away.
fn certificates_and_envelope() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("cug-seeds-{}", std::process::id()));
    let text = format!("state-dir = '{0}/state'\nadmin-socket = '{0}/none'", dir.display());
    let config = Config::parse(&text, &dir)?;
    admin::initialise(&config, "Example")?;
    let admin::Reply::Der(object) = admin::ask(&config, &Ask::ServerObject)? else {
        return Err("no server object".into());
    };
    for name in ["ca", "tls"] {
        let pem = fs::read(dir.join(format!("state/keys/{name}.pem")))?;
        write("trust", name, &CertificateDer::from_pem_slice(&pem)?)?;
    }
    fs::remove_dir_all(&dir)?;
    let parsed = trust::ServerObject::parse(&object)?;
    write("trust", "server-object", &object)?;
    for name in ["a", "b", "c"] {
        let envelope = EnvelopeKey::seal(parsed.envelope_key(), &credentials()?, &mut UnwrapErr(SysRng))?;
        write("envelope", name, &envelope)?;
    }
    Ok(())
}

fn texts() -> Result<()> {
    for (i, text) in
        ["192.0.2.0/24", "192.0.2.7:53", "[2001:db8::/64]:443", "2001:db8::1", "USER-A", "terminal-1.example"]
            .iter()
            .enumerate()
    {
        write("policy", &i.to_string(), text.as_bytes())?;
    }
    let server = "listen = ['[::]:7531']\nadmin-group = 'cug-admin'\noverlay4 = '100.96.0.0/12'\nlease-seconds = 60\n[argon2]\nmemory-kib = 19456\n";
    let pin = "0".repeat(64);
    let terminal = format!(
        "servers = ['vpn.example.org:7531']\nca-pins = ['{pin}']\nlisten-ports = '51820-51919'\nbackend = 'auto'\n"
    );
    for (name, text) in [("server", server), ("terminal", &terminal), ("wrong", "listen = [1]\nno-such-key = {}")] {
        write("config", name, text.as_bytes())?;
    }
    for (i, text) in [
        r#""user-list""#,
        r#"{"user-add":{"user":"USER-A","password":"passwd1"}}"#,
        r#"{"group-add":{"group":"VPN1","prefix4":"10.0.0.0/24","prefix6":null}}"#,
        r#"{"group-join":["VPN1","USER-A"]}"#,
        r#"{"group-set":["VPN1",{"policy":"closed","allow":["192.0.2.7:53"],"remove":[]}]}"#,
        r#"{"card-register":{"user":"USER-A","public_key":[48,1],"kind":"piv"}}"#,
        r#"{"refused":"there is no user USER-A"}"#,
    ]
    .iter()
    .enumerate()
    {
        write("admin", &i.to_string(), text.as_bytes())?;
    }
    for (i, text) in [
        "user,groups\nUSER-A,VPN1\nUSER-B,VPN1;VPN2\n",
        "groups;user\n",
        "user,groups,disabled\n\"USER-C\",\"VPN1\",true\nUSER-C,\nn 2,VPN1\n",
        r#"{"format":"cug-directory/1","groups":[{"group":"VPN1","prefix4":"10.0.0.0/24","prefix6":"fd00::/64"}],"users":[{"user":"USER-A","disabled":false,"groups":["VPN1"]}]}"#,
        r#"[{"user":"USER-A","groups":["VPN1"]}]"#,
    ]
    .iter()
    .enumerate()
    {
        write("import", &i.to_string(), text.as_bytes())?;
    }
    Ok(())
}
