//! The small programs that the harness runs inside its namespaces. Not for people: see `cug_tests`.

mod enter;
mod init;
mod net;
mod ns;
mod pty;
mod trickle;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["init", name, log] => init::run(name, log),
        ["enter", pid, rest @ ..] => enter::run(pid, rest),
        ["pty", rest @ ..] => pty::run(rest),
        ["echo", port] => net::echo(port),
        ["exchange", address, limit_ms, payload] => net::exchange(address, limit_ms, payload),
        ["capture", interface] => net::capture(interface),
        ["local", path] => net::local(path),
        ["trickle", address] => trickle::run(address),
        ["wire", near, far, seed, faults @ ..] => wire::run([near, far], seed, faults),
        _ => Err(anyhow::anyhow!("rig: init | enter | pty | echo | exchange | capture | local | trickle | wire")),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("rig: {error:#}");
            ExitCode::from(125)
        }
    }
}
