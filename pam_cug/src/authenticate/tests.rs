use super::*;
use crate::{
    daemon::DaemonError,
    doubles::{Act, Asked, Line, ManualClock, ScriptDaemon, ScriptHost, ScriptReaders, TestCard, World, offer, user_a},
    edge::Clock,
};
use cug_proto::{
    local::{LOCAL_VERSION, Refusal, Reply},
    message::Purpose,
};
use nix::errno::Errno;
use std::{cell::RefCell, rc::Rc};

const PASSWORD: fn() -> Line = || Line::Prompt("Password: ", Ok("passwd1"));
const NOT_RIGHT: &str = "User ID, card or password is not right.";
const UNREACHABLE: &str = "The management server cannot be reached; please try again or ask the administrator.";
const TOO_LATE: &str = "The management server did not answer in time; please try again or ask the administrator.";
const CUGD_DEAD: &str = "The VPN service of this workstation does not answer; please tell the administrator (cugd).";

type Script = Vec<(Asked, Result<Reply, DaemonError>)>;

fn offered(purpose: Purpose, rest: impl IntoIterator<Item = (Asked, Reply)>) -> Script {
    let rest = rest.into_iter().map(|(asked, reply)| (asked, Ok(reply)));
    std::iter::once((Asked::Prepare, Ok(Reply::Offer(offer(purpose))))).chain(rest).collect()
}

fn cancelled() -> Script {
    offered(Purpose::Open, [(Asked::Cancel, Reply::Done)])
}

fn delivered() -> Script {
    offered(Purpose::Open, [(Asked::Deliver, Reply::Delivered(false))])
}

fn world(daemon: Script, card: Option<Result<TestCard, CardError>>, acts: &[Act]) -> World {
    World {
        daemon: ScriptDaemon::new(daemon),
        readers: ScriptReaders { card: RefCell::new(card), waits: false },
        acts: RefCell::new(acts.to_vec()),
        clock: ManualClock::default(),
    }
}

/// Runs a login with default options; the scripts assert the rest.
fn run(host: &mut ScriptHost, world: &World) -> PamResultCode {
    authenticate(host, &Options::default(), &world.parts())
}

fn fails(
    lines: Vec<Line>,
    daemon: Script,
    card: Option<Result<TestCard, CardError>>,
    acts: &[Act],
    code: PamResultCode,
) {
    let mut host = ScriptHost::new("USER-A", lines);
    assert_eq!(run(&mut host, &world(daemon, card, acts)), code);
    assert!(host.handed_on.is_none());
    assert!(!host.marker.as_ref().is_some_and(|marker| marker.result == Marked::Authenticated));
}

#[test]
fn whom_cugd_exempts_is_not_asked_for_a_card() {
    let mut exempting = offer(Purpose::Open);
    exempting.exempt = vec!["USER-A".into()];
    let script = vec![(Asked::Prepare, Ok(Reply::Offer(exempting))), (Asked::Cancel, Ok(Reply::Done))];
    let mut host = ScriptHost::new("USER-A", vec![]);
    assert_eq!(run(&mut host, &world(script, None, &[])), PamResultCode::PAM_IGNORE);
    assert!(host.marker.is_none());
}

#[test]
fn a_login() {
    let mut host = ScriptHost::new("USER-A", vec![Line::Info("Please insert your card."), PASSWORD()]);
    let mut world = world(delivered(), Some(Ok(TestCard::default())), &[Act::Grants]);
    world.readers.waits = true;
    assert_eq!(run(&mut host, &world), PamResultCode::PAM_SUCCESS);
    assert_eq!(host.handed_on.as_deref(), Some(b"passwd1".as_slice()));
    assert_eq!(host.marker, Some(Marker { user: user_a(), result: Marked::Authenticated }));
    assert!(host.log.iter().all(|(_, line)| !line.contains("passwd1")));
}

#[test]
fn a_check_of_somebody_who_is_in_already() {
    let daemon = offered(Purpose::Verify, [(Asked::Cancel, Reply::Done)]);
    let mut host = ScriptHost::new("USER-A", vec![PASSWORD()]);
    assert_eq!(
        run(&mut host, &world(daemon, Some(Ok(TestCard::default())), &[Act::Verifies])),
        PamResultCode::PAM_SUCCESS
    );
}

#[test]
fn exempt_users_and_remote_logins_touch_nothing() {
    let mut remote = ScriptHost::new("USER-A", vec![]);
    remote.remote = Some("10.0.0.9".into());
    for mut host in [ScriptHost::new("root", vec![]), remote] {
        assert_eq!(run(&mut host, &world(vec![], None, &[])), PamResultCode::PAM_IGNORE);
        assert!(host.marker.is_none());
    }
}

#[test]
fn names_that_no_member_can_have() {
    for name in ["", "a b", "-x", "ä", "../x"] {
        let mut host = ScriptHost::new(name, vec![Line::Error(NOT_RIGHT)]);
        assert_eq!(run(&mut host, &world(vec![], None, &[])), PamResultCode::PAM_USER_UNKNOWN);
    }
    let mut host = ScriptHost::new("", vec![Line::Error("No user ID was entered.")]);
    host.user = Err(PamResultCode::PAM_CONV_AGAIN);
    assert_eq!(run(&mut host, &world(vec![], None, &[])), PamResultCode::PAM_INCOMPLETE);
}

#[test]
fn without_the_daemon_there_is_no_login_and_nothing_else_is_asked() {
    for error in
        [DaemonError::Socket(Errno::ENOENT), DaemonError::Timeout, DaemonError::NotRoot(1000), DaemonError::Closed]
    {
        fails(
            vec![Line::Error(CUGD_DEAD)],
            vec![(Asked::Prepare, Err(error))],
            None,
            &[],
            PamResultCode::PAM_AUTHINFO_UNAVAIL,
        );
    }
    let strange = vec![(Asked::Prepare, Ok(Reply::Done))];
    fails(vec![Line::Error(CUGD_DEAD)], strange, None, &[], PamResultCode::PAM_AUTHINFO_UNAVAIL);
    let busy = vec![(Asked::Prepare, Ok(Reply::Refused(Refusal::Busy)))];
    let line = Line::Error("The VPN service is busy; try again.");
    fails(vec![line], busy, None, &[], PamResultCode::PAM_AUTHINFO_UNAVAIL);
}

#[test]
fn a_workstation_that_was_never_set_up_logs_in_as_ever() {
    let daemon = vec![(Asked::Prepare, Err(DaemonError::NotConfigured))];
    let mut host = ScriptHost::new("USER-A", vec![]);
    assert_eq!(run(&mut host, &world(daemon, None, &[])), PamResultCode::PAM_IGNORE, "without a word");
}

#[test]
fn trouble_with_the_card_cancels_the_offer() {
    let no_card = "No card was found; insert your card and try again.";
    fails(vec![Line::Error(no_card)], cancelled(), Some(Err(CardError::NoCard)), &[], PamResultCode::PAM_AUTH_ERR);
    let several = "Several cards are inserted; leave only your own and try again.";
    fails(
        vec![Line::Error(several)],
        cancelled(),
        Some(Err(CardError::SeveralCards)),
        &[],
        PamResultCode::PAM_AUTH_ERR,
    );
    let card = TestCard::failing(CardError::Removed);
    let removed = Line::Error("The card was removed; insert it and try again.");
    fails(vec![PASSWORD(), removed], cancelled(), Some(Ok(card)), &[Act::Grants], PamResultCode::PAM_AUTH_ERR);
}

#[test]
fn a_card_of_another_organisation_is_refused_before_anything_is_asked() {
    let mut foreign = offer(Purpose::Open);
    foreign.ca_pins = vec![[7; 32].into()];
    let daemon = vec![(Asked::Prepare, Ok(Reply::Offer(foreign))), (Asked::Cancel, Ok(Reply::Done))];
    let line = Line::Error("This card is not of this organisation.");
    fails(vec![line], daemon, Some(Ok(TestCard::default())), &[], PamResultCode::PAM_AUTH_ERR);
}

const WRONG: fn(u8) -> Result<(), CardError> = |left| Err(CardError::WrongPin { tries_left: Some(left) });

#[test]
fn a_pin_is_asked_for_again_but_the_last_try_is_left() {
    let pin = |pin| Line::Prompt("PIN: ", Ok(pin));
    let card = TestCard::with_pin(&[3, 2], vec![("1111", WRONG(2)), ("1234", Ok(()))]);
    let lines = vec![pin("1111"), Line::Error("Wrong PIN; 2 tries are left."), pin("1234"), PASSWORD()];
    let mut host = ScriptHost::new("USER-A", lines);
    assert_eq!(run(&mut host, &world(delivered(), Some(Ok(card)), &[Act::Grants])), PamResultCode::PAM_SUCCESS);

    let card = TestCard::with_pin(&[2], vec![("1111", WRONG(1))]);
    let lines = vec![pin("1111"), Line::Error("Wrong PIN; one try is left before the card blocks.")];
    fails(lines, cancelled(), Some(Ok(card)), &[], PamResultCode::PAM_AUTH_ERR);

    let card = TestCard::with_pin(&[1], vec![("1111", Err(CardError::PinBlocked))]);
    let lines = vec![
        Line::Info("One try is left before the card blocks."),
        pin("1111"),
        Line::Error("The PIN of this card is blocked; ask the administrator to unblock it."),
    ];
    fails(lines, cancelled(), Some(Ok(card)), &[], PamResultCode::PAM_MAXTRIES);
}

#[test]
fn a_pin_that_was_refused_is_not_sent_to_the_card_again() {
    let (pin, same) = (
        |pin| Line::Prompt("PIN: ", Ok(pin)),
        || Line::Error("That is the PIN that the card has just refused; please type the right one."),
    );
    let refused = || vec![pin("1111"), Line::Error("Wrong PIN; 2 tries are left."), pin("1111"), same()];
    let card = TestCard::with_pin(&[3, 2, 2], vec![("1111", WRONG(2)), ("1234", Ok(()))]);
    let mut host = ScriptHost::new("USER-A", refused().into_iter().chain([pin("1234"), PASSWORD()]).collect());
    assert_eq!(run(&mut host, &world(delivered(), Some(Ok(card)), &[Act::Grants])), PamResultCode::PAM_SUCCESS);

    let card = TestCard::with_pin(&[3, 2, 2], vec![("1111", WRONG(2))]);
    let lines = refused().into_iter().chain([pin("1111"), same()]).collect();
    fails(lines, cancelled(), Some(Ok(card)), &[], PamResultCode::PAM_AUTH_ERR);
}

#[test]
fn on_a_display_the_first_field_is_explained() {
    let card = TestCard::with_pin(&[3, 2], vec![("1111", WRONG(2)), ("1234", Ok(()))]);
    let lines = vec![
        Line::Info("First the PIN of your card, then your password."),
        Line::Prompt("PIN: ", Ok("1111")),
        Line::Error("Wrong PIN; 2 tries are left."),
        Line::Prompt("PIN: ", Ok("1234")),
        PASSWORD(),
    ];
    let mut host = ScriptHost::new("USER-A", lines);
    host.tty = ":0";
    assert_eq!(run(&mut host, &world(delivered(), Some(Ok(card)), &[Act::Grants])), PamResultCode::PAM_SUCCESS);
    assert!(!host.lingers);
    // What went wrong stays to be read; at a console it stays anyway.
    for tty in [":0", "tty1"] {
        let mut host = ScriptHost::new("", vec![Line::Error(NOT_RIGHT)]);
        host.tty = tty;
        run(&mut host, &world(vec![], None, &[]));
        assert_eq!(host.lingers, tty == ":0");
    }
    // A card without a PIN, as on all other hosts.
    let mut host = ScriptHost::new("USER-A", vec![PASSWORD()]);
    host.tty = ":0";
    let world = world(delivered(), Some(Ok(TestCard::default())), &[Act::Grants]);
    assert_eq!(run(&mut host, &world), PamResultCode::PAM_SUCCESS);
}

#[test]
fn a_conversation_that_fails_cancels_the_offer() {
    let line = || Line::Error("The password could not be asked for.");
    for (error, code) in [
        (PamResultCode::PAM_CONV_ERR, PamResultCode::PAM_AUTH_ERR),
        (PamResultCode::PAM_CONV_AGAIN, PamResultCode::PAM_INCOMPLETE),
    ] {
        let lines = vec![Line::Prompt("Password: ", Err(error)), line()];
        fails(lines, cancelled(), Some(Ok(TestCard::default())), &[Act::Grants], code);
    }
    let lines = vec![Line::Prompt("Password: ", Ok("")), Line::Error("No password was entered.")];
    fails(lines, cancelled(), Some(Ok(TestCard::default())), &[Act::Grants], PamResultCode::PAM_AUTH_ERR);
}

#[test]
fn trouble_with_the_server_cancels_the_offer() {
    let not_understood =
        "The management server gave an answer that was not understood; please try again, then tell the administrator.";
    let not_trusted = "The management server is not the one that this card trusts; please tell the administrator.";
    for (act, sentence) in [
        (Act::Unreachable, UNREACHABLE),
        (Act::NotTrusted, not_trusted),
        (Act::Hangs, TOO_LATE),
        (Act::HangsAtLogin, TOO_LATE),
        (Act::Busy, "The management server is busy; please try again in 30 seconds."),
        (Act::Babbles, not_understood),
        (Act::Verifies, not_understood),
    ] {
        let lines = vec![PASSWORD(), Line::Error(sentence)];
        fails(lines, cancelled(), Some(Ok(TestCard::default())), &[act], PamResultCode::PAM_AUTHINFO_UNAVAIL);
    }
}

#[test]
fn a_refusal_cancels_the_offer_and_is_remembered_for_the_account_phase() {
    use DenyReason::*;
    for (reason, code, kept) in [
        (WrongPassword, PamResultCode::PAM_AUTH_ERR, false),
        (TooManyAttempts(60), PamResultCode::PAM_MAXTRIES, false),
        (Disabled, PamResultCode::PAM_PERM_DENIED, true),
        (Expired, PamResultCode::PAM_ACCT_EXPIRED, true),
        (NoGroup, PamResultCode::PAM_PERM_DENIED, true),
    ] {
        let sentence = crate::failure::denied_sentence(&reason);
        let mut host = ScriptHost::new("USER-A", vec![PASSWORD(), Line::Error(Box::leak(sentence.into_boxed_str()))]);
        let world = world(cancelled(), Some(Ok(TestCard::default())), &[Act::Denies(reason)]);
        assert_eq!(run(&mut host, &world), code);
        let expected = if kept { Marked::Refused(reason) } else { Marked::Failed };
        assert_eq!(host.marker.as_ref().map(|marker| marker.result), Some(expected));
    }
}

#[test]
fn an_unknown_user_and_another_users_card_read_the_same() {
    // The card cannot open the decoy; the server must hear of it all the same.
    let card = TestCard::failing(CardError::NotForThisCard);
    let lines = vec![PASSWORD(), Line::Error(NOT_RIGHT)];
    fails(lines, cancelled(), Some(Ok(card)), &[Act::Rejects], PamResultCode::PAM_AUTH_ERR);
}

#[test]
fn a_grant_that_cannot_be_delivered_or_registered_is_cancelled() {
    let gone = [(Asked::Deliver, Reply::Refused(Refusal::CardGone)), (Asked::Cancel, Reply::Done)];
    let lines = vec![PASSWORD(), Line::Error("The card was removed; insert it and log in again.")];
    let card = || Some(Ok(TestCard::default()));
    fails(lines, offered(Purpose::Open, gone), card(), &[Act::Grants], PamResultCode::PAM_AUTH_ERR);

    for (act, sentence) in [(Act::ClosesAtAck, UNREACHABLE), (Act::HangsAtAck, TOO_LATE)] {
        let daemon = offered(Purpose::Open, [(Asked::Deliver, Reply::Delivered(false)), (Asked::Cancel, Reply::Done)]);
        fails(vec![PASSWORD(), Line::Error(sentence)], daemon, card(), &[act], PamResultCode::PAM_AUTHINFO_UNAVAIL);
    }

    let mut daemon = offered(Purpose::Open, []);
    daemon.push((Asked::Deliver, Err(DaemonError::Closed)));
    daemon.push((Asked::Cancel, Err(DaemonError::Socket(Errno::ECONNREFUSED))));
    fails(
        vec![PASSWORD(), Line::Error(CUGD_DEAD)],
        daemon,
        card(),
        &[Act::Grants],
        PamResultCode::PAM_AUTHINFO_UNAVAIL,
    );
}

#[test]
fn a_server_that_hung_up_while_the_person_typed_is_asked_once_more() {
    let card = TestCard::with_pin(&[3], vec![("1234", Ok(())), ("1234", Ok(()))]);
    let mut host = ScriptHost::new("USER-A", vec![Line::Prompt("PIN: ", Ok("1234")), PASSWORD()]);
    let acts = [Act::ClosesAtLogin, Act::Grants];
    assert_eq!(run(&mut host, &world(delivered(), Some(Ok(card)), &acts)), PamResultCode::PAM_SUCCESS);

    let lines = vec![PASSWORD(), Line::Error(UNREACHABLE)];
    let acts = [Act::ClosesAtLogin, Act::ClosesAtLogin];
    fails(lines, cancelled(), Some(Ok(TestCard::default())), &acts, PamResultCode::PAM_AUTHINFO_UNAVAIL);
}

#[test]
fn typing_costs_none_of_the_servers_time_and_waiting_is_limited_in_all() {
    for (act, code, sentence) in [
        (Act::Grants, PamResultCode::PAM_SUCCESS, None),
        (Act::HangsAtLogin, PamResultCode::PAM_AUTHINFO_UNAVAIL, Some(TOO_LATE)),
    ] {
        let daemon = if sentence.is_some() { cancelled() } else { delivered() };
        let world = Rc::new(world(daemon, Some(Ok(TestCard::default())), &[act]));
        let meanwhile = world.clone();
        let typing =
            Line::Slow("Password: ", "passwd1", Box::new(move || meanwhile.clock.advance(Duration::from_secs(90))));
        let mut host = ScriptHost::new("USER-A", std::iter::once(typing).chain(sentence.map(Line::Error)).collect());
        let begin = world.clock.now();
        assert_eq!(run(&mut host, &world), code);
        assert!(world.clock.now() - begin <= Duration::from_secs(95));
    }
}

#[test]
fn the_password_of_an_earlier_module() {
    let options = |word: &'static str| Options::parse(std::iter::once(word)).0;
    for (option, earlier, lines) in [
        ("use_first_pass", Some("passwd1"), vec![]),
        ("try_first_pass", Some("passwd1"), vec![]),
        ("try_first_pass", None, vec![PASSWORD()]),
        ("debug", Some("another"), vec![PASSWORD()]),
    ] {
        let mut host = ScriptHost::new("USER-A", lines);
        host.earlier = earlier;
        let world = world(delivered(), Some(Ok(TestCard::default())), &[Act::Grants]);
        assert_eq!(authenticate(&mut host, &options(option), &world.parts()), PamResultCode::PAM_SUCCESS, "{option}");
    }
    let sentence =
        "No earlier step of this login asked for the password; please tell the administrator (use_first_pass).";
    let mut host = ScriptHost::new("USER-A", vec![Line::Error(sentence)]);
    let code = authenticate(&mut host, &options("use_first_pass"), &world(vec![], None, &[]).parts());
    assert_eq!(code, PamResultCode::PAM_AUTHTOK_RECOVERY_ERR);
}

const AWAY: &str = "The management server cannot be reached; this workstation alone decides whether you may log in.";

/// An offer of a workstation with `offline = "local"`.
fn local(purpose: Purpose, version: u16) -> Reply {
    let mut offer = offer(purpose);
    (offer.offline_local, offer.version) = (true, version);
    Reply::Offer(offer)
}

#[test]
fn without_a_server_the_other_modules_decide_and_what_was_typed_is_kept_for_later() {
    for act in [Act::Unreachable, Act::Hangs, Act::HangsAtLogin, Act::Busy] {
        let daemon = vec![(Asked::Prepare, Ok(local(Purpose::Open, LOCAL_VERSION))), (Asked::Cancel, Ok(Reply::Done))];
        let card = TestCard::with_pin(&[3], vec![("1234", Ok(()))]);
        let lines = vec![Line::Prompt("PIN: ", Ok("1234")), PASSWORD(), Line::Info(AWAY)];
        let mut host = ScriptHost::new("USER-A", lines);
        assert_eq!(run(&mut host, &world(daemon, Some(Ok(card)), &[act])), PamResultCode::PAM_IGNORE, "{act:?}");
        assert_eq!(host.handed_on.as_deref(), Some(b"passwd1".as_slice()), "for try_first_pass");
        assert_eq!(host.marker.as_ref().map(|marker| marker.result), Some(Marked::Away));
        let later = host.later.take().expect("kept");
        assert_eq!(later.typed.password.expose(), b"passwd1");
        assert_eq!(later.typed.pin.as_ref().map(SecretBytes::expose), Some(b"1234".as_slice()));
        assert!(host.log.iter().all(|(_, line)| !line.contains("passwd1")));
    }
}

#[test]
fn what_is_no_absence_is_refused_in_any_case() {
    let wrong = crate::failure::denied_sentence(&DenyReason::WrongPassword);
    let not_trusted = "The management server is not the one that this card trusts; please tell the administrator.";
    for (act, sentence, code) in [
        (Act::Denies(DenyReason::WrongPassword), wrong, PamResultCode::PAM_AUTH_ERR),
        (Act::NotTrusted, not_trusted.to_owned(), PamResultCode::PAM_AUTHINFO_UNAVAIL),
        (Act::Rejects, NOT_RIGHT.to_owned(), PamResultCode::PAM_AUTH_ERR),
    ] {
        let card = if act == Act::Rejects { TestCard::failing(CardError::NotForThisCard) } else { TestCard::default() };
        let daemon = vec![(Asked::Prepare, Ok(local(Purpose::Open, LOCAL_VERSION))), (Asked::Cancel, Ok(Reply::Done))];
        fails(
            vec![PASSWORD(), Line::Error(Box::leak(sentence.into_boxed_str()))],
            daemon,
            Some(Ok(card)),
            &[act],
            code,
        );
    }
}

#[test]
fn a_check_without_a_server_keeps_nothing() {
    let daemon = vec![(Asked::Prepare, Ok(local(Purpose::Verify, LOCAL_VERSION))), (Asked::Cancel, Ok(Reply::Done))];
    let mut host = ScriptHost::new("USER-A", vec![PASSWORD(), Line::Info(AWAY)]);
    let world = world(daemon, Some(Ok(TestCard::default())), &[Act::Unreachable]);
    assert_eq!(run(&mut host, &world), PamResultCode::PAM_IGNORE);
    assert!(host.later.is_none());
}

#[test]
fn another_version_of_the_daemon_is_named_and_lets_exempt_users_in() {
    let sentence =
        "The login module and the VPN service are of different versions; ask the administrator to restart the service.";
    type Answers = fn() -> Script;
    let scripts: [Answers; 4] = [
        || vec![(Asked::Prepare, Ok(Reply::Refused(Refusal::Version)))],
        || vec![(Asked::Prepare, Ok(Reply::Refused(Refusal::Malformed)))],
        || vec![(Asked::Prepare, Err(DaemonError::Protocol(cug_proto::ProtocolError::Malformed)))],
        || vec![(Asked::Prepare, Ok(local(Purpose::Open, LOCAL_VERSION + 1))), (Asked::Cancel, Ok(Reply::Done))],
    ];
    for script in scripts {
        for (names, code) in [
            (Some(vec!["USER-A".to_owned()]), PamResultCode::PAM_IGNORE),
            (Some(vec!["porter".to_owned()]), PamResultCode::PAM_AUTHINFO_UNAVAIL),
            (None, PamResultCode::PAM_AUTHINFO_UNAVAIL),
        ] {
            let mut daemon = script();
            daemon.push((Asked::Exempt, names.map_or(Err(DaemonError::Closed), |names| Ok(Reply::Exempt(names)))));
            let lines = if code == PamResultCode::PAM_IGNORE { vec![] } else { vec![Line::Error(sentence)] };
            let mut host = ScriptHost::new("USER-A", lines);
            assert_eq!(run(&mut host, &world(daemon, None, &[])), code);
        }
    }
}
