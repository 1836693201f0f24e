//! Who reaches whom: every pair of terminals, by ping and by a TCP exchange, over IPv4 and IPv6 overlay addresses.

use anyhow::Context;
use cug_tests::probe::{self, ECHO_PORT, PATIENCE};
use cug_tests::server::Session;
use cug_tests::terminal::Terminal;
use serde::Serialize;
use std::net::IpAddr;

/// One direction of one pair.
#[derive(Serialize, Clone)]
pub struct Cell {
    /// Whether they are in one group.
    pub wanted: bool,
    /// Ping to the IPv4 address, to the IPv6 address; TCP exchange with each.
    pub reached: [bool; 4],
}

impl Cell {
    /// All four probes say what they should.
    pub fn right(&self) -> bool {
        self.reached.iter().all(|reached| *reached == self.wanted)
    }
}

/// All pairs.
#[derive(Serialize, Clone)]
pub struct Matrix {
    /// Terminal and user of each row and column.
    pub seats: Vec<(usize, String)>,
    /// `None` is a terminal and itself.
    pub cells: Vec<Vec<Option<Cell>>>,
}

impl Matrix {
    /// Probes all pairs at once, with `payload` in every exchange.
    pub fn measure(
        terminals: &[Terminal],
        rows: &[Session],
        seats: &[(usize, &str)],
        payload: &str,
    ) -> anyhow::Result<Self> {
        let row =
            |user: &str| rows.iter().find(|row| row.user == user).with_context(|| format!("{user} is not logged in"));
        let cells = std::thread::scope(|scope| {
            let mut cells = Vec::new();
            for (from_terminal, from) in seats {
                let mut line = Vec::new();
                for (_, to) in seats {
                    if from == to {
                        line.push(None);
                        continue;
                    }
                    let (from_row, to_row) = (row(from)?, row(to)?);
                    let addresses: [IpAddr; 2] = [to_row.overlay4.parse()?, to_row.overlay6.parse()?];
                    let terminal = terminals.get(from_terminal - 1).context("no such terminal")?;
                    let wanted = from_row.group == to_row.group;
                    line.push(Some((wanted, scope.spawn(move || reach(terminal, from, addresses, payload)))));
                }
                cells.push(line);
            }
            let finish = |(wanted, thread): (bool, std::thread::ScopedJoinHandle<'_, anyhow::Result<[bool; 4]>>)| {
                let reached = thread.join().map_err(|_| anyhow::anyhow!("a probe panicked"))??;
                Ok(Cell { wanted, reached })
            };
            cells
                .into_iter()
                .map(|line| {
                    line.into_iter().map(|cell| cell.map(finish).transpose()).collect::<anyhow::Result<Vec<_>>>()
                })
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        let seats = seats.iter().map(|(terminal, user)| (*terminal, (*user).to_owned())).collect();
        Ok(Self { seats, cells })
    }

    /// Every cell is right.
    pub fn right(&self) -> bool {
        self.cells.iter().flatten().flatten().all(Cell::right)
    }
}

fn reach(from: &Terminal, user: &str, to: [IpAddr; 2], payload: &str) -> anyhow::Result<[bool; 4]> {
    let host = from.space();
    std::thread::scope(|scope| {
        let pings = to.map(|address| scope.spawn(move || probe::ping(host, user, address, PATIENCE)));
        let exchanges =
            to.map(|address| scope.spawn(move || probe::exchange(host, user, address, ECHO_PORT, payload, PATIENCE)));
        let mut reached = [false; 4];
        for (into, thread) in reached.iter_mut().zip(pings.into_iter().chain(exchanges)) {
            *into = thread.join().map_err(|_| anyhow::anyhow!("a probe panicked"))??;
        }
        Ok(reached)
    })
}
