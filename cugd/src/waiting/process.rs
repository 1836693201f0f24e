//! The process of one waiting login. It has what was typed, in memory that is locked, cannot be dumped and is wiped; it logs in as the PAM module does, when it is told to,
//! and ends with the daemon, however that ends.

use std::{
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use cug_card::{Card, CardBinding, CardError, PinRequest, Selection};
use cug_login::{
    Failure, LinkError,
    challenge::{self, Errand},
    contain,
    daemon::Cugd,
    edge::{Clock, SystemClock},
    exchange::{self, LoggedIn, Wish},
    offer,
    server::TlsServers,
};
use cug_proto::{
    frame::{self, HEADER_LEN, MAX_LOGIN},
    local::{Refusal, Reply},
    message::{Fingerprint, Purpose},
    secret::{Secret, SecretBytes},
    trust::ServerObject,
    waiting::{HandOver, Order, Report, SERVICE, Task},
};
use minicbor::{Decode, Encode};
use nix::sys::{
    prctl::set_pdeathsig,
    signal::Signal,
    socket::{getsockopt, sockopt::PeerCredentials},
};
use zeroize::Zeroizing;

use crate::{hardening, tunnel::memory::scrub_stack};

/// How long whoever connects may take to say what was typed.
const HAND_OVER_TIME: Duration = Duration::from_secs(5);

/// Until the daemon has no use for it any more.
pub fn run() -> ExitCode {
    // Before there is anything to hide. The daemon's loop is its main thread, so this is sent when the daemon dies, not before.
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!(%error, "a waiting login would outlive a daemon that is killed, until it has tried once more");
    }
    hardening::apply();
    contain::keep_panics_off_stderr();
    let result = serve();
    scrub_stack();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::warn!("a waiting login ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let orders = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().context("standard input")?);
    let task: Task = receive(&orders).context("no task")?;
    let typed = take(&UnixListener::from(io::stdout().as_fd().try_clone_to_owned().context("standard output")?))?;
    // Nobody else is to come to that socket.
    nix::unistd::dup2_stdout(std::fs::File::open("/dev/null").context("/dev/null")?).context("standard output")?;
    send(&orders, &Report::Ready)?;
    // The end of the connection is the end of this: the daemon has closed it, or is no more.
    while let Ok(Order::Try) = receive(&orders) {
        let report = contain::caught(|| attempt(&task, &typed)).unwrap_or_else(|place| {
            tracing::error!("internal error at {place}; please report it");
            Report::Refused(Failure::Internal(place).to_string())
        });
        scrub_stack();
        send(&orders, &report)?;
    }
    Ok(())
}

/// From root's process that comes first; everybody else is turned away. The daemon's limit bounds the wait.
fn take(door: &UnixListener) -> anyhow::Result<HandOver> {
    loop {
        let (caller, _) = door.accept().context("nobody can be heard")?;
        if getsockopt(&caller, PeerCredentials).is_ok_and(|peer| peer.uid() == 0) {
            caller.set_read_timeout(Some(HAND_OVER_TIME))?;
            caller.set_write_timeout(Some(HAND_OVER_TIME))?;
            let typed = receive(&caller).context("what was typed")?;
            send(&caller, &Reply::Done)?;
            return Ok(typed);
        }
    }
}

fn send(mut to: &UnixStream, message: &impl Encode<()>) -> anyhow::Result<()> {
    Ok(to.write_all(&frame::encode(message, MAX_LOGIN)?)?)
}

fn receive<T: for<'b> Decode<'b, ()>>(mut from: &UnixStream) -> anyhow::Result<T> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header)?;
    let mut body = Zeroizing::new(vec![0; frame::body_len(header, MAX_LOGIN)?]);
    from.read_exact(&mut body)?;
    Ok(frame::decode(&body)?)
}

/// One login.
fn attempt(task: &Task, typed: &HandOver) -> Report {
    match log_in(task, typed) {
        Ok(LoggedIn::Granted) => Report::LoggedIn,
        Ok(LoggedIn::MustChange) => Report::Refused("The password must be changed; please log in again.".to_owned()),
        Ok(LoggedIn::Verified) => Report::Refused("The closed group is open already.".to_owned()),
        Err(failure) => report(&failure),
    }
}

/// What a failure means for a login that waits. Whatever the server refuses, and whatever is the matter with the card, ends it: each try costs the person one of a few.
fn report(failure: &Failure) -> Report {
    let passing = match failure {
        // Not the server: somebody else at its address, who has refused nothing.
        Failure::Server(LinkError::NotTrusted(_) | LinkError::Tls(_) | LinkError::Frame(_)) => true,
        Failure::Daemon(_) | Failure::Refused(Refusal::Busy) | Failure::Card(CardError::Busy) => true,
        other => other.is_away(),
    };
    if passing { Report::Away(failure.chain()) } else { Report::Refused(failure.to_string()) }
}

fn log_in(task: &Task, typed: &HandOver) -> Result<LoggedIn, Failure> {
    let clock = SystemClock;
    let daemon = Cugd::new(Path::new(&task.daemon), &clock);
    let offer = offer::prepare(&daemon, &task.user, SERVICE.to_owned())?;
    if offer.offer.purpose != Purpose::Open {
        return Ok(LoggedIn::Verified);
    }
    let card = cug_card::find(&selection(&task.card), clock.now(), || clock.now(), &mut || {});
    let card = card.map_err(Failure::Card)?;
    if card.binding() != task.card {
        return Err(Failure::Card(CardError::Removed));
    }
    offer::check_organisation(&offer.offer, &*card)?;
    let mut card = Patient { card, pin: typed.pin.as_ref() };
    let network = TlsServers { clock: &clock };
    let limit = Duration::from_millis(offer.offer.server_timeout_ms.into());
    let errand = Errand { user: &task.user, servers: &offer.offer.servers, limit, network: &network, clock: &clock };
    let opened = challenge::obtain(&errand, &mut card)?;
    let wish = Wish {
        user: &task.user,
        offer: &offer.offer,
        purpose: Purpose::Open,
        password: &typed.password,
        new_password: None,
    };
    let done = exchange::log_in(&errand, &offer, &wish, &mut card, None, opened)?;
    if done == LoggedIn::Granted {
        offer.keep();
    }
    Ok(done)
}

/// Where that very card was.
fn selection(card: &CardBinding) -> Selection {
    match card {
        CardBinding::Reader(reader) => Selection { readers: vec![reader.reader.clone()], ..Selection::default() },
        // No reader has such a name.
        CardBinding::Medium(medium) => {
            Selection { readers: vec!["\n".to_owned()], media: vec![medium.directory.clone()], ..Selection::default() }
        }
    }
}

/// A card that gets its PIN only when a server has sent a challenge: until then other programs may use it, and nothing is sent to it in vain.
struct Patient<'a> {
    card: Box<dyn Card>,
    pin: Option<&'a SecretBytes>,
}

impl Card for Patient<'_> {
    fn fingerprint(&self) -> &Fingerprint {
        self.card.fingerprint()
    }

    fn server_object(&self) -> &ServerObject {
        self.card.server_object()
    }

    fn pin(&mut self) -> Result<PinRequest, CardError> {
        self.card.pin()
    }

    fn unlock(&mut self, pin: &SecretBytes) -> Result<(), CardError> {
        self.card.unlock(pin)
    }

    fn open_challenge(&mut self, ciphertext: &[u8]) -> Result<Secret<32>, CardError> {
        if let Some(pin) = self.pin {
            // The person's last try is not this program's to spend.
            if let PinRequest::Pin { tries_left: Some(0..=1) } = self.card.pin()? {
                return Err(CardError::PinRequired);
            }
            self.card.unlock(pin)?;
        }
        self.card.open_challenge(ciphertext)
    }

    fn binding(&self) -> CardBinding {
        self.card.binding()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_login::doubles::TestCard;
    use cug_proto::{
        ProtocolError,
        message::{DenyReason, Unavailable},
    };

    #[test]
    fn a_refusal_ends_it_and_absence_does_not() {
        for away in [
            Failure::Server(LinkError::Timeout),
            Failure::Server(LinkError::NotTrusted(rustls::Error::DecryptError)),
            Failure::Unavailable(Unavailable::Busy(3)),
            Failure::Refused(Refusal::Busy),
            Failure::Card(CardError::Busy),
        ] {
            assert!(matches!(report(&away), Report::Away(_)), "{away:?}");
        }
        for over in [
            Failure::Denied(DenyReason::WrongPassword),
            Failure::Denied(DenyReason::Disabled),
            Failure::Rejected,
            Failure::Card(CardError::Removed),
            Failure::Card(CardError::WrongPin { tries_left: Some(2) }),
            Failure::Refused(Refusal::CardGone),
            Failure::Protocol(ProtocolError::OutOfOrder),
            Failure::Unavailable(Unavailable::Version(9)),
            Failure::ForeignCard,
        ] {
            let sentence = over.to_string();
            assert_eq!(report(&over), Report::Refused(sentence));
        }
    }

    #[test]
    fn the_pin_is_given_with_the_challenge_and_never_as_the_last_try() {
        let pin = SecretBytes::copy_from(b"1234").unwrap();
        let mut card = Patient { card: Box::new(TestCard::with_pin(&[3], vec![("1234", Ok(()))])), pin: Some(&pin) };
        assert!(card.open_challenge(&[0; 256]).is_ok());
        let mut card = Patient { card: Box::new(TestCard::with_pin(&[1], vec![])), pin: Some(&pin) };
        assert!(matches!(card.open_challenge(&[0; 256]), Err(CardError::PinRequired)));
    }
}
