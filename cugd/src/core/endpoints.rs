//! Which of a member's endpoints is used. Decided from what the server announced and what WireGuard measured; nothing here does I/O.
//!
//! A path that works is left alone: WireGuard itself follows a member whose authenticated packets come from elsewhere. An endpoint is chosen
//! here when a member is new, when the one in use is no longer announced, when this terminal has no address of its family any more, and when
//! packets go out and nothing comes back.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::Time;

/// How often paths are looked at while a member has several endpoints,
pub(super) const LOOK_CHOICE: Duration = Duration::from_secs(1);
/// and otherwise.
pub(super) const LOOK_IDLE: Duration = Duration::from_secs(5);
/// How long a handshake may take before the next endpoint is tried.
const PROBE: Duration = Duration::from_millis(1500);
/// How long a member in whose session data goes out may be silent: WireGuard's receiver answers within ten seconds.
const SILENCE: Duration = Duration::from_secs(14);
/// WireGuard's sessions end after 180 s (REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// How often all endpoints are tried in a row, each round with more patience,
const ROUNDS: u32 = 3;
/// and how long a member who answered at none of them is left alone.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// What was measured of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sight {
    /// Where WireGuard sends its packets.
    pub endpoint: Option<SocketAddr>,
    /// Age of its WireGuard session.
    pub handshake: Option<Duration>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// The announced endpoints that could be reached from here, best first: in a subnet of this terminal, then as the server ordered them (the
/// address that it saw itself comes first). `own` are this terminal's addresses; endpoints inside `overlay` would lead into the tunnel.
pub(super) fn candidates(announced: &[SocketAddr], own: &[IpNet], overlay: &[IpNet]) -> Vec<SocketAddr> {
    let sound = |endpoint: &&SocketAddr| {
        let ip = endpoint.ip();
        let impossible = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        !impossible
            && endpoint.port() != 0
            && !overlay.iter().any(|net| net.contains(&ip))
            && !own.iter().any(|net| net.addr() == ip)
    };
    // Before the first look at the network any family may do.
    let family = |ip: IpAddr| own.is_empty() || own.iter().any(|net| net.addr().is_ipv4() == ip.is_ipv4());
    let near = |endpoint: &SocketAddr| own.iter().any(|net| net.contains(&endpoint.ip()));
    let mut found: Vec<SocketAddr> = Vec::new();
    for endpoint in announced.iter().filter(sound).filter(|endpoint| family(endpoint.ip())) {
        if !found.contains(endpoint) {
            found.push(*endpoint);
        }
    }
    found.sort_by_key(|endpoint| !near(endpoint));
    found
}

/// The way to one member.
#[derive(Default)]
pub(super) struct Path {
    candidates: Vec<SocketAddr>,
    current: Option<SocketAddr>,
    /// Where the last packet came from.
    heard: Option<SocketAddr>,
    last: Sight,
    /// A handshake was begun from here then, and is not answered yet.
    asked: Option<Time>,
    /// Packets go out since then, and nothing comes back.
    silent: Option<Time>,
    /// Endpoints that were tried in a row.
    tried: u32,
    /// Not tried before then.
    rest: Option<Time>,
}

impl Path {
    /// To a new member.
    pub fn new(candidates: Vec<SocketAddr>) -> Self {
        Self { current: candidates.first().copied(), candidates, ..Self::default() }
    }

    /// Where packets go, as far as it is known here.
    pub fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// Whether there is more than one endpoint to choose from.
    pub fn has_choice(&self) -> bool {
        self.candidates.len() > 1 || self.candidates.first().is_some_and(|only| Some(*only) != self.current)
    }

    /// Whether a WireGuard session was seen at the last look.
    pub fn is_live(&self) -> bool {
        self.last.handshake.is_some_and(|age| age < SESSION)
    }

    /// The server announced other endpoints: the one to use now, unless the path can stay.
    pub fn announced(&mut self, now: Time, candidates: Vec<SocketAddr>) -> Option<SocketAddr> {
        let former = std::mem::replace(&mut self.candidates, candidates);
        let stays = self.current.is_some_and(|current| {
            // Another port at an announced address is a router's mapping, which WireGuard found by itself.
            let mapped = !former.contains(&current) && self.candidates.iter().any(|c| c.ip() == current.ip());
            mapped || self.candidates.contains(&current)
        });
        if stays { None } else { self.move_to(now, self.candidates.first().copied()?) }
    }

    /// This terminal's own network changed: the endpoint to use now, unless the path can stay. A live path is asked for a sign of life either
    /// way, by the caller: the member learns the new address from that.
    pub fn rehomed(&mut self, now: Time, candidates: Vec<SocketAddr>, own: &[IpNet]) -> Option<SocketAddr> {
        self.candidates = candidates;
        (self.tried, self.rest) = (0, None);
        let family = |endpoint: SocketAddr| own.iter().any(|net| net.addr().is_ipv4() == endpoint.is_ipv4());
        if self.current.is_some_and(family) {
            self.asked = self.is_live().then_some(now);
            return None;
        }
        self.move_to(now, self.candidates.first().copied()?)
    }

    /// What was measured now: the endpoint to try next, unless the path works or nobody needs it.
    pub fn look(&mut self, now: Time, sight: Sight) -> Option<SocketAddr> {
        let last = std::mem::replace(&mut self.last, sight);
        self.current = sight.endpoint.or(self.current);
        if sight.received > last.received {
            self.heard = self.current;
            (self.asked, self.silent, self.tried, self.rest) = (None, None, 0, None);
            return None;
        }
        if self.rest.is_some_and(|until| now < until) {
            return None;
        }
        self.rest = None;
        if sight.sent > last.sent {
            self.silent.get_or_insert(now);
        }
        let patience = if self.is_live() { SILENCE } else { PROBE };
        let overdue = match (self.asked, self.silent) {
            (Some(asked), _) => now.since(asked) >= self.probe_time(),
            (None, Some(silent)) => now.since(silent) >= patience,
            (None, None) => false,
        };
        if overdue { self.next(now) } else { None }
    }

    /// The next endpoint after the current one, round and round, until it is enough.
    fn next(&mut self, now: Time) -> Option<SocketAddr> {
        let mut round = self.candidates.clone();
        // What worked last may work again, though nobody announces it.
        round.extend(self.heard.filter(|heard| !self.candidates.contains(heard)));
        let at = round.iter().position(|candidate| Some(*candidate) == self.current);
        let next = round.get(at.map_or(0, |at| (at + 1) % round.len())).copied();
        let enough = u32::try_from(round.len()).unwrap_or(u32::MAX).saturating_mul(ROUNDS);
        if next == self.current || self.tried >= enough {
            (self.asked, self.silent, self.tried) = (None, None, 0);
            self.rest = Some(now + GIVEN_UP);
            return None;
        }
        self.tried += 1;
        self.move_to(now, next?)
    }

    /// Doubles with each round.
    fn probe_time(&self) -> Duration {
        let round = self.tried / u32::try_from(self.candidates.len().max(1)).unwrap_or(u32::MAX);
        PROBE * (1 << round.min(ROUNDS))
    }

    fn move_to(&mut self, now: Time, endpoint: SocketAddr) -> Option<SocketAddr> {
        self.current = Some(endpoint);
        (self.asked, self.silent) = (Some(now), None);
        Some(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn near_ones_come_first_and_impossible_ones_not_at_all() {
        let announced =
            ["198.51.100.7:9", "10.0.0.2:9", "[2001:db8::7]:9", "100.96.0.7:9", "127.0.0.1:9", "10.0.0.1:9"].map(at);
        let overlay = nets(&["100.96.0.0/20"]);
        let four = candidates(&announced, &nets(&["10.0.0.1/24"]), &overlay);
        assert_eq!(four, ["10.0.0.2:9", "198.51.100.7:9"].map(at));
        let six = candidates(&announced, &nets(&["2001:db8:1::1/64"]), &overlay);
        assert_eq!(six, ["[2001:db8::7]:9"].map(at));
        let unknown = candidates(&announced, &[], &overlay);
        assert_eq!(unknown.first(), Some(&at("198.51.100.7:9")), "the server's word");
        assert_eq!(unknown.len(), 4);
    }

    #[test]
    fn an_announcement_leaves_a_path_that_can_stay() {
        let now = Time::since_boot(Duration::from_secs(9));
        let two = || vec![at("10.0.0.2:9"), at("10.1.0.2:9")];
        let mut path = Path::new(two());
        assert_eq!(path.announced(now, vec![at("10.1.0.2:9"), at("10.0.0.2:9")]), None);
        // A router maps the port; WireGuard has found it.
        path.look(now, Sight { endpoint: Some(at("10.0.0.2:777")), received: 5, ..Sight::default() });
        assert_eq!(path.announced(now, two()), None);
        assert_eq!(path.announced(now, vec![at("10.7.0.2:9")]), Some(at("10.7.0.2:9")), "it has moved");
        assert_eq!(path.announced(now, vec![at("10.7.0.2:10")]), Some(at("10.7.0.2:10")), "its port has changed");
    }

    #[test]
    fn a_family_that_is_gone_is_left() {
        let now = Time::since_boot(Duration::from_secs(9));
        let mut path = Path::new(vec![at("10.0.0.2:9"), at("[fd00::2]:9")]);
        assert_eq!(path.rehomed(now, vec![at("10.0.0.2:9")], &nets(&["10.5.0.1/24"])), None);
        assert_eq!(path.rehomed(now, vec![at("[fd00::2]:9")], &nets(&["fd00::1/64"])), Some(at("[fd00::2]:9")));
    }

    /// WireGuard and the network, as seen through [`Path::look`] once a second.
    fn run(
        path: &mut Path,
        seconds: u64,
        answers: impl Fn(u64, SocketAddr) -> bool,
        wanted: bool,
    ) -> Vec<(u64, SocketAddr)> {
        let mut sight = Sight { endpoint: path.current(), ..Sight::default() };
        let mut moves = Vec::new();
        for second in 0..seconds {
            let now = Time::since_boot(Duration::from_secs(1000 + second));
            let current = sight.endpoint.unwrap();
            if wanted {
                sight.sent += 148;
                if answers(second, current) {
                    sight.received += 92;
                    sight.handshake = Some(Duration::ZERO);
                }
            }
            if let Some(next) = path.look(now, sight) {
                sight.endpoint = Some(next);
                moves.push((second, next));
            }
        }
        moves
    }

    #[test]
    fn nobody_is_called_whom_nobody_needs_and_nobody_for_ever() {
        let three = || vec![at("10.0.0.2:9"), at("10.1.0.2:9"), at("10.2.0.2:9")];
        assert!(run(&mut Path::new(three()), 600, |_, _| false, false).is_empty());
        let moves = run(&mut Path::new(three()), 100, |_, _| false, true);
        assert!((4..=2 * 3 * ROUNDS as usize).contains(&moves.len()), "{moves:?}");
        assert!(run(&mut Path::new(vec![at("10.0.0.2:9")]), 600, |_, _| false, true).is_empty(), "no choice");
    }

    proptest! {
        #[test]
        fn the_one_that_answers_is_found_and_kept(count in 1usize..9, right in 0usize..9, lost in 0u64..3) {
            let all: Vec<SocketAddr> = (0..count).map(|n| SocketAddr::new([10, 0, n as u8, 2].into(), 9)).collect();
            let right = all[right % count];
            let mut path = Path::new(all);
            // Now and then even the right one is not heard.
            run(&mut path, 60, |second, at| at == right && second % 5 >= lost, true);
            prop_assert_eq!(path.current(), Some(right));
            let later = run(&mut path, 60, |second, at| at == right && second % 5 >= lost, true);
            prop_assert!(later.is_empty(), "left although it works: {:?}", later);
        }
    }
}
