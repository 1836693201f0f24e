use super::*;
use crate::{
    authenticate::authenticate,
    daemon::DaemonError,
    doubles::{Act, Asked, Line, ManualClock, ScriptDaemon, ScriptHost, ScriptReaders, TestCard, World, offer, user_a},
    host::Kept,
};
use cug_card::CardError;
use cug_proto::{
    local::{Refusal, Reply},
    password::PasswordProblem,
};
use nix::errno::Errno;
use std::cell::RefCell;

type Script = Vec<(Asked, Result<Reply, DaemonError>)>;

const PASSWD: Phase = Phase { preliminary: false, expired_only: false };
const EXPIRED: Phase = Phase { preliminary: false, expired_only: true };
const CHANGED: Line = Line::Info("Your password has been changed.");

fn offered(purpose: Purpose, then: Asked, reply: Reply) -> Script {
    vec![(Asked::Prepare, Ok(Reply::Offer(offer(purpose)))), (then, Ok(reply))]
}

fn cancelled() -> Script {
    offered(Purpose::Verify, Asked::Cancel, Reply::Done)
}

fn world(daemon: Script, card: Option<TestCard>, acts: &[Act]) -> World {
    World {
        daemon: ScriptDaemon::new(daemon),
        readers: ScriptReaders { card: RefCell::new(card.map(Ok::<_, CardError>)), waits: false },
        acts: RefCell::new(acts.to_vec()),
        clock: ManualClock::default(),
    }
}

fn ask(prompt: &'static str, answer: &'static str) -> Line {
    Line::Prompt(prompt, Ok(answer))
}

fn old() -> Line {
    ask("Current password: ", "passwd1")
}

fn twice(new: &'static str) -> [Line; 2] {
    [ask("New password: ", new), ask("New password once more: ", new)]
}

fn lines<const N: usize>(parts: [Vec<Line>; N]) -> Vec<Line> {
    parts.into_iter().flatten().collect()
}

fn run(host: &mut ScriptHost, world: &World, phase: Phase) -> PamResultCode {
    change(host, &Options::default(), &world.parts(), phase)
}

/// After a login that waits for a new password.
fn waiting(lines: Vec<Line>, pin: Option<&str>) -> ScriptHost {
    let secret = |text: &str| SecretBytes::copy_from(text.as_bytes()).unwrap();
    let mut host = ScriptHost::new("USER-A", lines);
    host.marker = Some(Marker { user: user_a(), result: Marked::MustChange });
    host.kept = Some(Kept { user: user_a(), password: secret("passwd1"), pin: pin.map(secret), card: [1; 32] });
    host
}

#[test]
fn a_member_changes_the_password() {
    let mut host = ScriptHost::new("USER-A", lines([vec![old()], twice("new one").into(), vec![CHANGED]]));
    let world = world(cancelled(), Some(TestCard::default()), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, PASSWD), PamResultCode::PAM_SUCCESS);
    assert_eq!(host.handed_on.as_deref(), Some(b"new one".as_slice()));
    assert!(host.marker.is_none(), "a change is no login");
    assert!(host.log.iter().all(|(_, line)| !line.contains("passwd1") && !line.contains("new one")));
}

#[test]
fn without_a_session_a_change_asks_for_none() {
    // cugd would take a grant, but `passwd` is no login.
    let mut host = ScriptHost::new("USER-A", lines([vec![old()], twice("new one").into(), vec![CHANGED]]));
    let daemon = offered(Purpose::Open, Asked::Cancel, Reply::Done);
    let world = world(daemon, Some(TestCard::default()), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, PASSWD), PamResultCode::PAM_SUCCESS);
}

#[test]
fn a_login_goes_on_once_the_password_is_changed() {
    let mut host = ScriptHost::new("USER-A", vec![ask("Password: ", "passwd1")]);
    let login = world(
        offered(Purpose::Open, Asked::Cancel, Reply::Done),
        Some(TestCard::default()),
        &[Act::Denies(DenyReason::MustChangePassword)],
    );
    assert_eq!(authenticate(&mut host, &Options::default(), &login.parts()), PamResultCode::PAM_SUCCESS);
    assert_eq!(host.marker, Some(Marker { user: user_a(), result: Marked::MustChange }));
    assert!(host.kept.is_some());
    drop(host);

    let mut host = waiting(lines([twice("new one").into(), vec![CHANGED]]), Some("123456"));
    let daemon = offered(Purpose::Open, Asked::Deliver, Reply::Delivered(false));
    // The PIN is not asked for again: it is still the same card.
    let card = TestCard::with_pin(&[], vec![("123456", Ok(()))]);
    let world = world(daemon, Some(card), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, EXPIRED), PamResultCode::PAM_SUCCESS);
    assert_eq!(host.marker, Some(Marker { user: user_a(), result: Marked::Authenticated }));
    assert!(host.kept.is_none(), "what was typed is used up");
}

#[test]
fn a_check_goes_on_without_a_session() {
    let mut host = waiting(lines([twice("new one").into(), vec![CHANGED]]), None);
    let world = world(cancelled(), Some(TestCard::default()), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, EXPIRED), PamResultCode::PAM_SUCCESS);
    assert_eq!(host.marker, Some(Marker { user: user_a(), result: Marked::Authenticated }));
}

#[test]
fn another_card_is_asked_for_its_own_pin() {
    let mut host =
        waiting(lines([vec![ask("PIN: ", "654321")], twice("new one").into(), vec![CHANGED]]), Some("123456"));
    host.kept.as_mut().unwrap().card = [2; 32];
    let card = TestCard::with_pin(&[3], vec![("654321", Ok(()))]);
    let world = world(cancelled(), Some(card), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, EXPIRED), PamResultCode::PAM_SUCCESS);
}

#[test]
fn what_was_kept_for_another_user_is_not_used() {
    let mut host = waiting(lines([vec![old()], twice("new one").into(), vec![CHANGED]]), None);
    host.kept.as_mut().unwrap().user = "USER-B".parse().unwrap();
    let world = world(cancelled(), Some(TestCard::default()), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, EXPIRED), PamResultCode::PAM_SUCCESS);
}

#[test]
fn a_broken_rule_is_told_and_asked_again_within_bounds() {
    let short = || Line::Error("The new password is too short: it needs at least 8 characters.");
    let differs = Line::Error("The new password was not typed twice the same; the old one stays.");
    let mut host = ScriptHost::new(
        "USER-A",
        lines([
            vec![ask("PIN: ", "123456"), old()],
            twice("short").into(),
            vec![short(), ask("New password: ", "one"), ask("New password once more: ", "other"), differs],
            twice("new one").into(),
            vec![CHANGED],
        ]),
    );
    let acts = [Act::RefusesNew("short", PasswordProblem::TooShort(8)), Act::Changes("new one")];
    let card = TestCard::with_pin(&[3], vec![("123456", Ok(())), ("123456", Ok(()))]);
    assert_eq!(run(&mut host, &world(cancelled(), Some(card), &acts), PASSWD), PamResultCode::PAM_SUCCESS);

    let round = || lines([twice("short").into(), vec![short()]]);
    let mut host = ScriptHost::new("USER-A", lines([vec![old()], round(), round(), round()]));
    let acts = [Act::RefusesNew("short", PasswordProblem::TooShort(8)); 3];
    let world = world(cancelled(), Some(TestCard::default()), &acts);
    assert_eq!(run(&mut host, &world, PASSWD), PamResultCode::PAM_AUTHTOK_ERR);
    assert!(host.handed_on.is_none());
}

#[test]
fn a_wrong_old_password_or_a_refused_account_ends_it() {
    for (reason, said, code) in [
        (DenyReason::WrongPassword, "The password is not right; please try again.", PamResultCode::PAM_AUTHTOK_ERR),
        (
            DenyReason::Disabled,
            "This account is disabled; please ask the administrator.",
            PamResultCode::PAM_PERM_DENIED,
        ),
        (
            DenyReason::Expired,
            "This account has expired; please ask the administrator.",
            PamResultCode::PAM_PERM_DENIED,
        ),
    ] {
        let mut host =
            ScriptHost::new("USER-A", lines([vec![old()], twice("new one").into(), vec![Line::Error(said)]]));
        let world = world(cancelled(), Some(TestCard::default()), &[Act::Denies(reason)]);
        assert_eq!(run(&mut host, &world, PASSWD), code);
    }
}

#[test]
fn a_new_password_is_never_sent_twice() {
    let unsure = "The management server did not answer in time: try the new password first, and if it is not right, the old one.";
    for act in [Act::ClosesAtLogin, Act::HangsAtLogin] {
        let mut host =
            ScriptHost::new("USER-A", lines([vec![old()], twice("new one").into(), vec![Line::Error(unsure)]]));
        let world = world(cancelled(), Some(TestCard::default()), &[act]);
        assert_eq!(run(&mut host, &world, PASSWD), PamResultCode::PAM_AUTHTOK_ERR);
    }
}

#[test]
fn whose_business_it_is_not() {
    let untouched = || world(vec![], None, &[]);
    let preliminary = Phase { preliminary: true, ..PASSWD };
    for phase in [PASSWD, EXPIRED, preliminary] {
        for name in ["root", "not a member"] {
            let mut host = ScriptHost::new(name, vec![]);
            assert_eq!(run(&mut host, &untouched(), phase), PamResultCode::PAM_IGNORE, "{name}");
        }
        let mut remote = ScriptHost::new("USER-A", vec![]);
        remote.remote = Some("10.0.0.9".into());
        assert_eq!(run(&mut remote, &untouched(), phase), PamResultCode::PAM_IGNORE);
    }
    // Only expired ones are to be changed, and this one has not.
    for result in [None, Some(Marked::Authenticated), Some(Marked::Failed)] {
        let mut host = ScriptHost::new("USER-A", vec![]);
        host.marker = result.map(|result| Marker { user: user_a(), result });
        assert_eq!(run(&mut host, &untouched(), EXPIRED), PamResultCode::PAM_IGNORE);
    }
    let mut host = ScriptHost::new("USER-A", vec![]);
    host.marker = Some(Marker { user: "USER-B".parse().unwrap(), result: Marked::MustChange });
    assert_eq!(run(&mut host, &untouched(), EXPIRED), PamResultCode::PAM_IGNORE);
}

#[test]
fn root_sets_passwords_of_this_workstation_whatever_is_broken() {
    let told =
        "This sets a password for this workstation only; the one at the management server is changed by its owner.";
    for (phase, lines) in [(Phase { preliminary: true, ..PASSWD }, vec![]), (PASSWD, vec![Line::Info(told)])] {
        let mut host = ScriptHost::new("USER-A", lines);
        host.started_by_root = true;
        assert_eq!(run(&mut host, &world(vec![], None, &[]), phase), PamResultCode::PAM_IGNORE);
    }
    // A login program is started by root too, and asks for an expired one.
    let mut host = waiting(lines([twice("new one").into(), vec![CHANGED]]), None);
    host.started_by_root = true;
    let world = world(cancelled(), Some(TestCard::default()), &[Act::Changes("new one")]);
    assert_eq!(run(&mut host, &world, EXPIRED), PamResultCode::PAM_SUCCESS);
}

#[test]
fn others_are_asked_for_modules_that_do_not_ask() {
    let options = Options::parse(["exempt=porter", "ask_others"].into_iter()).0;
    let retype = |new, again| vec![ask("New password: ", new), ask("Retype new password: ", again)];
    let differs = || vec![Line::Error("The new password was not typed twice the same.")];
    let mut host = ScriptHost::new("porter", lines([retype("one", "other"), differs(), retype("one", "one")]));
    let nobody = world(vec![], None, &[]);
    assert_eq!(change(&mut host, &options, &nobody.parts(), PASSWD), PamResultCode::PAM_IGNORE);
    assert_eq!(host.handed_on.as_deref(), Some(b"one".as_slice()));
    // Not in the preliminary check, not for ever, and not where the person does not answer.
    let mut host = ScriptHost::new("porter", vec![]);
    let preliminary = Phase { preliminary: true, ..PASSWD };
    assert_eq!(change(&mut host, &options, &nobody.parts(), preliminary), PamResultCode::PAM_IGNORE);
    let round = || lines([retype("one", "other"), differs()]);
    let silent = vec![Line::Prompt("New password: ", Err(PamResultCode::PAM_CONV_ERR))];
    for script in [lines([round(), round(), round()]), silent] {
        let mut host = ScriptHost::new("porter", script);
        assert_eq!(change(&mut host, &options, &nobody.parts(), PASSWD), PamResultCode::PAM_IGNORE);
        assert!(host.handed_on.is_none());
    }
}

#[test]
fn the_preliminary_check_asks_cugd_and_nobody_else() {
    let preliminary = Phase { preliminary: true, ..PASSWD };
    let mut host = ScriptHost::new("USER-A", vec![]);
    assert_eq!(run(&mut host, &world(cancelled(), None, &[]), preliminary), PamResultCode::PAM_SUCCESS);
    let dead = "The VPN service of this workstation does not answer; please tell the administrator (cugd).";
    let busy = "The VPN service is busy; try again.";
    for (answer, said) in [(Err(DaemonError::Socket(Errno::ENOENT)), dead), (Ok(Reply::Refused(Refusal::Busy)), busy)] {
        let mut host = ScriptHost::new("USER-A", vec![Line::Error(said)]);
        let world = world(vec![(Asked::Prepare, answer)], None, &[]);
        assert_eq!(run(&mut host, &world, preliminary), PamResultCode::PAM_TRY_AGAIN);
    }
}

#[test]
fn a_workstation_that_was_never_set_up_changes_passwords_as_ever() {
    for phase in [Phase { preliminary: true, ..PASSWD }, PASSWD] {
        let mut host = ScriptHost::new("USER-A", vec![]);
        let world = world(vec![(Asked::Prepare, Err(DaemonError::NotConfigured))], None, &[]);
        assert_eq!(run(&mut host, &world, phase), PamResultCode::PAM_IGNORE);
    }
}

#[test]
fn earlier_modules_may_have_asked() {
    let options = Options::parse(["use_authtok"].into_iter()).0;
    let mut host = ScriptHost::new("USER-A", vec![CHANGED]);
    (host.old, host.earlier) = (Some("passwd1"), Some("new one"));
    let world_of = |acts: &[Act]| world(cancelled(), Some(TestCard::default()), acts);
    let taken = world_of(&[Act::Changes("new one")]);
    assert_eq!(change(&mut host, &options, &taken.parts(), PASSWD), PamResultCode::PAM_SUCCESS);
    // Nothing can be asked again.
    let common = "The new password is one that many people use; choose one that nobody would guess.";
    let mut host = ScriptHost::new("USER-A", vec![Line::Error(common)]);
    (host.old, host.earlier) = (Some("passwd1"), Some("new one"));
    let refused = world_of(&[Act::RefusesNew("new one", PasswordProblem::Common)]);
    assert_eq!(change(&mut host, &options, &refused.parts(), PASSWD), PamResultCode::PAM_AUTHTOK_ERR);
    let none = "No earlier step asked for the new password; please tell the administrator (use_authtok).";
    let mut host = ScriptHost::new("USER-A", vec![Line::Error(none)]);
    host.old = Some("passwd1");
    assert_eq!(change(&mut host, &options, &world_of(&[]).parts(), PASSWD), PamResultCode::PAM_AUTHTOK_ERR);
}
