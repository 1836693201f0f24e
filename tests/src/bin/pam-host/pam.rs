//! libpam's C interface (pam(3), pam_conv(3)).

use crate::talk::Talk;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

const SUCCESS: c_int = 0;
const CONV_ERR: c_int = 19;
const BUF_ERR: c_int = 5;
const ITEM_TTY: c_int = 3;
const ITEM_RHOST: c_int = 4;
const NEW_AUTHTOK_REQD: c_int = 12;
const CHANGE_EXPIRED_AUTHTOK: c_int = 0x20;
const ESTABLISH_CRED: c_int = 2;
const DELETE_CRED: c_int = 4;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

type Converse = extern "C" fn(c_int, *const *const Message, *mut *mut Response, *mut c_void) -> c_int;

#[repr(C)]
struct Conversation {
    converse: Converse,
    data: *mut c_void,
}

#[repr(C)]
struct Handle {
    private: [u8; 0],
}

#[link(name = "pam")]
unsafe extern "C" {
    fn pam_start(
        service: *const c_char,
        user: *const c_char,
        conversation: *const Conversation,
        handle: *mut *mut Handle,
    ) -> c_int;
    fn pam_end(handle: *mut Handle, status: c_int) -> c_int;
    fn pam_set_item(handle: *mut Handle, item: c_int, value: *const c_void) -> c_int;
    fn pam_authenticate(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_chauthtok(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_acct_mgmt(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_setcred(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_open_session(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_close_session(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_strerror(handle: *mut Handle, code: c_int) -> *const c_char;
}

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
}

/// A PAM transaction.
pub struct Stack<'t> {
    handle: *mut Handle,
    status: c_int,
    /// libpam keeps a pointer to it.
    _conversation: Box<Conversation>,
    /// The conversation's data is a pointer to this.
    _talk: std::marker::PhantomData<&'t ()>,
}

fn text(value: Option<&str>) -> Option<CString> {
    value.and_then(|value| CString::new(value).ok())
}

impl<'t> Stack<'t> {
    /// Starts the transaction that the script asks for. `talk` must stay where it is until [`Stack::end`].
    pub fn start(talk: &mut Talk) -> Result<Self, c_int> {
        let conversation = Box::new(Conversation { converse, data: ptr::from_mut(talk).cast() });
        let service = text(Some(&talk.service)).ok_or(CONV_ERR)?;
        let user = text(talk.user.as_deref());
        let mut handle = ptr::null_mut();
        let user_pointer = user.as_ref().map_or(ptr::null(), |user| user.as_ptr());
        // SAFETY: valid strings (or null for the user), a conversation that lives in `Self`, and room for a handle.
        let code = unsafe { pam_start(service.as_ptr(), user_pointer, &raw const *conversation, &raw mut handle) };
        if code != SUCCESS {
            return Err(code);
        }
        for (item, value) in [(ITEM_TTY, text(talk.tty.as_deref())), (ITEM_RHOST, text(talk.rhost.as_deref()))] {
            if let Some(value) = value {
                // SAFETY: a live handle and a valid string, which libpam copies.
                unsafe { pam_set_item(handle, item, value.as_ptr().cast()) };
            }
        }
        Ok(Self { handle, status: SUCCESS, _conversation: conversation, _talk: std::marker::PhantomData })
    }

    /// Makes one call and reports its result. Whether it succeeded.
    pub fn step(&mut self, step: Step, talk: &mut Talk) -> bool {
        // SAFETY: a live handle. The conversation may be called meanwhile; `talk` is not used here until the call is back.
        self.status = unsafe {
            match step {
                Step::Authenticate => pam_authenticate(self.handle, 0),
                Step::Account => pam_acct_mgmt(self.handle, 0),
                Step::ChangeExpired => pam_chauthtok(self.handle, CHANGE_EXPIRED_AUTHTOK),
                Step::ChangePassword => pam_chauthtok(self.handle, 0),
                Step::Credentials => pam_setcred(self.handle, ESTABLISH_CRED),
                Step::OpenSession => pam_open_session(self.handle, 0),
                Step::CloseSession => pam_close_session(self.handle, 0),
                Step::DropCredentials => pam_setcred(self.handle, DELETE_CRED),
            }
        };
        // SAFETY: a live handle; the answer is a constant string of libpam.
        let why = unsafe { CStr::from_ptr(pam_strerror(self.handle, self.status)) };
        talk.result(step.name(), self.status, &why.to_string_lossy());
        if step == Step::Account && self.status == NEW_AUTHTOK_REQD {
            // As login(1), su and sudo do: the password is changed, and the login goes on.
            return self.step(Step::ChangeExpired, talk);
        }
        self.status == SUCCESS
    }

    /// Ends the transaction: the modules drop their data.
    pub fn end(self) {
        // SAFETY: a live handle, not used again.
        unsafe { pam_end(self.handle, self.status) };
    }
}

extern "C" fn converse(
    count: c_int,
    messages: *const *const Message,
    responses: *mut *mut Response,
    data: *mut c_void,
) -> c_int {
    let Ok(count) = usize::try_from(count) else { return CONV_ERR };
    // SAFETY: calloc of libc, as libpam asks for: it is freed by the module.
    let answers: *mut Response = unsafe { libc::calloc(count, size_of::<Response>()) }.cast();
    if answers.is_null() {
        return BUF_ERR;
    }
    // SAFETY: `data` is the Talk of Stack::start, which nobody else uses while libpam is running.
    let talk = unsafe { &mut *data.cast::<Talk>() };
    for index in 0..count {
        // SAFETY: libpam passes an array of `count` pointers to messages with NUL-terminated texts (Linux-PAM's form of it).
        let message = unsafe { &**messages.add(index) };
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(message.text) }.to_string_lossy();
        let answer = match message.style {
            1 => talk.prompt("hidden", &text),
            2 => talk.prompt("shown", &text),
            3 => {
                talk.message("error", &text);
                continue;
            }
            _ => {
                talk.message("info", &text);
                continue;
            }
        };
        let Some(mut answer) = answer else {
            // SAFETY: nothing was handed over yet; what was answered before is leaked, in a program that is about to fail.
            unsafe { libc::free(answers.cast()) };
            return CONV_ERR;
        };
        answer.reserve_exact(1);
        answer.push(0);
        // SAFETY: a NUL-terminated string; strdup's copy is freed by the module.
        let copy = unsafe { libc::strdup(answer.as_ptr().cast()) };
        // SAFETY: `index` is below `count`.
        unsafe { (*answers.add(index)).text = copy };
    }
    // SAFETY: libpam gives room for one pointer.
    unsafe { *responses = answers };
    SUCCESS
}
