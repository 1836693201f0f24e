//! Decisions, pure: what the store knows and what time it is come in, a verdict goes out.

pub mod hours;
pub mod overlay;
pub mod password;

use crate::{clock::UnixTime, store::Account};
use cug_proto::message::DenyReason;
use hours::Standing;

/// Wrong passwords that cost nothing.
const FREE_FAILURES: u32 = 3;

/// Longest wait after wrong passwords, in seconds.
const LONGEST_WAIT: i64 = 900;

/// May this account's password be tried now? Asked before the password is looked at, and only once the card has proved itself.
///
/// # Errors
/// Why not.
pub fn admit(card_revoked: bool, account: &Account, now: UnixTime) -> Result<(), DenyReason> {
    if card_revoked {
        return Err(DenyReason::CardRevoked);
    }
    match remaining_wait(account.failures, account.last_failure, now) {
        0 => Ok(()),
        wait => Err(DenyReason::TooManyAttempts(wait)),
    }
}

/// With the right password: may this user have what was asked for? `groups` is `None` where none is needed,
/// `standing` where there are no hours to keep to.
///
/// # Errors
/// Why not.
pub fn authorise(
    account: &Account,
    password_right: bool,
    groups: Option<usize>,
    standing: Option<&Standing>,
    now: UnixTime,
) -> Result<(), DenyReason> {
    if !password_right {
        Err(DenyReason::WrongPassword)
    } else if account.disabled {
        Err(DenyReason::Disabled)
    } else if account.expires.is_some_and(|expires| now >= expires) {
        Err(DenyReason::Expired)
    } else if let Some(refusal) = standing.and_then(Standing::refusal) {
        Err(refusal)
    } else if groups == Some(0) {
        Err(DenyReason::NoGroup)
    } else {
        Ok(())
    }
}

/// Must this user's password be changed before anything else? `life` is how long one may be used, in seconds.
pub fn must_change(account: &Account, life: Option<i64>, now: UnixTime) -> bool {
    account.must_change || life.is_some_and(|life| now >= account.password_set.saturating_add(life))
}

/// Seconds until the next try: 0 for the first few wrong passwords, then 1, 2, 4, ... up to a quarter of an hour.
pub fn remaining_wait(failures: u32, last_failure: UnixTime, now: UnixTime) -> u32 {
    let Some(excess) = failures.checked_sub(FREE_FAILURES) else { return 0 };
    let wait = 1_i64.checked_shl(excess).filter(|w| (1..LONGEST_WAIT).contains(w)).unwrap_or(LONGEST_WAIT);
    // A clock that was set back must not lock anybody out for longer than the longest wait.
    let remaining = last_failure.saturating_add(wait).saturating_sub(now).clamp(0, LONGEST_WAIT);
    u32::try_from(remaining).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PasswordRecord;
    use proptest::prelude::*;

    fn account(failures: u32, last_failure: UnixTime, disabled: bool) -> Account {
        let password = PasswordRecord { salt: [0; 16], hash: [0; 32], memory_kib: 8, iterations: 1, lanes: 1 };
        Account {
            password,
            disabled,
            failures,
            last_failure,
            password_set: 0,
            must_change: false,
            expires: None,
            hours: None,
        }
    }

    #[test]
    fn a_revoked_card_is_refused_before_the_password() {
        assert_eq!(admit(true, &account(99, 100, true), 100), Err(DenyReason::CardRevoked));
    }

    #[test]
    fn whether_an_account_is_disabled_is_told_only_with_the_right_password() {
        assert_eq!(authorise(&account(0, 0, true), false, Some(0), None, 0), Err(DenyReason::WrongPassword));
        assert_eq!(authorise(&account(0, 0, true), true, Some(1), None, 0), Err(DenyReason::Disabled));
        assert_eq!(authorise(&account(0, 0, false), true, Some(0), None, 0), Err(DenyReason::NoGroup));
        assert_eq!(authorise(&account(0, 0, false), true, Some(1), None, 0), Ok(()));
        assert_eq!(authorise(&account(0, 0, false), true, None, None, 0), Ok(()));
    }

    #[test]
    fn an_account_ends_at_its_time_and_a_password_too() {
        let account = Account { expires: Some(100), password_set: 50, ..account(0, 0, false) };
        assert_eq!(authorise(&account, true, Some(1), None, 99), Ok(()));
        assert_eq!(authorise(&account, true, Some(1), None, 100), Err(DenyReason::Expired));
        assert_eq!(authorise(&account, false, Some(1), None, 100), Err(DenyReason::WrongPassword));
        assert!(!must_change(&account, None, i64::MAX));
        assert!(!must_change(&account, Some(10), 59) && must_change(&account, Some(10), 60));
        assert!(must_change(&Account { must_change: true, ..account }, None, 0));
    }

    #[test]
    fn the_hours_are_told_with_the_right_password_only_and_after_what_lasts_longer() {
        let (account, expired) = (account(0, 0, false), Account { expires: Some(100), ..account(0, 0, false) });
        let verdict = |account, right, standing: &Standing| authorise(account, right, Some(1), Some(standing), 100);
        assert_eq!(verdict(&account, false, &Standing::Unknown), Err(DenyReason::WrongPassword));
        assert_eq!(verdict(&account, true, &Standing::Unknown), Err(DenyReason::OutsideHours(None)));
        assert_eq!(verdict(&account, true, &Standing::Open(None)), Ok(()));
        assert_eq!(verdict(&expired, true, &Standing::Unknown), Err(DenyReason::Expired));
        assert_eq!(
            authorise(&account, true, Some(0), Some(&Standing::Unknown), 100),
            Err(DenyReason::OutsideHours(None)),
            "who may not be here now need not be told of groups"
        );
    }

    proptest! {
        #[test]
        fn waits_grow_and_end(failures in 0u32..200, last in 0i64..1 << 40, later in 0i64..2000) {
            let wait = remaining_wait(failures, last, last);
            prop_assert!(wait <= 900);
            prop_assert_eq!(wait == 0, failures < FREE_FAILURES);
            prop_assert!(remaining_wait(failures + 1, last, last) >= wait);
            let then = remaining_wait(failures, last, last + later);
            prop_assert_eq!(i64::from(then), (i64::from(wait) - later).max(0));
            prop_assert!(remaining_wait(failures, last, i64::MIN) <= 900, "clock set back");
        }
    }
}
