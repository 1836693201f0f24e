//! What the tables must say.

use anyhow::ensure;
use cug_tests::lan::address4;
use cug_tests::server::Session;
use cug_tests::world::MEMBERS;

/// The server's table holds these users at these terminals, under their groups, and nobody else (Fig. 8).
pub fn table(rows: &[Session], seats: &[(usize, &str)]) -> anyhow::Result<()> {
    let mut wanted: Vec<_> = seats
        .iter()
        .map(|(terminal, user)| {
            let group = MEMBERS.iter().find(|(name, _, _)| name == user).map_or("", |(_, _, group)| group);
            (group.to_owned(), (*user).to_owned(), address4(u8::try_from(*terminal).unwrap_or(0)).to_string())
        })
        .collect();
    let mut found: Vec<_> =
        rows.iter().map(|row| (row.group.clone(), row.user.clone(), row.terminal.clone())).collect();
    wanted.sort();
    found.sort();
    ensure!(found == wanted, "the server's table is {found:?} and should be {wanted:?}");
    Ok(())
}

/// Users and their overlay addresses.
pub fn addresses(rows: &[Session]) -> Vec<(String, String, String)> {
    let mut all: Vec<_> =
        rows.iter().map(|row| (row.user.clone(), row.overlay4.clone(), row.overlay6.clone())).collect();
    all.sort();
    all
}
