//! What the service manager is told.
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use cug_server::admin;
use std::{ffi::OsStr, time::Duration};
use tokio::net::UnixDatagram;

/// What the service manager would wait for a sign of life.
const WATCHDOG: Duration = Duration::from_secs(3);

async fn told(manager: &UnixDatagram, within: Duration) -> Option<String> {
    let mut message = [0; 512];
    let received = tokio::time::timeout(within, manager.recv(&mut message)).await.ok()?.unwrap();
    Some(String::from_utf8_lossy(&message[..received]).into_owned())
}

async fn wait_for(manager: &UnixDatagram, wanted: &str) {
    let waiting = async { while !told(manager, PATIENCE).await.expect(wanted).contains(wanted) {} };
    tokio::time::timeout(PATIENCE, waiting).await.expect(wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_while_hub_and_database_answer() {
    let mut server = TestServer::start("").await;
    server.stop().await;
    let path = server.dir.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let limit = WATCHDOG.as_micros().to_string();
    let environment = [("NOTIFY_SOCKET", path.as_os_str()), ("WATCHDOG_USEC", OsStr::new(&limit))];
    let _process = server.in_a_process_with(&environment).await;
    wait_for(&manager, "READY=1").await;
    wait_for(&manager, "WATCHDOG=1").await;
    wait_for(&manager, "WATCHDOG=1").await;

    // Somebody sits on the database: nothing can be written, and the server cannot say so in time.
    let database = rusqlite::Connection::open(admin::database(&server.config.state_dir)).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let starved = async { while told(&manager, WATCHDOG).await.is_some() {} };
    tokio::time::timeout(PATIENCE, starved).await.expect("the watchdog starves");
    database.execute_batch("ROLLBACK").unwrap();
    wait_for(&manager, "WATCHDOG=1").await;
}
