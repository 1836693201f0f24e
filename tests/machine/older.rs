//! Versions of the server that differ in what they remember: its package over the database of an earlier one, and below that of a later one.

use anyhow::{Context, ensure};
use cug_tests::accounts::ROOT_PASSWORD;
use cug_tests::installed::{NEW, OLD, install, shell};
use cug_tests::machine::Machine;
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// The database that the first version of the server made; a unit test holds this file to what it was.
const FIRST: &str = include_str!("../../cug-server/src/store/sqlite/schema-1.sql");

const DATABASE: &str = "/var/lib/cug-server/cug.db";

/// The server was installed when there was only the first schema: the package of this version is installed over it. Whatever the first version
/// remembered is there as before.
pub fn upgraded_from_the_first(server: &Machine) -> anyhow::Result<()> {
    install(server, &["cug-server"], OLD)?;
    shell(server, "systemctl stop cug-server")?;
    let first = server.space().logs().join("first.db");
    as_the_first_version(&taken_out(server)?, &first)?;
    put_back(server, &first)?;
    // The audit was not chained yet.
    std::fs::remove_file(server.path("/var/lib/cug-server/keys/audit.key"))?;
    let says = shell(server, "cug-server check || true")?;
    ensure!(says.contains("older version"), "{says}");

    install(server, &["cug-server"], NEW)?;
    shell(server, "systemctl start cug-server")?;
    server.wait_active("cug-server")?;
    let says = shell(server, "cug-server check || true")?;
    ensure!(!says.contains("older version"), "{says}");
    let verified = shell(server, "cug-server audit verify")?;
    let begun = shell(server, "cug-server audit --limit 1000")?;
    ensure!(begun.contains("audit-begin"), "{verified}{begun}");
    Ok(())
}

/// A copy of the database of a server that does not run, where SQLite can open it: it follows no link of /proc.
fn taken_out(server: &Machine) -> anyhow::Result<PathBuf> {
    let copy = server.space().logs().join("present.db");
    let log = server.path(format!("{DATABASE}-wal"));
    ensure!(std::fs::metadata(log).map_or(0, |log| log.len()) == 0, "the server stopped and left its log");
    std::fs::copy(server.path(DATABASE), &copy)?;
    Ok(copy)
}

/// Into the same file, which has its owner and mode.
fn put_back(server: &Machine, database: &Path) -> anyhow::Result<()> {
    Ok(std::fs::write(server.path(DATABASE), std::fs::read(database)?)?)
}

/// All that the first version had tables and columns for, out of the database `from`, in a database of the first version at `to`.
fn as_the_first_version(from: &Path, to: &Path) -> anyhow::Result<()> {
    let _none_yet = std::fs::remove_file(to);
    let old = Connection::open(to)?;
    old.execute_batch(FIRST)?;
    old.execute_batch("PRAGMA user_version = 1; PRAGMA foreign_keys = OFF")?;
    old.execute("ATTACH ?1 AS present", [from.to_str().context("a path")?])?;
    let list = |sql: &str| -> anyhow::Result<Vec<String>> {
        let mut query = old.prepare(sql)?;
        let names = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(names)
    };
    for table in list("SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")? {
        let columns = list(&format!("SELECT name FROM pragma_table_info('{table}', 'main')"))?.join(", ");
        old.execute_batch(&format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM present.{table}"))?;
    }
    let numbers = "DELETE FROM main.sqlite_sequence; INSERT INTO main.sqlite_sequence SELECT s.* FROM present.sqlite_sequence s \
                   WHERE s.name IN (SELECT name FROM main.sqlite_schema)";
    old.execute_batch(numbers)?;
    let filled: i64 = old.query_row("SELECT min((SELECT count(*) FROM user), (SELECT count(*) FROM card), (SELECT count(*) FROM session), (SELECT count(*) FROM group_key))", [], |row| row.get(0))?;
    ensure!(filled > 0, "users, cards, sessions or keys are missing, or this test shows nothing");
    old.execute_batch("DETACH present")?;
    old.close().map_err(|(_, error)| error).context("the first version's database")
}

/// The database is of a later version: the earlier server does not touch it and says what to do, root logs in at its console, and a backup from before
/// makes it serve again.
pub fn downgraded_below_a_later_one(server: &mut Machine) -> anyhow::Result<()> {
    shell(server, "cug-server backup /root/before.db && systemctl stop cug-server")?;
    let file = taken_out(server)?;
    let later = Connection::open(&file)?;
    later.execute_batch("PRAGMA user_version = 1000; PRAGMA wal_checkpoint(TRUNCATE)")?;
    later.close().map_err(|(_, error)| error)?;
    put_back(server, &file)?;
    let content = std::fs::read(server.path(DATABASE))?;
    install(server, &["cug-server"], OLD)?;
    shell(server, "! systemctl start cug-server")?;
    let journal = server.journal("cug-server");
    ensure!(
        journal.contains("made by a newer version of cug-server") && journal.contains("install the newer version"),
        "{journal}"
    );
    ensure!(std::fs::read(server.path(DATABASE))? == content, "the later version's database was changed");
    server.console().log_in("root", &[("assword: ", ROOT_PASSWORD)])?;
    server.console().log_out()?;
    shell(server, "systemctl stop cug-server && cug-server restore /root/before.db")?;
    shell(
        server,
        "systemctl reset-failed cug-server; systemctl start cug-server && cug-server user list | grep -q USER-A",
    )?;
    Ok(())
}
