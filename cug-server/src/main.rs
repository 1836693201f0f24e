//! `cug-server`: the management server and the administrator's command. See [`cug_server::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    cug_server::cli::main()
}
