//! From `host:port` to addresses, within a limit.

use crate::ffi;
use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

/// The addresses of a server. A literal address costs nothing. For a name, `getaddrinfo` cannot be interrupted: DNS is told to try each of its servers once, for `limit` rounded
/// down to seconds, at least one; other sources of names (files, mDNS, directories) keep their own limits. So cugd, which can wait in the background, should send addresses.
pub fn resolve(server: &str, limit: Duration) -> Vec<SocketAddr> {
    if let Ok(literal) = server.parse() {
        return vec![literal];
    }
    ffi::limit_resolver(i32::try_from(limit.as_secs()).unwrap_or(i32::MAX).clamp(1, 30));
    server.to_socket_addrs().map(Iterator::collect).unwrap_or_default()
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
}
