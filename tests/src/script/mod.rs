//! Ends of the protocol that follow a test's script: a terminal that misbehaves, and a server that does.
//!
//! Both use the same messages and key schedule as the product (`cug-proto`), and none of its state machines.

pub mod authority;
pub mod client;
pub mod server;
pub mod stream;

/// Random bytes.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
