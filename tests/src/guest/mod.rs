//! A workstation in a virtual machine: the distribution's own kernel with its WireGuard, packet filter and BPF, real udev, a screen and a
//! keyboard. Otherwise it is a [`crate::machine`]: the same image, and the product from its packages.
//!
//! There is no hardware virtualisation where these tests run, so the processor is emulated, and all is some ten times slower than it would be.
//! QEMU runs on a host ([`Space`]) and ends with it, in every case; its disk lies in the host's memory.

mod hand;
mod screen;

use crate::card::{InReader, PivCard};
use crate::lan::{Cable, Lan};
use crate::machine::{self, Console, ROOT};
use crate::process::Finished;
use crate::space::Space;
use crate::{installed, lan, office, paths, wait};
use anyhow::{Context, ensure};
use hand::Hand;
pub use hand::serve;
pub use screen::Monitor;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a machine may take to come up.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// How often a unit may be started again before it is given up.
const FALLS: u32 = 3;

/// How long a program in the machine may take.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// How long dpkg may take there: a minute goes by when the processors are emulated beside other work.
const PACKAGE_LIMIT: Duration = Duration::from_secs(240);

/// How long something on the screen may take.
const SCREEN_LIMIT: Duration = Duration::from_secs(60);

/// The disk, as large as it can become; what is not written takes no room.
const DISK: &str = "2G";

/// Names of the virtio ports.
const HAND: &str = "cug.hand";
const SLOT: &str = "cug.slot";

/// A virtual machine that runs.
pub struct Guest {
    hand: Hand,
    monitor: Mutex<Monitor>,
    console: Console,
    space: Space,
    /// Its cable.
    pub cable: Cable,
}

impl Guest {
    /// Boots machine number `number` (10.0.0.N), with the workstation's packages installed and not configured.
    ///
    /// # Errors
    /// When image or packages are missing, or the machine does not come up.
    pub fn boot(lan: &Lan, logs: &Path, number: u8) -> anyhow::Result<Self> {
        let name = format!("guest{number}");
        let space = Space::new(&name, logs)?;
        let cable = lan.plug(&space)?;
        machine::files(&space, machine::SUITE)?;
        machine::people(&space)?;
        installed::image(&space)?;
        network(&space, number)?;
        rig(&space)?;
        disk(&space)?;
        let mut console = Console::start(qemu(&space, number)?, &name, &logs.join(format!("{name}.console.log")))?;
        let hand = wait::until("QEMU", BOOT_LIMIT, || UnixStream::connect(space.path(socket(HAND))).ok())
            .and_then(Hand::new)
            .with_context(|| format!("see {name}.console.log"))?;
        let monitor = Mutex::new(Monitor::connect(&space.path(socket("monitor")))?);
        console.expect_login(BOOT_LIMIT)?;
        Ok(Self { hand, monitor, console, space, cable })
    }

    /// The host that carries it.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The serial line, with a login prompt.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Runs a program as root, outside of every login session.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<Finished> {
        self.hand.run(program, args, "", RUN_LIMIT)
    }

    /// Runs a shell command as root: what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn sh(&self, command: &str) -> anyhow::Result<String> {
        let done = self.hand.run("sh", &["-c", command], "", RUN_LIMIT)?;
        done.ok().with_context(|| format!("in {}: {command}", self.space.name()))
    }

    /// Runs dpkg, without questions.
    ///
    /// # Errors
    /// With what it says.
    pub fn dpkg(&self, args: &str) -> anyhow::Result<()> {
        let command = format!("DEBIAN_FRONTEND=noninteractive dpkg {args}");
        self.hand.run("sh", &["-c", &command], "", PACKAGE_LIMIT)?.ok().map(drop).context(command)
    }

    /// Writes a file of root's, readable by all.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, path: &str, content: &str) -> anyhow::Result<()> {
        self.hand.run("sh", &["-c", "cat >\"$0\"", path], content, RUN_LIMIT)?.ok().map(drop)
    }

    /// What a unit wrote to the journal.
    pub fn journal(&self, unit: &str) -> String {
        let finished = self.run("journalctl", &["--no-pager", "-o", "short-precise", "-u", unit]);
        finished.and_then(Finished::ok).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Waits until a unit is active.
    ///
    /// # Errors
    /// With its journal, when it does not come up, or only to fall again and again.
    pub fn wait_active(&self, unit: &str) -> anyhow::Result<()> {
        let state = || self.sh(&format!("systemctl show --property=ActiveState,NRestarts --value {unit}"));
        wait::until(unit, BOOT_LIMIT, || {
            let state = state().unwrap_or_default();
            let mut fields = state.split_whitespace();
            let falls = fields.clone().filter_map(|field| field.parse::<u32>().ok()).next().unwrap_or_default();
            if fields.any(|field| field == "active") {
                return Some(Ok(()));
            }
            (falls >= FALLS).then(|| Err(anyhow::anyhow!("{unit} ended {falls} times")))
        })
        .and_then(|up| up)
        .with_context(|| self.journal(unit))
    }

    /// Puts a card into the reader. pcscd is started by the first program that asks for it; this is that program.
    ///
    /// # Errors
    /// When there is no reader or it is occupied.
    pub fn insert(&self, card: PivCard) -> anyhow::Result<InReader> {
        self.sh("systemctl start pcscd.service")?;
        let there = || self.run("test", &["-S", office::READER]).is_ok_and(|finished| finished.ok().is_ok());
        wait::for_true("the reader", BOOT_LIMIT, there)?;
        InReader::insert(&self.space.path(socket(SLOT)), card)
    }

    /// The interfaces of tunnels.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn tunnels(&self) -> anyhow::Result<Vec<String>> {
        let names = self.sh("ls /sys/class/net")?;
        Ok(names.split_whitespace().filter(|name| name.starts_with("cug")).map(str::to_owned).collect())
    }

    /// Types at the keyboard.
    ///
    /// # Errors
    /// As [`Monitor::type_line`].
    pub fn type_line(&self, line: &str) -> anyhow::Result<()> {
        self.monitor().type_line(line)
    }

    /// Presses keys, by their names in QEMU (`ctrl-alt-f2`).
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn press(&self, key: &str) -> anyhow::Result<()> {
        self.monitor().command(&format!("sendkey {key}")).map(drop)
    }

    /// What the first virtual terminal shows, in text mode.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn screen(&self) -> anyhow::Result<String> {
        // Without the lines that are empty.
        self.sh("fold -w $(stty -F /dev/tty1 size | cut -d ' ' -f 2) </dev/vcs1 | sed 's/ *$//' | grep .")
    }

    /// Waits until the last line of the first virtual terminal ends with `text`: all that it shows.
    ///
    /// # Errors
    /// With what it shows, when that does not come.
    pub fn expect_screen(&self, text: &str) -> anyhow::Result<String> {
        let mut shown = String::new();
        wait::for_true(&format!("`{text}` on the screen"), SCREEN_LIMIT, || {
            shown = self.screen().unwrap_or_default();
            shown.trim_end().ends_with(text)
        })
        .with_context(|| shown.clone())?;
        Ok(shown)
    }

    /// Takes a picture of the screen, as a PNG file `name` in the directory of pictures: where it is.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn picture(&self, name: &str) -> anyhow::Result<PathBuf> {
        let inside = format!("/run/machine/{name}.png");
        self.monitor().picture(&inside)?;
        let to = paths::pictures()?.join(format!("{name}.png"));
        std::fs::copy(self.space.path(&inside), &to).context("the picture")?;
        Ok(to)
    }

    fn monitor(&self) -> std::sync::MutexGuard<'_, Monitor> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.sh("journalctl --no-pager -b -o short-precise | tail -n 400");
            let file = self.space.logs().join(format!("{}.journal", self.space.name()));
            let _ = std::fs::write(file, journal.unwrap_or_else(|error| format!("{error:#}")));
        }
    }
}

/// A socket of QEMU's, as the host names it.
fn socket(name: &str) -> String {
    format!("/run/machine/{name}.sock")
}

/// QEMU, with the serial line on its standard input and output.
fn qemu(space: &Space, number: u8) -> anyhow::Result<std::process::Command> {
    let mut command = space.command("qemu-system-x86_64")?;
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "std", "-M", "q35"]);
    command.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt",
        "-smp",
        "2",
        "-m",
        "640",
    ]);
    command.arg("-kernel").arg(format!("{ROOT}/boot/vmlinuz")).arg("-append");
    command.arg(
        "root=/dev/nvme0n1 rw console=tty0 console=ttyS0 net.ifnames=0 mitigations=off no_timer_check panic=-1 quiet",
    );
    command.args(["-drive", "file=/run/machine/disk,format=raw,if=none,id=disk,cache=unsafe"]);
    command.args(["-device", "nvme,drive=disk,serial=disk", "-device", "virtio-rng-pci"]);
    command.args(["-netdev", &format!("tap,id=lan,ifname={},script=no,downscript=no", lan::TAP)]);
    command.args(["-device", &format!("virtio-net-pci,netdev=lan,mac=52:54:00:00:00:{number:02x}")]);
    command.args(["-serial", "stdio", "-monitor", &format!("unix:{},server=on,wait=off", socket("monitor"))]);
    command.args(["-device", "virtio-serial-pci"]);
    for port in [HAND, SLOT] {
        command.args(["-chardev", &format!("socket,id={port},path={},server=on,wait=off", socket(port))]);
        command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
    }
    Ok(command)
}

/// A program without what only debuggers want, which would make the disk many times as large.
fn copy(space: &Space, built: &str, place: &str) -> anyhow::Result<()> {
    let from = paths::built(built)?;
    let to = format!("{ROOT}{place}");
    space.run("install", &["-D", "-m", "755", "/dev/null", &to])?.ok()?;
    space.run("strip", &["--strip-debug", "-o", &to, &from.to_string_lossy()])?.ok().map(drop).context(place.to_owned())
}

/// An address on the LAN at each boot, and no waiting for it.
fn network(space: &Space, number: u8) -> anyhow::Result<()> {
    let (address4, address6) = (lan::address4(number), lan::address6(number));
    let unit = format!(
        "[Match]\nName={}\n[Network]\nIPv6AcceptRA=no\n[Address]\nAddress={address4}/24\n\
         [Address]\nAddress={address6}/64\nDuplicateAddressDetection=none\n",
        lan::CARD
    );
    space.write(&format!("{ROOT}/etc/systemd/network/lan.network"), unit, 0o644)?;
    space.write(&format!("{ROOT}/etc/machine-id"), format!("{:032x}\n", u128::from(number) + 1), 0o444)?;
    space.write(&format!("{ROOT}/etc/hosts"), "127.0.0.1 localhost\n", 0o644)?;
    // With a machine ID it is not the first boot, which would ask questions on the console.
    let units = [ROOT, "systemctl", "--quiet", "enable", "systemd-networkd.service"];
    space.run("chroot", &units)?.ok()?;
    space.run("chroot", &[ROOT, "systemctl", "--quiet", "mask", "systemd-networkd-wait-online.service"])?.ok().map(drop)
}

/// The tests' own programs in the machine.
fn rig(space: &Space) -> anyhow::Result<()> {
    copy(space, "rig", "/usr/lib/cug-test/rig")?;
    copy(space, "libcug_ifd.so", "/usr/lib/cug-test/libcug_ifd.so")?;
    let reader = office::READER;
    for (unit, order) in [("hand", format!("hand {HAND}")), ("slot", format!("slot {SLOT} {reader}"))] {
        let text = format!(
            "[Unit]\nDescription=The tests' {unit} in this machine\n[Service]\nExecStart=/usr/lib/cug-test/rig {order}\n\
             [Install]\nWantedBy=multi-user.target\n"
        );
        space.write(&format!("{ROOT}/etc/systemd/system/cug-test-{unit}.service"), text, 0o644)?;
        let units = [ROOT, "systemctl", "--quiet", "enable", &format!("cug-test-{unit}.service")];
        space.run("chroot", &units)?.ok()?;
    }
    // After a minute without anybody who asks pcscd goes, and is started again by who does. A real card stays in its reader meanwhile; ours is a
    // connection that ends with it, and a minute is not much on an emulated processor.
    let stays = "[Service]\nExecStart=\nExecStart=/usr/sbin/pcscd --foreground\n";
    space.write(&format!("{ROOT}/etc/systemd/system/pcscd.service.d/stays.conf"), stays, 0o644)
}

/// The machine's files as a disk.
fn disk(space: &Space) -> anyhow::Result<()> {
    let made = space.run("mkfs.ext4", &["-q", "-F", "-m", "0", "-d", ROOT, "/run/machine/disk", DISK])?;
    made.ok().map(drop).context("the machine's disk")?;
    ensure!(
        space.path(format!("{ROOT}/boot/vmlinuz")).exists(),
        "the image has no kernel; make it anew with `make image`"
    );
    Ok(())
}
