//! The calls of a login program, in their order.

use crate::talk::Talk;
use cug_tests::libpam::{Call, Handle, Item, code};

/// PAM_CHANGE_EXPIRED_AUTHTOK, PAM_ESTABLISH_CRED, PAM_DELETE_CRED.
const CHANGE_EXPIRED_AUTHTOK: i32 = 0x20;
const ESTABLISH_CRED: i32 = 2;
const DELETE_CRED: i32 = 4;

/// One call into the stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Authenticate,
    Account,
    ChangeExpired,
    ChangePassword,
    Credentials,
    OpenSession,
    CloseSession,
    DropCredentials,
}

impl Step {
    /// The order of login(1).
    pub const LOGIN: [Self; 4] = [Self::Authenticate, Self::Account, Self::Credentials, Self::OpenSession];
    /// And back.
    pub const LOGOUT: [Self; 2] = [Self::CloseSession, Self::DropCredentials];

    /// libpam's name without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authenticate => "authenticate",
            Self::Account => "acct_mgmt",
            Self::ChangeExpired | Self::ChangePassword => "chauthtok",
            Self::Credentials => "setcred",
            Self::OpenSession => "open_session",
            Self::CloseSession => "close_session",
            Self::DropCredentials => "setcred_delete",
        }
    }

    fn call(self) -> (Call, i32) {
        match self {
            Self::Authenticate => (Call::Authenticate, 0),
            Self::Account => (Call::Account, 0),
            Self::ChangeExpired => (Call::ChangeToken, CHANGE_EXPIRED_AUTHTOK),
            Self::ChangePassword => (Call::ChangeToken, 0),
            Self::Credentials => (Call::Credentials, ESTABLISH_CRED),
            Self::OpenSession => (Call::OpenSession, 0),
            Self::CloseSession => (Call::CloseSession, 0),
            Self::DropCredentials => (Call::Credentials, DELETE_CRED),
        }
    }
}

/// The PAM transaction of a script.
pub struct Stack(Handle<Talk>);

impl Stack {
    /// Starts what the script asks for.
    pub fn start(talk: Talk) -> Result<Self, i32> {
        let (service, user) = (talk.service.clone(), talk.user.clone());
        let (tty, rhost) = (talk.tty.clone(), talk.rhost.clone());
        let mut handle = Handle::start(&service, user.as_deref(), talk)?;
        for (item, value) in [(Item::Tty, tty), (Item::RemoteHost, rhost)] {
            if let Some(value) = value {
                handle.set(item, &value);
            }
        }
        Ok(Self(handle))
    }

    /// The conversation, between the calls.
    pub fn talk(&mut self) -> &mut Talk {
        self.0.person()
    }

    /// Makes one call and reports its result. Whether it succeeded.
    pub fn step(&mut self, step: Step) -> bool {
        let (call, flags) = step.call();
        let result = self.0.call(call, flags);
        let words = self.0.words(result);
        self.talk().result(step.name(), result, &words);
        if step == Step::Account && result == code::NEW_AUTHTOK_REQD {
            // As login(1), su and sudo do: the password is changed, and the login goes on.
            return self.step(Step::ChangeExpired);
        }
        result == code::SUCCESS
    }

    /// Ends the transaction: the modules drop their data.
    pub fn end(self) {
        self.0.end().end();
    }
}
