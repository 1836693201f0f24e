//! A smart card reader driver for the real pcscd, whose cards are processes at a UNIX socket.
//!
//! Loaded by pcscd from a `reader.conf`:
//!
//! ```text
//! FRIENDLYNAME "Cug Virtual Reader"
//! DEVICENAME   /dev/null:/path/to/reader0.sock
//! LIBPATH      /path/to/libcug_ifd.so
//! CHANNELID    0
//! ```
//!
//! One such block per reader, in one or several files; all blocks share one FRIENDLYNAME (otherwise pcscd loads the
//! driver once per block and gives every reader the number 0) and each has its own CHANNELID and socket. pcscd checks
//! that the part of DEVICENAME before the first colon exists, hence `/dev/null:`. The readers appear as
//! `Cug Virtual Reader 00 00`, `Cug Virtual Reader 01 00` and so on, in the order of the blocks.
//!
//! The driver listens on the socket. A process that connects and says hello *is* the card in the reader; closing the
//! connection is pulling it. One card at a time: a second one is refused while the first is in.
//!
//! # Frames
//! `length: u32 big-endian` of what follows (at most 66,000), `kind: u8`, body. See [`wire`].
//!
//! # Unplugging the reader itself
//! Create the file `SOCKET.unplugged` and connect to the socket once (which wakes the driver): clients see the reader
//! become unavailable (SCARD_STATE_UNAVAILABLE) and its card is gone. Remove the file to plug it in again. The reader's
//! name stays in pcscd's list: a pcscd built with libudev, as Debian's is, removes USB readers only.

mod ffi;
mod reader;
mod wire;
