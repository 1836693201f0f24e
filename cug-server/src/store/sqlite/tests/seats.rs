//! Members' numbers in a group's network.

use super::*;

const DAY: UnixTime = 86_400;

fn at(now: UnixTime) -> By<'static> {
    By { actor: "root", now }
}

/// A group with room for six members, all of it taken by u1 to u6.
fn full() -> Fixture {
    let f = Fixture::new();
    f.store.add_group(BY, &new_group(&group("six"), Some("10.9.0.0/29".parse().unwrap())), &mint).unwrap();
    let password = f.store.account(&user("A")).unwrap().unwrap().password;
    for i in 1..=9 {
        f.store.add_user(BY, &user(&format!("u{i}")), &password).unwrap();
    }
    for i in 1..=6 {
        f.store.join(BY, &group("six"), &user(&format!("u{i}"))).unwrap();
    }
    f
}

fn address(f: &Fixture, name: &str) -> String {
    let members = f.store.group(&group("six")).unwrap().1;
    members.iter().find(|m| m.user.as_str() == name).unwrap().overlay4.to_string()
}

#[test]
fn a_number_is_given_again_after_the_quarantine_the_longest_free_first() {
    let f = full();
    let six = group("six");
    assert!(refused(f.store.join(BY, &six, &user("u7"))).contains("all are members'"));
    f.store.leave(at(NOW + 2 * DAY), &six, &user("u2"), &mint).unwrap();
    f.store.leave(at(NOW + DAY), &six, &user("u5"), &mint).unwrap();
    let sentence = refused(f.store.join(at(NOW + 30 * DAY), &six, &user("u7")));
    assert!(sentence.contains("full") && sentence.contains("2027-02-15"), "{sentence}");
    f.store.join(at(NOW + 31 * DAY), &six, &user("u7")).unwrap();
    assert_eq!(address(&f, "u7"), "10.9.0.5", "free since the first day");
    refused(f.store.join(at(NOW + 31 * DAY), &six, &user("u8")));
    f.store.join(at(NOW + 32 * DAY), &six, &user("u8")).unwrap();
    assert_eq!(address(&f, "u8"), "10.9.0.2");
    refused(f.store.join(at(NOW + 99 * DAY), &six, &user("u5")));
}

#[test]
fn who_comes_back_in_time_has_the_old_address() {
    let f = full();
    let six = group("six");
    f.store.leave(BY, &six, &user("u3"), &mint).unwrap();
    f.store.join(at(NOW + 99 * DAY), &six, &user("u3")).unwrap();
    assert_eq!(address(&f, "u3"), "10.9.0.3");
    refused(f.store.join(at(NOW + 99 * DAY), &six, &user("u7")));
}
