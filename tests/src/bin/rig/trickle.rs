//! A TCP connection that is in use for as long as the test wants.

use anyhow::{Context, bail};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two pieces, and the size of a piece in bytes.
const PIECE: (Duration, usize) = (Duration::from_millis(5), 512);

/// The longest time that the connection may stand still. TCP doubles its pause with each try that is lost, there or back. On a wire that loses 28 of 100
/// tries six in a row were seen now and then, a pause of 15 s, and eight, of 50 s; ten would be 200 s.
pub const STILL: Duration = Duration::from_secs(150);

/// Sends to the echo server at `address` over one connection, until standard input ends; then checks that every byte came back in order.
pub fn run(address: &str) -> anyhow::Result<u8> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, STILL).with_context(|| address.to_string())?;
    stream.set_read_timeout(Some(STILL))?;
    stream.set_write_timeout(Some(STILL))?;
    let over = Arc::new(AtomicBool::new(false));
    let (told, main) = (Arc::clone(&over), std::thread::current());
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Release);
        main.unpark();
    });
    println!("connected");
    let mut said = Vec::new();
    while !over.load(Ordering::Acquire) {
        let at = said.len() / PIECE.1;
        let piece: Vec<u8> = (0..PIECE.1).map(|n| (at.wrapping_mul(31) ^ n) as u8).collect();
        stream.write_all(&piece).context("the connection stands still or is broken")?;
        said.extend_from_slice(&piece);
        std::thread::park_timeout(PIECE.0);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the answer")?;
    if answer.strip_prefix(b"echo:") != Some(&said) {
        bail!("{} bytes went out, {} came back, or others", said.len(), answer.len());
    }
    println!("{} bytes", said.len());
    Ok(0)
}
