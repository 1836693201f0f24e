//! Who may ask what.

use cug_proto::local::{Refusal, Request};

/// Whether a caller with this user ID may ask this.
///
/// | request | root | others |
/// |---|---|---|
/// | `Prepare`, `Deliver`, `Cancel`, `Open`, `Close`, `Wait`, `Exempt` | yes | no |
/// | `Status`, `Peers`, `Watch` | yes, of everybody | yes, of their own sessions |
/// | `Servers` | yes | yes |
///
/// # Errors
/// [`Refusal::NotPermitted`]
pub fn check(uid: u32, request: &Request) -> Result<(), Refusal> {
    match request {
        Request::Status | Request::Peers | Request::Servers | Request::Watch => Ok(()),
        Request::Prepare(_)
        | Request::Deliver(_)
        | Request::Cancel(_)
        | Request::Open(_)
        | Request::Close(_)
        | Request::Wait(_)
        | Request::Exempt => {
            if uid == 0 {
                Ok(())
            } else {
                Err(Refusal::NotPermitted)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_proto::local::{LOCAL_VERSION, Open, Prepare};

    #[test]
    fn only_root_may_change_anything() {
        let user = || "USER-A".parse().unwrap();
        let changing = [
            Request::Prepare(Prepare { version: LOCAL_VERSION, user: user(), service: "login".into() }),
            Request::Cancel([0; 16]),
            Request::Open(Open { user: user(), service: "login".into(), tty: String::new(), holds: true }),
            Request::Close(user()),
            Request::Exempt,
        ];
        for request in changing {
            assert_eq!(check(0, &request), Ok(()));
            assert_eq!(check(1000, &request), Err(Refusal::NotPermitted));
            assert_eq!(check(u32::MAX, &request), Err(Refusal::NotPermitted));
        }
        for uid in [0, 1000] {
            assert_eq!(check(uid, &Request::Status), Ok(()));
            assert_eq!(check(uid, &Request::Peers), Ok(()));
            assert_eq!(check(uid, &Request::Servers), Ok(()));
        }
    }
}
