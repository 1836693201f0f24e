//! What the module needs of the program that called it: items, conversation, log.

use crate::ffi;
use cug_proto::{
    id::UserId,
    local::CardBinding,
    message::{DenyReason, Fingerprint},
    secret::SecretBytes,
    waiting::HandOver,
};
use pam::{
    constants::{
        PAM_ERROR_MSG, PAM_PROMPT_ECHO_OFF, PAM_SILENT, PAM_TEXT_INFO, PamFlag, PamMessageStyle, PamResultCode,
    },
    conv::Conv,
    items::{AuthTok, OldAuthTok, RHost, Service, Tty},
    module::{PamHandle, PamResult},
};
use std::{ffi::CStr, time::Duration};

/// Long enough to read a sentence; libpam varies it by a quarter.
const LINGER: Duration = Duration::from_secs(4);

/// The program that called, as the login sees it. Blocks as long as the person does.
pub trait Host {
    /// PAM_USER, asked for if it is not set.
    fn user(&mut self) -> PamResult<String>;
    /// PAM_RHOST.
    fn remote_host(&self) -> Option<String>;
    /// PAM_SERVICE, as far as it can be printed; at most 64 characters.
    fn service(&self) -> String;
    /// PAM_TTY, likewise.
    fn tty(&self) -> String;
    /// The program was started by root, not only with root's rights: an administrator, a script of one, or a login program.
    fn started_by_root(&self) -> bool;
    /// A line for the person, unless PAM_SILENT.
    fn info(&mut self, line: &str);
    /// The sentence about what went wrong, unless PAM_SILENT.
    fn error(&mut self, line: &str);
    /// If this login fails, the program is told some seconds later, so that what was said can be read.
    fn linger(&mut self);
    /// Asks for a secret, without echo.
    fn prompt(&mut self, prompt: &str) -> PamResult<SecretBytes>;
    /// PAM_AUTHTOK of an earlier module.
    fn earlier_password(&self) -> Option<SecretBytes>;
    /// Sets PAM_AUTHTOK for later modules.
    fn hand_password_on(&mut self, password: &SecretBytes) -> PamResult<()>;
    /// PAM_OLDAUTHTOK: the present password, if an earlier module asked for it.
    fn old_password(&self) -> Option<SecretBytes>;
    /// Keeps on the handle what was typed, until the password is changed or the handle ends.
    fn keep(&mut self, kept: Kept) -> PamResult<()>;
    /// Takes what was kept off the handle.
    fn take_kept(&mut self) -> Option<Kept>;
    /// Keeps on the handle what was typed while no server could be reached, until the session begins or the handle ends.
    fn keep_for_later(&mut self, later: Later) -> PamResult<()>;
    /// Takes it off the handle.
    fn take_for_later(&mut self) -> Option<Later>;
    /// A variable for the session's environment.
    fn put_env(&mut self, name: &str, value: &str) -> PamResult<()>;
    /// Remembers on the handle what became of the login.
    fn mark(&mut self, marker: Marker) -> PamResult<()>;
    /// What was remembered last.
    fn marker(&self) -> Option<Marker>;
    /// A line to syslog; the priority is one of `LOG_*`.
    fn log(&mut self, priority: i32, line: &str);
    /// From now on LOG_DEBUG lines are not dropped.
    fn log_debug_lines(&mut self);
}

/// What became of a login on this handle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marker {
    /// Whose login.
    pub user: UserId,
    /// What became of it.
    pub result: Marked,
}

/// What was typed for a login whose password must be changed first. Wiped on drop.
pub struct Kept {
    /// Whose.
    pub user: UserId,
    /// The password that must be changed.
    pub password: SecretBytes,
    /// PIN or passphrase, if the card asked for it.
    pub pin: Option<SecretBytes>,
    /// The card that `pin` is for.
    pub card: Fingerprint,
}

/// What was typed while no server could be reached. Wiped on drop.
pub struct Later {
    /// Whose.
    pub user: UserId,
    /// Password, and PIN or passphrase if the card asked for it.
    pub typed: HandOver,
    /// The card that was there.
    pub card: CardBinding,
}

/// See [`Marker`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marked {
    /// Card and password were right.
    Authenticated,
    /// They were, and the password must be changed before there is a session.
    MustChange,
    /// They were, or at least the card, and the server refuses the member.
    Refused(DenyReason),
    /// It failed.
    Failed,
    /// No server could be reached; other modules decide.
    Away,
}

/// A handle of libpam.
pub struct PamHost<'a> {
    handle: &'a mut PamHandle,
    silent: bool,
    debug: bool,
}

impl<'a> PamHost<'a> {
    /// For one call of an entry point with these flags.
    pub fn new(handle: &'a mut PamHandle, flags: PamFlag) -> Self {
        Self { handle, silent: flags & PAM_SILENT != 0, debug: false }
    }

    /// Nobody answers a line; whether it could be shown is not known, and some hosts return nothing where the interface asks for an empty answer.
    fn tell(&self, style: PamMessageStyle, line: &str) {
        if !self.silent
            && let Ok(Some(conversation)) = self.handle.get_item::<Conv<'_>>()
        {
            let _shown = conversation.send(style, line);
        }
    }
}

impl Host for PamHost<'_> {
    fn user(&mut self) -> PamResult<String> {
        self.handle.get_user(Some("User ID: "))
    }

    fn remote_host(&self) -> Option<String> {
        let item = self.handle.get_item::<RHost<'_>>().ok().flatten()?;
        Some(item.to_string_lossy().into_owned())
    }

    fn service(&self) -> String {
        self.handle.get_item::<Service<'_>>().ok().flatten().map_or_else(String::new, |item| printable(item.0))
    }

    fn tty(&self) -> String {
        self.handle.get_item::<Tty<'_>>().ok().flatten().map_or_else(String::new, |item| printable(item.0))
    }

    fn started_by_root(&self) -> bool {
        nix::unistd::getuid().is_root()
    }

    fn linger(&mut self) {
        if let Err(code) = ffi::fail_delay(self.handle, LINGER) {
            self.log(libc::LOG_DEBUG, &format!("no delay: {code:?}"));
        }
    }

    fn info(&mut self, line: &str) {
        self.tell(PAM_TEXT_INFO, line);
    }

    fn error(&mut self, line: &str) {
        self.tell(PAM_ERROR_MSG, line);
    }

    fn prompt(&mut self, prompt: &str) -> PamResult<SecretBytes> {
        let conversation = self.handle.get_item::<Conv<'_>>()?.ok_or(PamResultCode::PAM_CONV_ERR)?;
        // The answer is wiped by pam-bindings: the host's copy before it is freed, its own on drop.
        let answer = conversation.send(PAM_PROMPT_ECHO_OFF, prompt)?.ok_or(PamResultCode::PAM_CONV_ERR)?;
        SecretBytes::copy_from(answer.as_bytes()).ok_or(PamResultCode::PAM_BUF_ERR)
    }

    fn earlier_password(&self) -> Option<SecretBytes> {
        SecretBytes::copy_from(self.handle.get_item::<AuthTok<'_>>().ok().flatten()?.as_bytes())
    }

    fn hand_password_on(&mut self, password: &SecretBytes) -> PamResult<()> {
        ffi::set_authtok(self.handle, password)
    }

    fn old_password(&self) -> Option<SecretBytes> {
        SecretBytes::copy_from(self.handle.get_item::<OldAuthTok<'_>>().ok().flatten()?.as_bytes())
    }

    fn keep(&mut self, kept: Kept) -> PamResult<()> {
        ffi::set_kept(self.handle, kept)
    }

    fn take_kept(&mut self) -> Option<Kept> {
        ffi::take_kept(self.handle)
    }

    fn keep_for_later(&mut self, later: Later) -> PamResult<()> {
        ffi::set_later(self.handle, later)
    }

    fn take_for_later(&mut self) -> Option<Later> {
        ffi::take_later(self.handle)
    }

    fn put_env(&mut self, name: &str, value: &str) -> PamResult<()> {
        ffi::put_env(self.handle, name, value)
    }

    fn mark(&mut self, marker: Marker) -> PamResult<()> {
        ffi::set_marker(self.handle, marker)
    }

    fn marker(&self) -> Option<Marker> {
        ffi::marker(self.handle)
    }

    fn log(&mut self, priority: i32, line: &str) {
        if self.debug || priority != libc::LOG_DEBUG {
            ffi::syslog(self.handle, priority, line);
        }
    }

    fn log_debug_lines(&mut self) {
        self.debug = true;
    }
}

/// Printable ASCII of an item that only names something, at most 64 characters.
fn printable(item: &CStr) -> String {
    let shown = |&b: &u8| if b.is_ascii_graphic() { char::from(b) } else { '?' };
    item.to_bytes().iter().take(64).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_made_printable_and_short() {
        assert_eq!(printable(c"lo\ngin\xff"), "lo?gin?");
        assert_eq!(printable(&std::ffi::CString::new("x".repeat(100)).unwrap()).len(), 64);
    }
}
