//! What a process holds in its memory: all readable mappings, through /proc/PID/mem.

use anyhow::Context;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Something to look for.
pub struct Pattern {
    /// What it is, for people.
    pub name: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Pattern {
    /// A pattern.
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), bytes: bytes.to_vec() }
    }
}

/// One piece of a process's memory.
struct Region {
    start: u64,
    length: usize,
    name: String,
    writable: bool,
}

/// Mappings larger than this are not memory that a program of ours fills (sanitizers, reserved address space).
const LARGEST: usize = 1 << 30;

fn regions(pid: i32) -> anyhow::Result<Vec<Region>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("process {pid} is gone"))?;
    let region = |line: &str| {
        let mut fields = line.split_whitespace();
        let std::ops::Range { start, end } = range(fields.next()?)?;
        let permissions = fields.next()?;
        let name = fields.nth(3).unwrap_or("anonymous").to_owned();
        let length = usize::try_from(end - start).ok()?;
        let readable = permissions.starts_with('r') && !name.starts_with("[v") && length <= LARGEST;
        readable.then(|| Region { start, length, name, writable: permissions.contains('w') })
    };
    Ok(maps.lines().filter_map(region).collect())
}

/// Calls `look` with every readable mapping of the process and where it is.
fn each(pid: i32, mut look: impl FnMut(&Region, &[u8])) -> anyhow::Result<()> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut buffer = Vec::new();
    for region in regions(pid)? {
        buffer.resize(region.length, 0);
        // A mapping may go between the list and the read, or have holes (guard pages): read what can be read, page by page.
        if memory.read_exact_at(&mut buffer, region.start).is_err() {
            for (index, page) in buffer.chunks_mut(4096).enumerate() {
                if memory.read_exact_at(page, region.start + (index as u64) * 4096).is_err() {
                    page.fill(0);
                }
            }
        }
        look(&region, &buffer);
    }
    Ok(())
}

/// Which of the patterns the process holds, and where: `name at 0x.. (mapping)`, or nothing.
///
/// # Errors
/// When the process is gone or may not be read.
pub fn find(pid: i32, patterns: &[Pattern]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    each(pid, |region, bytes| {
        for pattern in patterns {
            for at in positions(bytes, &pattern.bytes) {
                found.push(format!("{} at {:#x} ({})", pattern.name, region.start + at as u64, region.name));
            }
        }
    })?;
    Ok(found)
}

/// Which of the places of [`find`] are in memory that may be swapped.
///
/// # Errors
/// When the process is gone, or the kernel does not say.
pub fn not_locked(pid: i32, found: &[String]) -> anyhow::Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut locked = Vec::new();
    let mut at = 0..0;
    for line in maps.lines() {
        if let Some(range) = line.split_whitespace().next().and_then(range) {
            at = range;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split_whitespace().any(|flag| flag == "lo")
        {
            locked.push(at.clone());
        }
    }
    let loose = |place: &&String| {
        let address = place.split_once(" at 0x").and_then(|(_, rest)| rest.split(' ').next());
        let address = address.and_then(|address| u64::from_str_radix(address, 16).ok());
        !address.is_some_and(|address| locked.iter().any(|range| range.contains(&address)))
    };
    Ok(found.iter().filter(loose).cloned().collect())
}

/// The first field of a line of /proc/PID/maps.
fn range(field: &str) -> Option<std::ops::Range<u64>> {
    let (start, end) = field.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// Looks for 32 bytes in the writable memory of the process for which `is_it` holds, among those that look random.
///
/// # Errors
/// When the process is gone or may not be read.
pub fn hunt(pid: i32, step: usize, mut is_it: impl FnMut(&[u8; 32]) -> bool) -> anyhow::Result<Option<[u8; 32]>> {
    let mut found = None;
    each(pid, |region, bytes| {
        if !region.writable || found.is_some() {
            return;
        }
        found = bytes
            .windows(32)
            .step_by(step)
            .filter_map(|window| window.try_into().ok())
            .find(|window: &&[u8; 32]| looks_random(window) && is_it(window))
            .copied();
    })?;
    Ok(found)
}

/// Random 32 bytes have 30 different values on average, and less than 22 once in a billion; pointers, text and zeros have fewer.
fn looks_random(bytes: &[u8; 32]) -> bool {
    let mut seen = [0_u64; 4];
    for &byte in bytes {
        seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }
    seen.iter().map(|word| word.count_ones()).sum::<u32>() >= 22
}

/// Whether `bytes` contain `wanted`.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    positions(bytes, wanted).next().is_some()
}

/// Where `wanted` begins in `bytes`.
pub fn positions<'a>(bytes: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        let (&first, rest) = wanted.split_first()?;
        while let Some(at) = bytes.get(from..)?.iter().position(|&byte| byte == first) {
            let at = from + at;
            from = at + 1;
            if bytes.get(from..)?.starts_with(rest) {
                return Some(at);
            }
        }
        None
    })
}
