//! B1: one login at a terminal, beside password and card login as distributions have it. B1f: the same beside what cannot be left out.

use super::floor::Floor;
use super::pkcs11;
use super::{DAY, Scale, written_at};
use anyhow::Context;
use cug_cards::Exchange;
use cug_load::figures::{Report, Row, Sample};
use cug_tests::card::PivCard;
use cug_tests::login::{Login, Script};
use cug_tests::server::ServerHost;
use cug_tests::terminal::Terminal;
use cug_tests::world::World;
use std::fs;
use std::time::Duration;

/// For anything at all.
const LIMIT: Duration = Duration::from_secs(20);

/// Who logs in, by both ways, and with the same password.
const USER: &str = "USER-A";

/// The password of both.
const PASSWORD: &str = "passwd1";

/// Logins by each way at full size, and how often the floor's parts are measured in each turn.
const LOGINS: usize = 50;
const PARTS: usize = 10;

/// Logins and the floor take turns so many times.
const TURNS: usize = 5;

/// Where the server tells how long it takes.
const METRICS: &str = "metrics.listen = \"127.0.0.1:9464\"\n";

/// Asks there.
const ASK: &str = "exec 3<>/dev/tcp/127.0.0.1/9464; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";

/// One way to log in, measured many times.
#[derive(Default)]
struct Way {
    /// From the first call to the session being open, in milliseconds.
    whole: Vec<f64>,
    /// Up to the end of `pam_authenticate`.
    authenticated: Vec<f64>,
    /// Up to the first question.
    asked: Vec<f64>,
    apdus: Vec<f64>,
    operations: Vec<f64>,
}

impl Way {
    fn note(&mut self, login: &Login, exchanges: &[Exchange]) -> anyhow::Result<()> {
        let events = login.events();
        let at = |wanted: &dyn Fn(&cug_tests::login::Event) -> bool| {
            events.iter().find(|event| wanted(event)).map_or(f64::NAN, |event| event.ms)
        };
        self.whole.push(at(&|event| event.step.as_deref() == Some("open_session")));
        self.authenticated.push(at(&|event| event.step.as_deref() == Some("authenticate")));
        self.asked.push(at(&|event| event.event == "prompt"));
        self.apdus.push(exchanges.len() as f64);
        self.operations.push(exchanges.iter().filter(|exchange| is_private(&exchange.command)).count() as f64);
        Ok(())
    }

    fn keep(&self, name: &str, report: &mut Report) {
        for (what, values) in [
            ("whole", &self.whole),
            ("until authenticated", &self.authenticated),
            ("until the first question", &self.asked),
        ] {
            report.keep(format!("B1 {name}: {what}"), &sample(values));
        }
    }

    fn card_work(&self) -> String {
        let (apdus, operations) = (sample(&self.apdus), sample(&self.operations));
        format!("{:.0} APDUs, {:.0} private-key operations", apdus.median(), operations.median())
    }
}

/// What the daemon's log says of each opening of a session, in milliseconds: from the request to the interface with its guard, and from there until
/// the server has heard of it.
#[derive(Default)]
struct Openings {
    up: Vec<f64>,
    told: Vec<f64>,
}

impl Openings {
    fn of(log: &str) -> Self {
        let mut all = Self::default();
        let (mut asked, mut up) = (None, None);
        let since = |from: f64, at: f64| (at - from).rem_euclid(DAY) * 1e3;
        for (line, at) in log.lines().filter_map(|line| Some((line, written_at(line)?))) {
            if line.contains(" opens an OS session ") {
                asked = Some(at);
            } else if line.contains(" interface up ") {
                all.up.extend(asked.take().map(|asked| since(asked, at)));
                up = Some(at);
            } else if line.contains(" is open") {
                all.told.extend(up.take().map(|up| since(up, at)));
            }
        }
        all
    }
}

/// The server's answers to `Login`: how many, and their time in seconds.
fn answers(server: &ServerHost) -> anyhow::Result<(f64, f64)> {
    let text = server.space().run("bash", &["-c", ASK])?.ok()?;
    let figure =
        |name: &str| -> Option<f64> { text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()) };
    let answers = figure("cug_login_duration_seconds_count").zip(figure("cug_login_duration_seconds_sum"));
    answers.with_context(|| format!("the server does not tell how long logins take:\n{text}"))
}

fn sample(values: &[f64]) -> Sample {
    values.iter().copied().collect()
}

/// The last part of GENERAL AUTHENTICATE with one of the four keys of a PIV card.
fn is_private(command: &[u8]) -> bool {
    matches!(command, [0x00, 0x87, _, 0x9A | 0x9C | 0x9D | 0x9E, ..])
}

/// The desk where both are tried: one reader, one card.
struct Desk<'a> {
    terminal: &'a Terminal,
    card: Option<PivCard>,
}

impl Desk<'_> {
    /// The card goes in, a login and its end, and the card comes out: no way finds it unlocked by the other.
    fn round(&mut self, script: Script, way: &mut Way) -> anyhow::Result<()> {
        let reader = self.terminal.insert(self.card.take().context("no card")?)?;
        let mut login = self.terminal.login(&script)?;
        login.open()?;
        way.note(&login, &reader.control().apdu_log())?;
        login.close()?;
        self.terminal.wait_clean(LIMIT)?;
        self.card = Some(reader.pull());
        Ok(())
    }
}

/// In turn, on one card in one reader.
pub(super) fn run(scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let logs = super::logs("login")?;
    let world = World::with_config(&logs, 1, METRICS)?;
    let terminal = world.terminal(1);
    let card = pkcs11::prepare(terminal, USER, PASSWORD)?;
    let card = world.issue(PivCard::from_own(card), USER, &["--generate"])?;
    let mut desk = Desk { terminal, card: Some(card) };
    let (our_script, their_script) =
        (|| Script::new(USER).password(PASSWORD), || Script::new(USER).password(PASSWORD).service(pkcs11::SERVICE));
    // The first ones find nothing in memory.
    desk.round(our_script(), &mut Way::default())?;
    desk.round(their_script(), &mut Way::default())?;
    let (mut ours, mut theirs) = (Way::default(), Way::default());
    let (mut floor, mut cold) = (Floor::new(false), Floor::new(true));
    let (mut turns, mut answered) = (Vec::new(), (0.0, 0.0));
    let in_a_turn = scale.of(LOGINS).div_ceil(TURNS);
    for _ in 0..TURNS {
        let (before, first) = (answers(&world.server)?, ours.whole.len());
        for _ in 0..in_a_turn {
            desk.round(our_script(), &mut ours)?;
            desk.round(their_script(), &mut theirs)?;
        }
        let after = answers(&world.server)?;
        answered = (answered.0 + after.0 - before.0, answered.1 + after.1 - before.1);
        turns.push(sample(&ours.whole[first..]));
        let reader = terminal.insert(desk.card.take().context("no card")?)?;
        floor.measure(terminal, scale.of(PARTS))?;
        cold.measure(terminal, scale.of(PARTS))?;
        desk.card = Some(reader.pull());
    }
    tell(&ours, &theirs, report);
    tell_of_floor(&ours, &turns, [&floor, &cold], report);
    let answer = answered.1 / answered.0 * 1e3;
    beside_the_floor(&ours, answer, &Openings::of(&terminal.cugd_log()), &floor, report);
    drop(world);
    fs::remove_dir_all(logs).ok();
    Ok(())
}

fn tell(ours: &Way, theirs: &Way, report: &mut Report) {
    ours.keep("pam_cug", report);
    theirs.keep("pam_unix and pam_pkcs11", report);
    let (whole, beside) = (sample(&ours.whole), sample(&theirs.whole));
    let ratio = whole.median() / beside.median();
    report.row(Row {
        bench: "B1",
        what: format!("a login with PIN and password, until the session is open ({} times, in turn)", whole.len()),
        figure: format!(
            "median {:.1} ms, p99 {:.1} ms, tunnel included ({:.1} ms until the first question, {:.1} until authenticated)",
            whole.median(),
            whole.p99(),
            sample(&ours.asked).median(),
            sample(&ours.authenticated).median(),
        ),
        beside: format!(
            "pam_unix (yescrypt) and pam_pkcs11 (OpenSC): median {:.1} ms, p99 {:.1} ms",
            beside.median(),
            beside.p99()
        ),
        ratio: Some(ratio),
        aim: "<= 0.6 of it".into(),
        reached: Some(ratio <= 0.6),
    });
    let (apdus, operations) = (sample(&ours.apdus).quantile(1.0), sample(&ours.operations));
    report.row(Row {
        bench: "B1",
        what: "what a login asks of the card (RSA-2048, PIN)".into(),
        figure: ours.card_work(),
        beside: format!("pam_pkcs11: {}", theirs.card_work()),
        ratio: Some(apdus / sample(&theirs.apdus).median()),
        aim: "1 private-key operation, <= 8 APDUs".into(),
        reached: Some(apdus <= 8.0 && operations.quantile(1.0) <= 1.0 && operations.median() >= 1.0),
    });
}

/// `turns`: the logins between two measurements of the floor.
fn tell_of_floor(ours: &Way, turns: &[Sample], [floor, cold]: [&Floor; 2], report: &mut Report) {
    floor.keep(report);
    cold.keep(report);
    let whole = sample(&ours.whole);
    let ratio = floor.ratio(turns);
    report.row(Row {
        bench: "B1f",
        what: "the same login, beside its floor: what cannot be left out, each alone".into(),
        figure: format!("median {:.1} ms", whole.median()),
        beside: floor.words(),
        ratio: Some(ratio),
        aim: "<= 1.3 of it".into(),
        reached: Some(ratio <= 1.3),
    });
    for (floor, what) in [
        (floor, "the same login, beside its floor and what a tunnel of one's own needs besides, each alone"),
        (cold, "the same, each part after a pause in which others had the caches, as a login finds them"),
    ] {
        report.row(Row {
            bench: "B1f",
            what: what.into(),
            figure: format!("median {:.1} ms", whole.median()),
            beside: floor.all_words(),
            ratio: Some(floor.ratio_to_all(turns)),
            aim: String::new(),
            reached: None,
        });
    }
}

/// Where the time goes that a login takes beside its floor. What the floor costs more when the processor's caches are cold is in the second figure.
/// `answer`: what the server took on average from `Login` to its answer, in milliseconds.
fn beside_the_floor(ours: &Way, answer: f64, openings: &Openings, floor: &Floor, report: &mut Report) {
    let difference =
        |later: &[f64], earlier: &[f64]| -> Sample { later.iter().zip(earlier).map(|(l, e)| l - e).collect() };
    let (asked, answered) = (sample(&ours.asked), difference(&ours.authenticated, &ours.asked));
    let opening = difference(&ours.whole, &ours.authenticated);
    let (up, told) = (sample(&openings.up), sample(&openings.told));
    for (what, values) in [
        ("from the first question until authenticated", &answered),
        ("from then until the session is open", &opening),
        ("of that, interface and guard", &up),
        ("of that, until the server has heard", &told),
    ] {
        report.keep(format!("B1f {what}"), values);
    }
    report.row(Row {
        bench: "B1f",
        what: "where the rest of it goes".into(),
        figure: format!(
            "{:.1} ms until the first question (process, libpam, daemon, reader); {:.1} from there until authenticated, of them {:.1} for the server's answer to the \
             password, beside the floor's {:.1} and {:.1}; {:.1} to open the session, of them {:.1} for interface and guard and {:.1} until the server has heard",
            asked.median(),
            answered.median(),
            answer,
            floor.sum(),
            floor.answer(),
            opening.median(),
            up.median(),
            told.median(),
        ),
        beside: String::new(),
        ratio: None,
        aim: String::new(),
        reached: None,
    });
}
