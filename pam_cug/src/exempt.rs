//! Whose login is none of this module's business.

use crate::options::Options;
use nix::unistd::{Group, User, getgrouplist};
use std::ffi::CString;

/// The workstation's account database.
pub trait Accounts {
    /// The user's number.
    fn uid(&self, user: &str) -> Option<u32>;
    /// The user is in the group, primarily or not.
    fn in_group(&self, user: &str, group: &str) -> bool;
}

/// The accounts as NSS knows them.
pub struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn uid(&self, user: &str) -> Option<u32> {
        User::from_name(user).ok().flatten().map(|user| user.uid.as_raw())
    }

    fn in_group(&self, user: &str, group: &str) -> bool {
        let (Ok(Some(user)), Ok(Some(group))) = (User::from_name(user), Group::from_name(group)) else {
            return false;
        };
        CString::new(user.name)
            .is_ok_and(|name| getgrouplist(&name, user.gid).is_ok_and(|gids| gids.contains(&group.gid)))
    }
}

/// Root always, then the names of the module's options. Names are compared before the account database is asked: root gets in even if that hangs.
pub fn is_exempt(user: &str, options: &Options, accounts: &dyn Accounts) -> bool {
    user == "root"
        || options.exempt.iter().any(|exempt| exempt == user)
        || accounts.uid(user) == Some(0)
        || is_listed(user, &options.exempt, accounts)
}

/// Whether the user, or a group of the user's as `@GROUP`, is in this list.
pub fn is_listed(user: &str, list: &[String], accounts: &dyn Accounts) -> bool {
    list.iter().any(|name| name == user)
        || list.iter().filter_map(|name| name.strip_prefix('@')).any(|group| accounts.in_group(user, group))
}

/// The login comes from another host, and the options do not let it use the card here.
pub fn is_remote(remote_host: Option<&str>, options: &Options) -> bool {
    let here = matches!(remote_host, None | Some("" | "localhost" | "127.0.0.1" | "::1"));
    !here && !options.remote_allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doubles::TestAccounts;

    fn options(args: &[&str]) -> Options {
        Options::parse(args.iter().copied()).0
    }

    #[test]
    fn root_needs_no_account_database() {
        struct Hanging;
        impl Accounts for Hanging {
            fn uid(&self, _: &str) -> Option<u32> {
                panic!("the account database was asked")
            }
            fn in_group(&self, _: &str, _: &str) -> bool {
                panic!("the account database was asked")
            }
        }
        assert!(is_exempt("root", &options(&[]), &Hanging));
        assert!(is_exempt("kiosk", &options(&["exempt=kiosk"]), &Hanging));
    }

    #[test]
    fn exempt_rules() {
        let accounts = TestAccounts { uids: &[("toor", 0), ("USER-A", 1000)], groups: &[("USER-A", "wheel")] };
        assert!(is_exempt("toor", &options(&[]), &accounts));
        assert!(!is_exempt("USER-A", &options(&["exempt=USER-B,@adm"]), &accounts));
        assert!(is_exempt("USER-A", &options(&["exempt=@wheel"]), &accounts));
        assert!(!is_exempt("nobody-known", &options(&["exempt=@wheel"]), &accounts));
    }

    #[test]
    fn a_list_names_users_and_groups() {
        let accounts = TestAccounts { uids: &[], groups: &[("USER-A", "wheel"), ("@wheel", "x")] };
        let listed =
            |user, list: &[&str]| is_listed(user, &list.iter().map(ToString::to_string).collect::<Vec<_>>(), &accounts);
        assert!(listed("USER-A", &["USER-A"]) && listed("USER-A", &["porter", "@wheel"]));
        assert!(!listed("USER-A", &[]) && !listed("USER-A", &["user-a", "@adm", "wheel"]));
    }

    #[test]
    fn the_real_account_database_knows_root() {
        assert_eq!(SystemAccounts.uid("root"), Some(0));
        assert!(SystemAccounts.in_group("root", "root"));
        assert!(!SystemAccounts.in_group("root", "no-such-group"));
        assert!(!SystemAccounts.in_group("no-such-user", "root"));
    }

    #[test]
    fn remote_rules() {
        for here in [None, Some(""), Some("localhost"), Some("127.0.0.1"), Some("::1")] {
            assert!(!is_remote(here, &options(&[])));
        }
        assert!(is_remote(Some("10.0.0.9"), &options(&[])));
        assert!(is_remote(Some("localhost.evil.example"), &options(&[])));
        assert!(!is_remote(Some("10.0.0.9"), &options(&["remote=allow"])));
    }
}
