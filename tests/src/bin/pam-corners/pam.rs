//! libpam's C interface (pam(3), pam_conv(3)), and a conversation that gives what it is told to.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

const SUCCESS: c_int = 0;
const CONV_ERR: c_int = 19;
const HIDDEN: c_int = 1;

/// What the conversation does when it is asked for a secret.
pub enum Answer {
    Text(String),
    /// PAM_CONV_ERR.
    Error,
    /// Success, and no array of responses.
    NoResponses,
    /// A response without a text.
    NoText,
}

/// The person.
#[derive(Default)]
pub struct Talk {
    pub answers: VecDeque<Answer>,
    /// Lines that were shown.
    pub messages: usize,
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
    fn pam_authenticate(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_setcred(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_open_session(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_close_session(handle: *mut Raw, flags: c_int) -> c_int;
    fn pam_getenv(handle: *mut Raw, name: *const c_char) -> *const c_char;
}

/// A PAM transaction.
pub struct Handle<'t> {
    raw: *mut Raw,
    status: c_int,
    /// libpam copies the structure; its data points to the talk.
    _talk: PhantomData<&'t mut Talk>,
}

impl<'t> Handle<'t> {
    /// For this user. Ends the program when libpam does not start.
    pub fn start(service: &str, user: &str, talk: &'t mut Talk) -> Self {
        let conversation = Conversation { converse, data: ptr::from_mut(talk).cast() };
        let (service, user) = (CString::new(service).expect("no NUL"), CString::new(user).expect("no NUL"));
        let mut raw = ptr::null_mut();
        // SAFETY: valid strings, a conversation that libpam copies and whose data lives as long as `Self`, and room for a handle.
        let code = unsafe { pam_start(service.as_ptr(), user.as_ptr(), &raw const conversation, &raw mut raw) };
        assert_eq!(code, SUCCESS, "pam_start");
        Self { raw, status: SUCCESS, _talk: PhantomData }
    }

    pub fn authenticate(&mut self, flags: c_int) -> c_int {
        // SAFETY: a live handle; its conversation's data is not used elsewhere meanwhile.
        self.status = unsafe { pam_authenticate(self.raw, flags) };
        self.status
    }

    pub fn credentials(&mut self, flags: c_int) -> c_int {
        // SAFETY: as above.
        self.status = unsafe { pam_setcred(self.raw, flags) };
        self.status
    }

    pub fn open(&mut self, flags: c_int) -> c_int {
        // SAFETY: as above.
        self.status = unsafe { pam_open_session(self.raw, flags) };
        self.status
    }

    pub fn close(&mut self, flags: c_int) -> c_int {
        // SAFETY: as above.
        self.status = unsafe { pam_close_session(self.raw, flags) };
        self.status
    }

    pub fn env(&mut self, name: &str) -> Option<String> {
        let name = CString::new(name).ok()?;
        // SAFETY: a live handle and a valid string; the answer belongs to libpam and is copied at once.
        let value = unsafe { pam_getenv(self.raw, name.as_ptr()) };
        if value.is_null() {
            return None;
        }
        // SAFETY: a NUL-terminated string of libpam's.
        Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }

    pub fn end(self) {
        // SAFETY: a live handle, not used again.
        unsafe { pam_end(self.raw, self.status) };
    }
}

/// What `work` returns in a child process, which then ends.
pub fn in_child(work: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the child has this thread only, and the process has no other one when this is called; it runs `work` and ends without destructors.
    match unsafe { libc::fork() } {
        0 => {
            let code = work();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for that child; `status` is room for an int.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            libc::WEXITSTATUS(status)
        }
    }
}

extern "C" fn converse(
    count: c_int,
    messages: *const *const Message,
    responses: *mut *mut Response,
    data: *mut c_void,
) -> c_int {
    let count = usize::try_from(count).unwrap_or_default();
    // SAFETY: `data` is the Talk of Handle::start, which nobody else uses while libpam is running.
    let talk = unsafe { &mut *data.cast::<Talk>() };
    // SAFETY: calloc of libc, as libpam asks for: it is freed by the module.
    let answers: *mut Response = unsafe { libc::calloc(count.max(1), size_of::<Response>()) }.cast();
    assert!(!answers.is_null());
    for index in 0..count {
        // SAFETY: libpam passes an array of `count` pointers to messages (Linux-PAM's form of it).
        let message = unsafe { &**messages.add(index) };
        assert!(!message.text.is_null());
        if message.style != HIDDEN {
            talk.messages += 1;
            continue;
        }
        match talk.answers.pop_front() {
            Some(Answer::Text(text)) => {
                let text = CString::new(text).expect("no NUL");
                // SAFETY: `index` is below `count`; strdup's copy is freed by the module.
                unsafe { (*answers.add(index)).text = libc::strdup(text.as_ptr()) };
            }
            Some(Answer::NoText) => {}
            Some(Answer::NoResponses) => {
                // SAFETY: nothing was handed over; libpam gives room for one pointer.
                unsafe {
                    libc::free(answers.cast());
                    *responses = ptr::null_mut();
                }
                return SUCCESS;
            }
            Some(Answer::Error) | None => {
                // SAFETY: nothing was handed over.
                unsafe { libc::free(answers.cast()) };
                return CONV_ERR;
            }
        }
    }
    // SAFETY: libpam gives room for one pointer.
    unsafe { *responses = answers };
    SUCCESS
}
