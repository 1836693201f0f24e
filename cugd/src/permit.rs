//! Who may ask what.

use cug_proto::local::{Refusal, Request};

/// As whom a caller is heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Root: the login module in a login program.
    System,
    /// A user's own process.
    User(u32),
}

impl Caller {
    /// By the user ID that the kernel gives.
    pub fn of(uid: u32) -> Self {
        if uid == 0 { Self::System } else { Self::User(uid) }
    }
}

/// Whether this caller may ask this. `account` is the user ID of the account that a `Prepare` is for.
///
/// | request | root | others |
/// |---|---|---|
/// | `Open`, `Close`, `Wait`, `Exempt` | yes | no |
/// | `Prepare` | yes | for their own account: a check of card and password, or unlocking a session of theirs |
/// | `Deliver`, `Cancel` | yes | of their own offers, as the core knows them |
/// | `Status`, `Peers`, `Watch` | yes, of everybody | yes, of their own sessions |
/// | `Servers` | yes | yes |
///
/// # Errors
/// [`Refusal::NotPermitted`]
pub fn check(caller: Caller, request: &Request, account: Option<u32>) -> Result<(), Refusal> {
    let permitted = match (request, caller) {
        (Request::Status | Request::Peers | Request::Servers | Request::Watch, _) | (_, Caller::System) => true,
        (Request::Prepare(_), Caller::User(uid)) => account == Some(uid),
        (Request::Deliver(_) | Request::Cancel(_), Caller::User(_)) => true,
        (Request::Open(_) | Request::Close(_) | Request::Wait(_) | Request::Exempt, Caller::User(_)) => false,
    };
    if permitted { Ok(()) } else { Err(Refusal::NotPermitted) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cug_proto::local::{LOCAL_VERSION, Open, Prepare};

    fn user() -> cug_proto::id::UserId {
        "USER-A".parse().unwrap()
    }

    #[test]
    fn only_root_opens_and_closes() {
        for request in [
            Request::Open(Open { user: user(), service: "login".into(), tty: String::new(), holds: true }),
            Request::Close(user()),
            Request::Exempt,
        ] {
            assert_eq!(check(Caller::of(0), &request, None), Ok(()));
            for uid in [1000, u32::MAX] {
                assert_eq!(check(Caller::of(uid), &request, Some(uid)), Err(Refusal::NotPermitted));
            }
        }
        for uid in [0, 1000] {
            for request in [Request::Status, Request::Peers, Request::Servers, Request::Watch, Request::Cancel([0; 16])]
            {
                assert_eq!(check(Caller::of(uid), &request, None), Ok(()));
            }
        }
    }

    #[test]
    fn a_user_prepares_for_their_own_account_only() {
        let request = Request::Prepare(Prepare { version: LOCAL_VERSION, user: user(), service: "swaylock".into() });
        assert_eq!(check(Caller::of(0), &request, None), Ok(()));
        assert_eq!(check(Caller::of(1000), &request, Some(1000)), Ok(()));
        for account in [None, Some(1001), Some(0)] {
            assert_eq!(check(Caller::of(1000), &request, account), Err(Refusal::NotPermitted));
        }
    }
}
