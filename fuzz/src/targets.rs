//! The targets. Each takes any bytes; a panic is a finding.

use cug_proto::{
    envelope::SealedEnvelope,
    frame,
    id::{GroupName, HostName, UserId},
    local,
    login::LoginKeys,
    message::{ClientMessage, Credentials, Grant, GroupGrant, Outcome, Purpose, SealedGroup, ServerMessage},
    policy::{Allow, Policy},
    secret::{Secret, SecretBytes},
    session::ChannelKeys,
    trust,
};
use std::{path::Path, str::FromStr};

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const ALL: [(&str, Target); 9] = [
    ("frames", frames),
    ("messages", messages),
    ("local", local),
    ("envelope", envelope),
    ("trust", trust),
    ("policy", policy),
    ("config", config),
    ("admin", admin),
    ("import", import),
];

/// What decodes encodes again, to something that decodes to the same: nobody can make two ends understand one message differently.
macro_rules! there_and_back {
    ($input:expr, $($type:ty),+) => {
        $(if let Ok(message) = frame::decode::<$type>($input) {
            // Our own form may be larger than theirs only by what they left out.
            let once = frame::encode(&message, 4 * frame::MAX_SESSION).expect("what was decoded can be encoded");
            let body = &once[frame::HEADER_LEN..];
            let again: $type = frame::decode(body).expect("what was encoded can be decoded");
            let twice = frame::encode(&again, 4 * frame::MAX_SESSION).expect("twice");
            assert!(*once == *twice, "another message came back");
        })+
    };
}

/// A stream of frames, cut by their headers as both ends do.
pub fn frames(mut stream: &[u8]) {
    while let Some((header, rest)) = stream.split_first_chunk::<{ frame::HEADER_LEN }>() {
        for max in [frame::MAX_LOGIN, frame::MAX_SESSION] {
            if let Ok(len) = frame::body_len(*header, max) {
                assert!((1..=max).contains(&len));
            }
        }
        let Ok(len) = frame::body_len(*header, frame::MAX_SESSION) else { return };
        let Some(body) = rest.get(..len) else { return };
        messages(body);
        local(body);
        stream = &rest[len..];
    }
}

/// What an honest terminal sends.
fn credentials() -> Option<Credentials> {
    Some(Credentials {
        user: "USER-A".parse().ok()?,
        password: SecretBytes::copy_from(b"password")?,
        purpose: Purpose::Open,
        wg_public_key: [0; 32],
        host_name: "terminal".parse().ok()?,
        addresses: Vec::new(),
        outcome_secret: Secret::fill(|_| ()),
        new_password: None,
    })
}

/// What server and terminal send each other, and what is sealed in it.
pub fn messages(body: &[u8]) {
    there_and_back!(body, ClientMessage, ServerMessage, Outcome, Grant, GroupGrant, Credentials, SealedGroup, Policy);
    if let Ok(Outcome::Grant(grant)) = frame::decode(body) {
        grant.groups.iter().for_each(group);
    }
    if let Ok(grant) = frame::decode(body) {
        group(&grant);
    }
    // Whoever does not have the keys gets nothing but an error.
    let (keys, channel) = keys();
    let transcript = cug_proto::login::Transcript::new(body, body).with_envelope(body);
    if let Some(credentials) = credentials() {
        assert!(keys.open_outcome(&transcript, &credentials.outcome_binding(), body).is_err());
    }
    if let Ok(sealed) = frame::decode::<SealedGroup>(body) {
        assert!(channel.open_group(&sealed).is_err());
    }
}

fn keys() -> (LoginKeys, ChannelKeys) {
    let secret = Secret::fill(|bytes| bytes.fill(7));
    (LoginKeys::new(&secret, &[8; 32]), ChannelKeys::new([9; 16], &secret, &[8; 32]))
}

/// What a terminal does with the parts of a grant.
fn group(group: &GroupGrant) {
    let _four = ipnet::Ipv4Net::try_from(group.prefix4);
    let _six = ipnet::Ipv6Net::try_from(group.prefix6);
    if let Policy::Closed(exceptions) = &group.policy {
        for allow in exceptions {
            if let Ok(net) = allow.net() {
                assert_eq!(net, net.trunc());
            }
            let _shown = allow.to_string();
        }
    }
}

/// What the login module and `cugctl` say to `cugd`, and what it answers.
pub fn local(body: &[u8]) {
    there_and_back!(body, local::Request, local::Reply);
}

/// The COSE envelope with ID and password, as the server gets it before anybody has proved anything.
pub fn envelope(bytes: &[u8]) {
    let Ok(envelope) = SealedEnvelope::parse(bytes) else { return };
    let _ = (envelope.key_id(), envelope.wrapped_key().len());
    assert!(envelope.open(&Secret::fill(|key| key.fill(1))).is_err(), "opened without the key");
}

/// The server object on a card that anybody may have made, and certificates.
pub fn trust(der: &[u8]) {
    if let Ok(object) = trust::ServerObject::parse(der) {
        let _ = (object.ca_pin(), object.envelope_key().key_id());
    }
    let _pin = trust::spki_sha256(der);
}

/// Names and networks as people type them.
pub fn policy(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(allow) = Allow::from_str(text) {
        let shown = allow.to_string();
        assert_eq!(Allow::from_str(&shown), Ok(allow), "{shown}");
        assert!(allow.net().is_ok(), "{shown}");
        // A group's exceptions are stored with blanks in between.
        assert!(!shown.contains(char::is_whitespace));
    }
    for name in [
        UserId::from_str(text).map(|n| n.to_string()),
        GroupName::from_str(text).map(|n| n.to_string()),
        HostName::from_str(text).map(|n| n.to_string()),
    ]
    .into_iter()
    .flatten()
    {
        assert!(
            name == text && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'),
            "{name:?}"
        );
    }
}

/// The configuration files of server and terminal.
pub fn config(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let path = Path::new("the-file.toml");
    if let Err(error) = cug_server::config::Config::parse(text, path) {
        assert!(error.to_string().contains("the-file.toml"), "{error}");
    }
    if let Err(error) = cugd::config::Config::parse(path, text) {
        assert!(error.to_string().contains("the-file.toml"), "{error}");
    }
}

/// What comes over the administrator's socket.
pub fn admin(json: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<cug_server::admin::Request>(json) {
        let once = serde_json::to_string(&request).expect("what was decoded can be encoded");
        let again: cug_server::admin::Request = serde_json::from_str(&once).expect("what was encoded can be decoded");
        assert_eq!(serde_json::to_string(&again).expect("twice"), once);
    }
    let _reply = serde_json::from_slice::<cug_server::admin::Reply>(json);
}

/// A file that an administrator imports: CSV and JSON, whatever it is.
pub fn import(content: &[u8]) {
    use cug_server::import::{Format, parse};
    for format in [Format::Csv, Format::Json] {
        match parse(format, content) {
            Ok(directory) => assert!(directory.users.iter().all(|user| user.user.as_str().len() <= 64)),
            Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
        }
    }
}
