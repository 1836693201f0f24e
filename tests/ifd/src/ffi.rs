//! The C interface that pcscd calls (IFD Handler API 3.0, `ifdhandler.h`). The only module with `unsafe`.
#![allow(non_snake_case)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_ulong};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::reader::{Presence, Reader};

const IFD_SUCCESS: c_long = 0;
const IFD_ERROR_TAG: c_long = 600;
const IFD_ERROR_POWER_ACTION: c_long = 608;
const IFD_COMMUNICATION_ERROR: c_long = 612;
const IFD_ERROR_NOT_SUPPORTED: c_long = 606;
const IFD_ICC_PRESENT: c_long = 615;
const IFD_ICC_NOT_PRESENT: c_long = 616;
const IFD_NO_SUCH_DEVICE: c_long = 617;
const IFD_ERROR_INSUFFICIENT_BUFFER: c_long = 618;

const TAG_ATR: c_ulong = 0x0303;
const TAG_SLOT_THREAD_SAFE: c_ulong = 0x0FAC;
const TAG_THREAD_SAFE: c_ulong = 0x0FAD;
const TAG_SLOTS_NUMBER: c_ulong = 0x0FAE;
const TAG_SIMULTANEOUS_ACCESS: c_ulong = 0x0FAF;
const TAG_POLLING_THREAD_KILLABLE: c_ulong = 0x0FB1;
const TAG_STOP_POLLING_THREAD: c_ulong = 0x0FB2;
const TAG_POLLING_THREAD_WITH_TIMEOUT: c_ulong = 0x0FB3;
/// SCARD_ATTR_ATR_STRING of the Windows API.
const ATTR_ATR: c_ulong = 0x0009_0303;

/// CM_IOCTL_GET_FEATURE_REQUEST of PC/SC part 10, as pcscd's `reader.h` codes it.
const FEATURE_REQUEST: c_ulong = 0x4200_0000 + 3400;
/// Our number for FEATURE_GET_TLV_PROPERTIES.
const PROPERTIES: u32 = 0x4233_0012;

const POWER_UP: c_ulong = 500;
const POWER_DOWN: c_ulong = 501;
const RESET: c_ulong = 502;
/// MAX_ATR_SIZE of `pcsclite.h`.
const MAX_ATR: usize = 33;

/// `SCARD_IO_HEADER` of `ifdhandler.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IoHeader {
    protocol: c_ulong,
    length: c_ulong,
}

static READERS: Mutex<BTreeMap<c_ulong, Arc<Reader>>> = Mutex::new(BTreeMap::new());

fn reader(lun: c_ulong) -> Option<Arc<Reader>> {
    READERS.lock().unwrap_or_else(PoisonError::into_inner).get(&(lun >> 16)).cloned()
}

/// Opens the reader whose socket stands after the first colon of the device name.
///
/// # Safety
/// `name` is null or a NUL-terminated string, as pcscd passes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IFDHCreateChannelByName(lun: c_ulong, name: *const c_char) -> c_long {
    if name.is_null() {
        return IFD_COMMUNICATION_ERROR;
    }
    // SAFETY: not null, and NUL-terminated by the contract of this function.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let path = name.split_once(':').map_or(&*name, |(_, path)| path);
    match Reader::open(Path::new(path)) {
        Ok(reader) => {
            let mut readers = READERS.lock().unwrap_or_else(PoisonError::into_inner);
            readers.insert(lun >> 16, Arc::new(reader));
            IFD_SUCCESS
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "cug-ifd: cannot listen at {path}: {e}");
            IFD_COMMUNICATION_ERROR
        }
    }
}

/// Readers have names here, not channel numbers.
#[unsafe(no_mangle)]
pub extern "C" fn IFDHCreateChannel(_lun: c_ulong, _channel: c_ulong) -> c_long {
    IFD_ERROR_NOT_SUPPORTED
}

/// Closes the reader; its card sees the connection end.
#[unsafe(no_mangle)]
pub extern "C" fn IFDHCloseChannel(lun: c_ulong) -> c_long {
    let closed = READERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&(lun >> 16));
    match closed {
        Some(reader) => {
            reader.interrupt();
            IFD_SUCCESS
        }
        None => IFD_COMMUNICATION_ERROR,
    }
}

/// Tells pcscd what this driver can do.
///
/// # Safety
/// `length` points to the size of the buffer at `value`, as pcscd passes them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IFDHGetCapabilities(
    lun: c_ulong,
    tag: c_ulong,
    length: *mut c_ulong,
    value: *mut c_uchar,
) -> c_long {
    let answer = match tag {
        TAG_ATR | ATTR_ATR => match reader(lun).and_then(|reader| reader.atr()) {
            Some(atr) => atr,
            None => return IFD_COMMUNICATION_ERROR,
        },
        TAG_SIMULTANEOUS_ACCESS => vec![16],
        TAG_THREAD_SAFE | TAG_SLOTS_NUMBER => vec![1],
        TAG_SLOT_THREAD_SAFE | TAG_POLLING_THREAD_KILLABLE => vec![0],
        TAG_POLLING_THREAD_WITH_TIMEOUT => {
            let function: extern "C" fn(c_ulong, c_int) -> c_long = wait_for_change;
            (function as usize).to_ne_bytes().to_vec()
        }
        TAG_STOP_POLLING_THREAD => {
            let function: extern "C" fn(c_ulong) -> c_long = stop_waiting;
            (function as usize).to_ne_bytes().to_vec()
        }
        _ => return IFD_ERROR_TAG,
    };
    // SAFETY: both pointers are pcscd's, by the contract of this function.
    unsafe { give(&answer, value, length) }
}

/// The function behind TAG_IFD_POLLING_THREAD_WITH_TIMEOUT. `timeout` is in milliseconds.
extern "C" fn wait_for_change(lun: c_ulong, timeout: c_int) -> c_long {
    let Some(reader) = reader(lun) else { return IFD_NO_SUCH_DEVICE };
    // A negative time would mean forever; pcscd's own longest is ten minutes.
    let limit = Duration::from_millis(u64::try_from(timeout).unwrap_or(600_000));
    reader.wait_for_change(limit);
    IFD_SUCCESS
}

/// The function behind TAG_IFD_STOP_POLLING_THREAD.
extern "C" fn stop_waiting(lun: c_ulong) -> c_long {
    if let Some(reader) = reader(lun) {
        reader.interrupt();
    }
    IFD_SUCCESS
}

/// Nothing can be set.
#[unsafe(no_mangle)]
pub extern "C" fn IFDHSetCapabilities(
    _lun: c_ulong,
    _tag: c_ulong,
    _length: c_ulong,
    _value: *const c_uchar,
) -> c_long {
    IFD_ERROR_TAG
}

/// Every protocol will do: frames have no protocol.
#[unsafe(no_mangle)]
pub extern "C" fn IFDHSetProtocolParameters(
    lun: c_ulong,
    _protocol: c_ulong,
    _flags: c_uchar,
    _pts1: c_uchar,
    _pts2: c_uchar,
    _pts3: c_uchar,
) -> c_long {
    if reader(lun).is_some() { IFD_SUCCESS } else { IFD_COMMUNICATION_ERROR }
}

/// Powers the card up or down or resets it.
///
/// # Safety
/// `atr` has room for 33 bytes and `length` is writable, as pcscd passes them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IFDHPowerICC(
    lun: c_ulong,
    action: c_ulong,
    atr: *mut c_uchar,
    length: *mut c_ulong,
) -> c_long {
    // SAFETY: `length` is writable by the contract of this function. pcscd does not say how much room there is in all
    // its versions; the interface fixes it at MAX_ATR_SIZE.
    unsafe { *length = MAX_ATR as c_ulong };
    let answer = match (reader(lun), action) {
        (None, _) => Err(IFD_COMMUNICATION_ERROR),
        (Some(reader), POWER_DOWN) => {
            reader.power_down();
            Ok(Vec::new())
        }
        (Some(reader), POWER_UP | RESET) => reader.power_up(action == RESET).map_err(|_| IFD_ERROR_POWER_ACTION),
        _ => Err(IFD_ERROR_NOT_SUPPORTED),
    };
    // SAFETY: `atr` has room for what `length` now says, by the contract of this function.
    unsafe { give_or_fail(answer, atr, length) }
}

/// Exchanges one APDU with the card.
///
/// # Safety
/// `tx` points to `tx_length` bytes, `rx_length` to the size of the buffer at `rx`; `receive_header` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IFDHTransmitToICC(
    lun: c_ulong,
    send_header: IoHeader,
    tx: *const c_uchar,
    tx_length: c_ulong,
    rx: *mut c_uchar,
    rx_length: *mut c_ulong,
    receive_header: *mut IoHeader,
) -> c_long {
    // SAFETY: `tx` points to `tx_length` bytes by the contract of this function.
    let apdu = unsafe { std::slice::from_raw_parts(tx, tx_length as usize) };
    if !receive_header.is_null() {
        // SAFETY: not null, and writable by the contract of this function.
        unsafe { *receive_header = send_header };
    }
    let answer = match reader(lun) {
        None => Err(IFD_COMMUNICATION_ERROR),
        Some(reader) => match reader.transmit(apdu) {
            Ok(answer) => Ok(answer),
            Err(_) if reader.present() == Presence::Empty => Err(IFD_ICC_NOT_PRESENT),
            Err(_) => Err(IFD_COMMUNICATION_ERROR),
        },
    };
    // SAFETY: `rx` and `rx_length` are a buffer and its size by the contract of this function.
    unsafe { give_or_fail(answer, rx, rx_length) }
}

/// Says whether a card is in the reader.
#[unsafe(no_mangle)]
pub extern "C" fn IFDHICCPresence(lun: c_ulong) -> c_long {
    match reader(lun).map_or(Presence::Unplugged, |reader| reader.present()) {
        Presence::Card => IFD_ICC_PRESENT,
        Presence::Empty => IFD_ICC_NOT_PRESENT,
        // Not IFD_NO_SUCH_DEVICE: pcscd would wait for udev to remove the reader, a second at a time.
        Presence::Unplugged => IFD_COMMUNICATION_ERROR,
    }
}

/// The features of PC/SC part 10 that this reader has: it tells that it carries APDUs of any length.
///
/// # Safety
/// `rx` has room for `rx_length` bytes; `returned` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IFDHControl(
    _lun: c_ulong,
    code: c_ulong,
    _tx: *const c_uchar,
    _tx_length: c_ulong,
    rx: *mut c_uchar,
    rx_length: c_ulong,
    returned: *mut c_ulong,
) -> c_long {
    let answer = if code == FEATURE_REQUEST {
        Ok([&[0x12, 4][..], &PROPERTIES.to_be_bytes()].concat())
    } else if code == c_ulong::from(PROPERTIES) {
        // dwMaxAPDUDataSize
        Ok([&[0x0A, 4][..], &0x1_0000_u32.to_le_bytes()].concat())
    } else {
        Err(IFD_ERROR_NOT_SUPPORTED)
    };
    let mut length = rx_length;
    // SAFETY: `rx` has room for `rx_length` bytes by the contract of this function.
    let result = unsafe { give_or_fail(answer, rx, &raw mut length) };
    if !returned.is_null() {
        // SAFETY: not null, and writable by the contract of this function.
        unsafe { *returned = if result == IFD_SUCCESS { length } else { 0 } };
    }
    result
}

/// Copies an answer out, or sets the length to 0 and returns the error.
///
/// # Safety
/// As [`give`].
unsafe fn give_or_fail(answer: Result<Vec<u8>, c_long>, value: *mut c_uchar, length: *mut c_ulong) -> c_long {
    match answer {
        // SAFETY: the caller's promise is the same.
        Ok(answer) => unsafe { give(&answer, value, length) },
        Err(code) => {
            // SAFETY: `length` is writable, as the caller promises.
            unsafe { *length = 0 };
            code
        }
    }
}

/// Copies `answer` to the buffer `value` of `*length` bytes and sets `*length`.
///
/// # Safety
/// `length` is readable and writable, and `value` has room for `*length` bytes.
unsafe fn give(answer: &[u8], value: *mut c_uchar, length: *mut c_ulong) -> c_long {
    // SAFETY: `length` is readable and writable, as the caller promises.
    let room = unsafe { *length } as usize;
    if answer.len() > room {
        return IFD_ERROR_INSUFFICIENT_BUFFER;
    }
    // SAFETY: there is room for `answer`, which cannot overlap a buffer of pcscd.
    unsafe {
        std::ptr::copy_nonoverlapping(answer.as_ptr(), value, answer.len());
        *length = answer.len() as c_ulong;
    }
    IFD_SUCCESS
}
