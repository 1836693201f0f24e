//! The daemon's loop with its real socket, its real session channel (TLS over loopback) and a real watch of a medium. Only WireGuard is a
//! double here: it has tests of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod bench;
mod server;

use bench::{Bench, Client, as_nobody, group, open, prepare, refused};
use cug_proto::{
    frame::{self, MAX_LOGIN},
    local::{Refusal, Reply, Request},
    message::{ClearReason, ClientMessage, EndReason, GroupGrant, KeyAck, MAX_GROUPS, Purpose, ServerMessage},
    policy::{MAX_ALLOW, Policy},
};

#[test]
fn log_in_rotate_and_log_out() {
    let bench = Bench::start();
    let mut pam = bench.client();
    let offer = match pam.ask(&prepare("USER-A")) {
        Reply::Offer(offer) => offer,
        _ => panic!("no offer"),
    };
    assert_eq!((offer.purpose, offer.servers.len()), (Purpose::Open, 1));
    assert!(matches!(pam.ask(&bench.deliver(offer.id)), Reply::Delivered(false)));
    let Reply::Opened(opened) = pam.ask(&open("USER-A")) else { panic!("not opened") };
    assert_eq!(opened.groups[0].address4.to_string(), "100.96.1.1");
    // Told before the login goes on: whoever is pinged now knows the way back.
    bench.server.expect(|message| matches!(message, ClientMessage::Endpoints(e) if e.ports.len() == 1));
    bench.tunnels.expect("up 1");

    let Reply::Status(status) = pam.ask(&Request::Status) else { panic!("no status") };
    assert_eq!((status.sessions[0].state.as_str(), status.sessions[0].attached), ("up", true));
    let Reply::Peers(peers) = pam.ask(&Request::Peers) else { panic!("no peers") };
    assert_eq!(peers[0].peers[0].user.as_str(), "USER-B");

    bench.server.seal(group(1, 2));
    bench.server.expect(|message| matches!(message, ClientMessage::KeyAck(KeyAck { group: 1, epoch: 2 })));
    bench.server.send(ServerMessage::Activate(KeyAck { group: 1, epoch: 2 }));
    bench.tunnels.expect("rekey 1");

    let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
    assert_eq!(offer.purpose, Purpose::Verify, "sudo");

    assert!(matches!(pam.ask(&Request::Close("USER-A".parse().unwrap())), Reply::Done));
    bench.tunnels.expect("down");
    bench.server.expect(|message| matches!(message, ClientMessage::Clear(ClearReason::LoggedOut)));
    let Reply::Status(status) = pam.ask(&Request::Status) else { panic!("no status") };
    assert!(status.sessions.is_empty());
}

#[test]
fn the_medium_is_pulled() {
    let bench = Bench::start();
    let mut pam = bench.client();
    bench.log_in(&mut pam);
    bench.pull_medium();
    bench.tunnels.expect("down");
    bench.server.expect(|message| matches!(message, ClientMessage::Clear(ClearReason::CardRemoved)));
    bench.until(&mut pam, |session| session.state == "suspended" && session.os_sessions == 1);
}

#[test]
fn a_medium_that_is_not_there_is_refused() {
    let bench = Bench::start();
    let mut pam = bench.client();
    let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
    bench.pull_medium();
    assert_eq!(refused(pam.ask(&bench.deliver(offer.id))), Refusal::CardGone);
    assert_eq!(refused(pam.ask(&open("USER-A"))), Refusal::CardGone);
}

#[test]
fn the_channel_comes_back_by_itself() {
    let bench = Bench::start();
    let mut pam = bench.client();
    bench.log_in(&mut pam);
    assert!(bench.server.known().is_empty());
    bench.server.cut();
    bench.until(&mut pam, |session| session.state == "up" && !session.attached);
    bench.until(&mut pam, |session| session.state == "up" && session.attached);
    assert_eq!(bench.server.known(), [(1, 1, 1)], "it asks for changes only");
    bench.tunnels.never("down");
}

#[test]
fn the_server_ends_the_session() {
    let bench = Bench::start();
    let mut pam = bench.client();
    bench.log_in(&mut pam);
    bench.server.send(ServerMessage::End(EndReason::Administrator));
    bench.tunnels.expect("down");
    bench.until(&mut pam, |session| session.state == "suspended");
}

#[test]
fn a_server_without_the_session_secret_is_not_believed() {
    let bench = Bench::start();
    bench.server.forget();
    let mut pam = bench.client();
    let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
    assert!(matches!(pam.ask(&bench.deliver(offer.id)), Reply::Delivered(false)));
    assert_eq!(refused(pam.ask(&open("USER-A"))), Refusal::ServerAway);
    bench.tunnels.expect("down");
}

#[test]
fn a_card_of_another_organisation_does_not_count() {
    let bench = Bench::start();
    let mut pam = bench.client();
    let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
    let Request::Deliver(mut deliver) = bench.deliver(offer.id) else { panic!("no grant") };
    deliver.ca_pin = [2; 32];
    assert_eq!(refused(pam.ask(&Request::Deliver(deliver))), Refusal::ForeignCard);
    assert!(matches!(pam.ask(&open("USER-A")), Reply::NoGrant));
    bench.server.nothing();
}

/// This workstation trusts two CAs; the card names the one that is not the server's.
#[test]
fn another_cas_server_is_not_spoken_to() {
    let bench = Bench::start();
    let mut pam = bench.client();
    let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
    let Request::Deliver(mut deliver) = bench.deliver(offer.id) else { panic!("no grant") };
    deliver.ca_pin = [1; 32];
    assert!(matches!(pam.ask(&Request::Deliver(deliver)), Reply::Delivered(false)));
    assert_eq!(refused(pam.ask(&open("USER-A"))), Refusal::ServerAway);
    bench.server.nothing();
}

#[test]
fn others_than_root_may_only_look() {
    let bench = Bench::start();
    let mut pam = bench.client();
    bench.log_in(&mut pam);
    let path = bench.socket.clone();
    as_nobody(move || {
        for request in [prepare("USER-A"), open("USER-A"), Request::Close("USER-A".parse().unwrap())] {
            let mut client = Client::connect(&path);
            assert_eq!(refused(client.ask(&request)), Refusal::NotPermitted);
            assert!(client.is_closed());
        }
        // Of offers only one's own are known.
        assert!(matches!(Client::connect(&path).ask(&Request::Cancel([0; 16])), Reply::Done));
        let Reply::Status(status) = Client::connect(&path).ask(&Request::Status) else { panic!("no status") };
        assert!(status.sessions.is_empty(), "another user's session");
        let mut crowd: Vec<Client> = (0..8).map(|_| Client::connect(&path)).collect();
        assert!(crowd.iter_mut().all(|client| matches!(client.ask(&Request::Status), Reply::Status(_))));
        assert!(Client::connect(&path).is_closed(), "a ninth");
    });
    assert!(matches!(bench.client().ask(&Request::Status), Reply::Status(_)), "root is not hindered");
}

#[test]
fn noise_on_the_socket_harms_nobody() {
    let bench = Bench::start();
    let mut pam = bench.client();
    bench.log_in(&mut pam);
    let good = frame::encode(&prepare("USER-B"), MAX_LOGIN).unwrap();
    for seed in 0..400usize {
        let mut noise = good.to_vec();
        match seed % 4 {
            0 => noise.truncate(seed % good.len()),
            1 => noise.iter_mut().skip(4).for_each(|byte| *byte ^= (seed as u8).wrapping_mul(31)),
            2 => noise[..4].copy_from_slice(&(seed as u32 * 40_000 + 16_385).to_be_bytes()),
            _ => noise[4 + seed % (good.len() - 4)] ^= 1 << (seed % 8),
        }
        let mut client = bench.client();
        client.send_raw(&noise);
        client.finish();
        // Either an answer or the end of the connection, in bounded time.
        client.drain();
    }
    let mut client = bench.client();
    client.send_raw(&[0, 0, 0, 1, 0xff]);
    assert_eq!(refused(client.receive()), Refusal::Malformed);
    assert!(client.is_closed());
    bench.until(&mut pam, |session| session.state == "up");
    bench.tunnels.never("down");
}

/// A user in as many groups as there may be, each with as many exceptions as there may be. Only root may send so much.
#[test]
fn the_largest_grant_is_taken_and_a_strangers_large_frame_is_not() {
    let bench = Bench::start();
    let mut pam = bench.client();
    let Reply::Offer(offer) = pam.ask(&prepare("USER-A")) else { panic!("no offer") };
    let Request::Deliver(mut deliver) = bench.deliver(offer.id) else { panic!("no grant") };
    let allow: Vec<_> = (0..MAX_ALLOW).map(|i| format!("[2001:db8::{i:x}]:65535").parse().unwrap()).collect();
    deliver.grant.groups = (1..=u32::try_from(MAX_GROUPS).unwrap())
        .map(|id| GroupGrant { policy: Policy::Closed(allow.clone()), ..group(id, 1) })
        .collect();
    let request = Request::Deliver(deliver);
    assert!(frame::encode(&request, MAX_LOGIN).is_err(), "small enough for anybody");
    assert!(matches!(pam.ask(&request), Reply::Delivered(false)));

    let path = bench.socket.clone();
    as_nobody(move || {
        let mut client = Client::connect(&path);
        client.send_raw(&u32::try_from(MAX_LOGIN + 1).unwrap().to_be_bytes());
        assert_eq!(refused(client.receive()), Refusal::Malformed, "refused by its header");
        assert!(client.is_closed());
    });
}

#[test]
fn a_stop_takes_everything_down() {
    let bench = Bench::start();
    let mut pam = bench.client();
    bench.log_in(&mut pam);
    bench.stop();
    bench.tunnels.expect("down");
    bench.server.expect(|message| matches!(message, ClientMessage::Clear(ClearReason::TerminalStopped)));
    bench.ended();
}
