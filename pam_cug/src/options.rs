//! The module's arguments in the PAM file. Described for people in the crate's documentation.

use crate::host::Host;
use cug_proto::local::SOCKET_PATH;
use std::{ffi::CStr, path::PathBuf};

/// Valid options.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Users who do not log in with a card, and groups as `@GROUP`.
    pub exempt: Vec<String>,
    /// Logins from other hosts use the card in the local reader.
    pub remote_allowed: bool,
    /// cugd's socket, absolute.
    pub socket: PathBuf,
    /// Where the password comes from.
    pub password: PasswordSource,
    /// The new password is the one that an earlier module asked for.
    pub use_authtok: bool,
    /// Who is no member is asked for a new password too, for later modules that do not ask.
    pub ask_others: bool,
    /// More lines to syslog.
    pub debug: bool,
}

/// Where the password comes from.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum PasswordSource {
    /// The user types it.
    Ask,
    /// From an earlier module if there is one, else typed.
    EarlierOrAsk,
    /// From an earlier module only.
    Earlier,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            exempt: Vec::new(),
            remote_allowed: false,
            socket: SOCKET_PATH.into(),
            password: PasswordSource::Ask,
            use_authtok: false,
            ask_others: false,
            debug: false,
        }
    }
}

impl Options {
    /// From the arguments as libpam passes them; what is not understood goes to the log, and the safe default stays.
    pub fn of(args: &[&CStr], host: &mut dyn Host) -> Self {
        let (options, complaints) = Self::parse(args.iter().map(|arg| arg.to_str().unwrap_or("(not UTF-8)")));
        for argument in complaints {
            host.log(libc::LOG_ERR, &format!("argument not understood and ignored: {argument}"));
        }
        if options.debug {
            host.log_debug_lines();
        }
        options
    }

    /// The options, and the arguments that were not understood.
    pub fn parse<'a>(args: impl Iterator<Item = &'a str>) -> (Self, Vec<&'a str>) {
        let mut options = Self::default();
        let complaints = args.filter(|arg| options.set(arg).is_none()).collect();
        (options, complaints)
    }

    fn set(&mut self, arg: &str) -> Option<()> {
        match arg.split_once('=') {
            Some(("exempt", names)) => {
                let named = |name: &&str| !name.strip_prefix('@').unwrap_or(name).is_empty();
                self.exempt.extend(names.split(',').filter(named).map(str::to_owned));
            }
            Some(("remote", "ignore")) => self.remote_allowed = false,
            Some(("remote", "allow")) => self.remote_allowed = true,
            Some(("socket", path)) if path.starts_with('/') => self.socket = path.into(),
            None if arg == "use_authtok" => self.use_authtok = true,
            None if arg == "ask_others" => self.ask_others = true,
            None if arg == "debug" => self.debug = true,
            None if arg == "use_first_pass" => self.password = PasswordSource::Earlier,
            None if arg == "try_first_pass" => self.password = PasswordSource::EarlierOrAsk,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Options, Vec<&str>) {
        Options::parse(line.split_whitespace())
    }

    #[test]
    fn every_option_is_understood() {
        let (options, complaints) = parse(
            "exempt=kiosk,@wheel exempt=backup remote=allow socket=/tmp/s debug try_first_pass use_authtok ask_others",
        );
        assert!(complaints.is_empty());
        assert_eq!(
            options,
            Options {
                exempt: vec!["kiosk".into(), "@wheel".into(), "backup".into()],
                remote_allowed: true,
                socket: "/tmp/s".into(),
                password: PasswordSource::EarlierOrAsk,
                use_authtok: true,
                ask_others: true,
                debug: true,
            }
        );
        assert_eq!(parse("use_first_pass").0.password, PasswordSource::Earlier);
    }

    #[test]
    fn a_slip_changes_nothing_and_is_told() {
        for slip in ["exmept=kiosk", "remote=yes", "socket=relative", "debug=1", "exempt", "", "use_first_pass=1"] {
            assert_eq!(Options::parse(std::iter::once(slip)), (Options::default(), vec![slip]), "{slip:?}");
        }
        assert_eq!(parse("exempt=,,@").0.exempt, Vec::<String>::new());
    }
}
