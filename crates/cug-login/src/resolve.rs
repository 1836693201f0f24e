//! From `host:port` to addresses, within a limit.

use crate::ffi;
use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

/// The addresses of a server. A literal address costs nothing. For a name, `getaddrinfo` cannot be interrupted: each DNS server is asked once, and all of them together
/// are waited for as long as `limit`, as far as whole seconds allow ([`for_each`]). Other sources of names (files, mDNS, directories) keep their own limits.
pub fn resolve(server: &str, limit: Duration) -> Vec<SocketAddr> {
    if let Ok(literal) = server.parse() {
        return vec![literal];
    }
    ffi::limit_resolver(|servers, searches| {
        i32::try_from(for_each(limit.as_secs(), servers, searches)).unwrap_or(i32::MAX)
    });
    server.to_socket_addrs().map(Iterator::collect).unwrap_or_default()
}

/// Seconds for which glibc is told to wait for the first DNS server, so that silence of all of them costs no more than `limit`: at least one, at most 30. It waits for
/// the second one twice, for the third four times as long, divided by their number, at least one second (resolv.conf(5), `timeout`); and when the name
/// as it is got no answer, it asks once more, below the first domain of the search list.
fn for_each(limit: u64, servers: u32, searches: bool) -> u64 {
    let silent = |first: u64| {
        let later = (1..servers.min(3)).map(|nth| ((first << nth) / u64::from(servers)).max(1));
        (first + later.sum::<u64>()) * if searches { 2 } else { 1 }
    };
    (1..=limit.min(30)).rev().find(|first| silent(*first) <= limit).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_names() {
        assert_eq!(resolve("10.0.0.1:7531", Duration::ZERO), ["10.0.0.1:7531".parse().unwrap()]);
        assert_eq!(resolve("[::1]:7531", Duration::ZERO), ["[::1]:7531".parse().unwrap()]);
        assert!(
            resolve("localhost:7531", Duration::from_secs(1)).iter().all(|a| a.ip().is_loopback() && a.port() == 7531)
        );
        for bad in ["", "10.0.0.1", "10.0.0.1:99999", ":7531:"] {
            assert!(resolve(bad, Duration::ZERO).is_empty(), "{bad}");
        }
    }

    #[test]
    fn silent_dns_servers_stay_within_the_limit() {
        for (limit, servers, searches, seconds) in [
            (5, 1, false, 5),
            (5, 1, true, 2),
            (5, 2, false, 2),
            (5, 3, false, 2),
            (5, 3, true, 1),
            (0, 1, false, 1),
            (900, 1, false, 30),
        ] {
            assert_eq!(for_each(limit, servers, searches), seconds, "{limit} {servers} {searches}");
        }
    }
}
