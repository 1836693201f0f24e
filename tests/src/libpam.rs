//! libpam's C interface (pam(3), pam_conv(3)), as a login program uses it. The two programs that play one are `pam-host` and `pam-corners`.
//!
//! No copy of an answer is kept here, and what this module makes of it is wiped: the memory of `pam-host` is searched for secrets.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use zeroize::Zeroizing;

/// PAM's results, as far as programs of ours look at them.
pub mod code {
    /// PAM_SUCCESS.
    pub const SUCCESS: i32 = 0;
    /// PAM_BUF_ERR.
    pub const BUF_ERR: i32 = 5;
    /// PAM_NEW_AUTHTOK_REQD.
    pub const NEW_AUTHTOK_REQD: i32 = 12;
    /// PAM_CONV_ERR.
    pub const CONV_ERR: i32 = 19;
}

/// A line that PAM shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A question; what is typed is not shown.
    Hidden,
    /// A question; what is typed is shown.
    Shown,
    /// An error message.
    Error,
    /// Any other message.
    Info,
}

/// What the conversation does when it is asked.
pub enum Answer {
    /// The answer, without NUL bytes.
    Text(Zeroizing<Vec<u8>>),
    /// PAM_CONV_ERR.
    Error,
    /// Success, and no array of responses.
    NoResponses,
    /// A response without a text.
    NoText,
}

/// Whoever sits before the login program.
pub trait Person {
    /// PAM asks something ([`Style::Hidden`] or [`Style::Shown`]).
    fn ask(&mut self, style: Style, text: &str) -> Answer;
    /// PAM says something.
    fn hear(&mut self, style: Style, text: &str);
}

/// A PAM item that is a string.
#[derive(Clone, Copy)]
pub enum Item {
    /// PAM_TTY.
    Tty = 3,
    /// PAM_RHOST.
    RemoteHost = 4,
}

/// An entry of PAM.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// pam_authenticate(3).
    Authenticate,
    /// pam_acct_mgmt(3).
    Account,
    /// pam_setcred(3).
    Credentials,
    /// pam_open_session(3).
    OpenSession,
    /// pam_close_session(3).
    CloseSession,
    /// pam_chauthtok(3).
    ChangeToken,
}

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

#[repr(C)]
struct Conversation {
    converse: extern "C" fn(c_int, *const *const Message, *mut *mut Response, *mut c_void) -> c_int,
    data: *mut c_void,
}

#[repr(C)]
struct Raw {
    private: [u8; 0],
}

#[link(name = "pam")]
unsafe extern "C" {
    fn pam_start(
        service: *const c_char,
        user: *const c_char,
        conversation: *const Conversation,
        handle: *mut *mut Raw,
    ) -> c_int;
    fn pam_end(handle: *mut Raw, status: c_int) -> c_int;
    fn pam_set_item(handle: *mut Raw, item: c_int, value: *const c_void) -> c_int;
    fn pam_authenticate(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_chauthtok(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_acct_mgmt(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_setcred(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_open_session(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_close_session(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_getenv(handle: *mut Raw, name: *const c_char) -> *const c_char;
    fn pam_strerror(handle: *mut Raw, code: c_int) -> *const c_char;
}

/// A PAM transaction. Its end, by [`Handle::end`] or when it is dropped, is when the modules drop their data.
pub struct Handle<P: Person> {
    raw: *mut Raw,
    status: c_int,
    /// The conversation's data, which libpam has too: reached by this pointer only, and never while libpam is running. From a box.
    person: NonNull<P>,
}

impl<P: Person> Handle<P> {
    /// Begins one with `person` before it.
    ///
    /// # Errors
    /// libpam's code, and [`code::CONV_ERR`] for names with a NUL byte.
    pub fn start(service: &str, user: Option<&str>, person: P) -> Result<Self, i32> {
        let service = CString::new(service).map_err(|_| code::CONV_ERR)?;
        let user = user.map(CString::new).transpose().map_err(|_| code::CONV_ERR)?;
        let person = NonNull::from(Box::leak(Box::new(person)));
        let mut handle = Self { raw: ptr::null_mut(), status: code::SUCCESS, person };
        let conversation = Conversation { converse: converse::<P>, data: person.as_ptr().cast() };
        let user = user.as_ref().map_or(ptr::null(), |user| user.as_ptr());
        // SAFETY: valid strings (or null for the user), a conversation that libpam copies and whose data lives as long as `handle`, room for a handle.
        let code = unsafe { pam_start(service.as_ptr(), user, &raw const conversation, &raw mut handle.raw) };
        if code == code::SUCCESS { Ok(handle) } else { Err(code) }
    }

    /// Whoever sits before it.
    pub fn person(&mut self) -> &mut P {
        // SAFETY: from the box of `start`, borrowed as long as `self` is, so libpam is not running meanwhile.
        unsafe { self.person.as_mut() }
    }

    /// Sets an item; one with a NUL byte is left as it is.
    pub fn set(&mut self, item: Item, value: &str) {
        if let Ok(value) = CString::new(value) {
            // SAFETY: a live handle and a valid string, which libpam copies.
            unsafe { pam_set_item(self.raw, item as c_int, value.as_ptr().cast()) };
        }
    }

    /// Makes one call: its result.
    pub fn call(&mut self, call: Call, flags: i32) -> i32 {
        let entry = match call {
            Call::Authenticate => pam_authenticate,
            Call::Account => pam_acct_mgmt,
            Call::Credentials => pam_setcred,
            Call::OpenSession => pam_open_session,
            Call::CloseSession => pam_close_session,
            Call::ChangeToken => pam_chauthtok,
        };
        // SAFETY: a live handle; the person is not used here until the call is back.
        self.status = unsafe { entry(self.raw, flags) };
        self.status
    }

    /// libpam's words for a result.
    pub fn words(&self, code: i32) -> String {
        // SAFETY: a live handle; the answer is a constant string of libpam.
        unsafe { CStr::from_ptr(pam_strerror(self.raw, code)) }.to_string_lossy().into_owned()
    }

    /// A variable of the session's environment.
    pub fn env(&self, name: &str) -> Option<String> {
        let name = CString::new(name).ok()?;
        // SAFETY: a live handle and a valid string; the answer belongs to libpam and is copied at once.
        let value = unsafe { pam_getenv(self.raw, name.as_ptr()) };
        // SAFETY: a NUL-terminated string of libpam's, unless it is null.
        (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }

    /// Ends it: the person goes.
    pub fn end(mut self) -> P {
        self.finish();
        let person = std::mem::ManuallyDrop::new(self).person;
        // SAFETY: from the box of `start`, and nobody has the pointer any more: `self` is not dropped.
        *unsafe { Box::from_raw(person.as_ptr()) }
    }

    fn finish(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: a live handle, not used again.
            unsafe { pam_end(self.raw, self.status) };
            self.raw = ptr::null_mut();
        }
    }
}

impl<P: Person> Drop for Handle<P> {
    fn drop(&mut self) {
        self.finish();
        // SAFETY: from the box of `start`, and nobody has the pointer any more.
        drop(unsafe { Box::from_raw(self.person.as_ptr()) });
    }
}

extern "C" fn converse<P: Person>(
    count: c_int,
    messages: *const *const Message,
    responses: *mut *mut Response,
    data: *mut c_void,
) -> c_int {
    let Ok(count) = usize::try_from(count) else { return code::CONV_ERR };
    // SAFETY: `data` is the person of Handle::start, which nobody else uses while libpam is running.
    let person = unsafe { &mut *data.cast::<P>() };
    // SAFETY: calloc of libc, as libpam asks for: it is freed by the module.
    let answers: *mut Response = unsafe { libc::calloc(count.max(1), size_of::<Response>()) }.cast();
    if answers.is_null() {
        return code::BUF_ERR;
    }
    for index in 0..count {
        // SAFETY: libpam passes an array of `count` pointers to messages with NUL-terminated texts (Linux-PAM's form of it).
        let (style, text) = unsafe {
            let message = &**messages.add(index);
            (message.style, CStr::from_ptr(message.text).to_string_lossy())
        };
        let style = match style {
            1 => Style::Hidden,
            2 => Style::Shown,
            3 => Style::Error,
            _ => Style::Info,
        };
        if matches!(style, Style::Error | Style::Info) {
            person.hear(style, &text);
            continue;
        }
        let (given, result) = match person.ask(style, &text) {
            Answer::Text(text) => {
                // SAFETY: `index` is below `count`.
                unsafe { (*answers.add(index)).text = copy(&text) };
                continue;
            }
            Answer::NoText => continue,
            Answer::NoResponses => (ptr::null_mut(), code::SUCCESS),
            Answer::Error => (ptr::null_mut(), code::CONV_ERR),
        };
        // SAFETY: nothing was handed over yet; libpam gives room for one pointer. What was answered before is leaked, in a program that is about to fail.
        unsafe {
            libc::free(answers.cast());
            *responses = given;
        }
        return result;
    }
    // SAFETY: libpam gives room for one pointer.
    unsafe { *responses = answers };
    code::SUCCESS
}

/// For libpam, which wipes and frees it. It never grows, or its old bytes would stay behind.
fn copy(text: &[u8]) -> *mut c_char {
    let mut ended = Zeroizing::new(Vec::with_capacity(text.len() + 1));
    ended.extend_from_slice(text);
    ended.push(0);
    // SAFETY: a NUL-terminated string.
    unsafe { libc::strdup(ended.as_ptr().cast()) }
}
