//! Takes the guard away from a running terminal and puts it back, from outside: the product has no switch for that. The programs are detached from
//! the cgroup tree and attached again as they are, the table of the packet filter is removed and loaded again from its own listing. And sets up in its
//! place what does nothing.

use anyhow::{Context, ensure};
use cug_tests::process;
use cug_tests::space::Space;
use cugd::guard::bpf::{self, Link, Program};
use cugd::guard::plan::Plan;
use cugd::guard::program::{self, Direction};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Commands of bpf(2), from `linux/bpf.h`.
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const LINK_CREATE: libc::c_long = 28;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_DETACH: libc::c_long = 34;

/// For nft.
const LIMIT: Duration = Duration::from_secs(10);

/// The table of the guard.
const TABLE: [&str; 2] = ["inet", "cug"];

fn call(command: libc::c_long, words: [u32; 4]) -> io::Result<i32> {
    // SAFETY: each of these commands reads words of 32 bits from the address, and the array lives over the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(&words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A program of the guard.
struct Piece {
    program: OwnedFd,
    attach_type: u32,
    /// How it is attached at the moment.
    link: Option<OwnedFd>,
}

/// The guard of one terminal.
pub(super) struct Guard<'a> {
    space: &'a Space,
    cgroup: File,
    pieces: Vec<Piece>,
    table: String,
}

impl<'a> Guard<'a> {
    /// That of the tunnel which this process holds on this host.
    pub(super) fn of(space: &'a Space, cugd: i32) -> anyhow::Result<Self> {
        let mut pieces = Vec::new();
        for entry in fs::read_dir(format!("/proc/{cugd}/fdinfo"))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok());
            let (Some(link), Some(program)) = (value("link_id:"), value("prog_id:")) else { continue };
            let attach_type = value("attach_type:").context("a link without a type")?;
            let program = owned(call(PROG_GET_FD_BY_ID, [program, 0, 0, 0]).context("a program")?);
            let link = Some(owned(call(LINK_GET_FD_BY_ID, [link, 0, 0, 0]).context("a link")?));
            pieces.push(Piece { program, attach_type, link });
        }
        ensure!(pieces.len() == 2, "the guard has {} programs, not one for each direction", pieces.len());
        let table = space.run("nft", &["list", "table", TABLE[0], TABLE[1]])?.ok()?;
        Ok(Self { space, cgroup: bpf::cgroup_root()?, pieces, table })
    }

    /// Takes it away.
    pub(super) fn take_away(&mut self) -> anyhow::Result<()> {
        for piece in &mut self.pieces {
            if let Some(link) = piece.link.take() {
                call(LINK_DETACH, [number(&link), 0, 0, 0]).context("detaching a program")?;
            }
        }
        self.space.run("nft", &["delete", "table", TABLE[0], TABLE[1]])?.ok().map(drop)
    }

    /// Puts it back.
    pub(super) fn put_back(&mut self) -> anyhow::Result<()> {
        for piece in &mut self.pieces {
            let words = [number(&piece.program), number(&self.cgroup), piece.attach_type, 0];
            piece.link = Some(owned(call(LINK_CREATE, words).context("attaching a program")?));
        }
        let mut nft = self.space.command("nft")?;
        nft.args(["-f", "-"]);
        process::run(nft, self.table.as_bytes(), LIMIT)?.ok().map(drop)
    }
}

/// A table with chains at the guard's places, and nothing in them.
const CHAINS: &str = "table inet blank {
    chain input { type filter hook input priority filter; policy accept; }
    chain output { type filter hook output priority filter; policy accept; }
    chain forward { type filter hook forward priority filter; policy accept; }
}
";

/// The least that a guard at the same places can be: programs that let everything pass, and chains without rules.
pub(super) struct Blank<'a> {
    space: &'a Space,
    links: [Link; 2],
}

impl<'a> Blank<'a> {
    /// Sets it up for one terminal.
    pub(super) fn set_up(space: &'a Space) -> anyhow::Result<Self> {
        let cgroup = bpf::cgroup_root()?;
        let link = |direction| -> anyhow::Result<Link> {
            let code = program::assemble(&Plan::default(), direction, None).context("a program that passes all")?;
            Ok(Link::attach(&cgroup, Program::load(&code, direction)?)?)
        };
        let links = [link(Direction::Ingress)?, link(Direction::Egress)?];
        let mut nft = space.command("nft")?;
        nft.args(["-f", "-"]);
        process::run(nft, CHAINS.as_bytes(), LIMIT)?.ok()?;
        Ok(Self { space, links })
    }

    /// Removes it.
    pub(super) fn take_down(self) -> anyhow::Result<()> {
        self.links.into_iter().try_for_each(Link::remove)?;
        self.space.run("nft", &["delete", "table", "inet", "blank"])?.ok().map(drop)
    }
}
