use super::*;
use crate::clock;
use rustls::{ClientConnection, ServerConnection};

fn state(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("cug-keys-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn handshake(server: Arc<ServerConfig>, pin: trust::CaPin) -> Result<ClientConnection, rustls::Error> {
    let mut client = ClientConnection::new(Arc::new(trust::client_config(pin)?), trust::server_name())?;
    let mut server = ServerConnection::new(server)?;
    let mut wire = vec![];
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(client)
}

#[test]
fn a_card_finds_the_server_through_the_server_object() {
    let dir = state("trust");
    let now = clock::unix_now();
    create(&dir, "Test", now).unwrap();
    assert!(matches!(create(&dir, "Test", now), Err(KeyError::Initialised(_))));
    let keys = Keys::load(&dir).unwrap();
    let object = trust::ServerObject::parse(keys.server_object()).unwrap();
    assert_eq!(*object.ca_pin(), trust::spki_sha256(keys.ca()).unwrap());
    assert_eq!(object.envelope_key().key_id(), keys.envelope_id());
    assert!(keys.server_object().len() <= trust::MAX_SERVER_OBJECT);

    let client = handshake(keys.tls_config(now).unwrap(), *object.ca_pin()).unwrap();
    assert_eq!(client.alpn_protocol(), Some(trust::ALPN));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert!(handshake(keys.tls_config(now).unwrap(), [0; 32]).is_err(), "another organisation's card");

    // Renewal keeps the trust of the cards.
    let before = std::fs::read(dir.join("keys/tls.pem")).unwrap();
    keys.tls_config(now + 200 * 86_400).unwrap();
    assert_eq!(std::fs::read(dir.join("keys/tls.pem")).unwrap(), before, "two thirds of a year are not over");
    let renewed = keys.tls_config(now + 250 * 86_400).unwrap();
    assert_ne!(std::fs::read(dir.join("keys/tls.pem")).unwrap(), before);
    drop(renewed);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_decoy_depends_on_the_card_only_and_has_a_size_in_use() {
    use rsa::{RsaPublicKey, pkcs8::DecodePublicKey, traits::PublicKeyParts};
    let dir = state("decoy");
    create(&dir, "Test", clock::unix_now()).unwrap();
    let keys = Keys::load(&dir).unwrap();
    let bits = |card: u8, in_use| {
        RsaPublicKey::from_public_key_der(keys.decoys().choose(&[card; 32], in_use)).unwrap().size() * 8
    };
    assert!((0..50).all(|card| bits(card, [false, true, false]) == 3072));
    assert!((0..50).all(|card| bits(card, [false; 3]) == 2048));
    let mixed: std::collections::BTreeSet<_> = (0..50).map(|card| bits(card, [true, false, true])).collect();
    assert_eq!(mixed.into_iter().collect::<Vec<_>>(), [2048, 4096]);
    assert!((0..50).all(|card| bits(card, [true; 3]) == bits(card, [true; 3])));
    std::fs::remove_dir_all(&dir).unwrap();
}
