//! Frames on a stream.

use super::{ConnectionError, Result};
use cug_proto::{
    frame::{self, HEADER_LEN},
    message::ServerMessage,
};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// How long a peer may take to accept a message.
const SEND_TIME: Duration = Duration::from_secs(10);

/// Reads frames. [`FrameReader::next`] may be dropped at any await and called again: nothing is lost.
pub(super) struct FrameReader<R> {
    stream: R,
    max: usize,
    header: [u8; HEADER_LEN],
    /// Bytes of the header that have come.
    header_filled: usize,
    body: Zeroizing<Vec<u8>>,
    /// Bytes of the body that have come.
    body_filled: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of at most `max` bytes.
    pub(super) fn new(stream: R, max: usize) -> Self {
        let (header, body) = ([0; HEADER_LEN], Zeroizing::default());
        Self { stream, max, header, header_filled: 0, body, body_filled: 0 }
    }

    /// Allows frames of at most `max` bytes from now on.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// The next message's body.
    pub(super) async fn next(&mut self) -> Result<Zeroizing<Vec<u8>>> {
        while self.header_filled < HEADER_LEN {
            let rest = self.header.get_mut(self.header_filled..).unwrap_or_default();
            self.header_filled += some(self.stream.read(rest).await?)?;
            if self.header_filled == HEADER_LEN {
                // Only now memory is taken, and never more than `max`.
                self.body = Zeroizing::new(vec![0; frame::body_len(self.header, self.max)?]);
            }
        }
        while self.body_filled < self.body.len() {
            let rest = self.body.get_mut(self.body_filled..).unwrap_or_default();
            self.body_filled += some(self.stream.read(rest).await?)?;
        }
        (self.header_filled, self.body_filled) = (0, 0);
        Ok(std::mem::take(&mut self.body))
    }
}

/// Bytes that came; none is the end of the stream.
fn some(read: usize) -> Result<usize> {
    if read == 0 { Err(ConnectionError::Io(std::io::ErrorKind::UnexpectedEof.into())) } else { Ok(read) }
}

/// Sends one message.
pub(super) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &ServerMessage, max: usize) -> Result<()> {
    send_frame(stream, &frame::encode(message, max)?).await
}

/// Sends a whole frame.
pub(super) async fn send_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<()> {
    let sent = async {
        stream.write_all(frame).await?;
        stream.flush().await
    };
    tokio::time::timeout(SEND_TIME, sent).await.map_err(|_| ConnectionError::Deadline)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_survives_being_cut_anywhere_and_a_reader_that_is_dropped() {
        let (mut sender, receiver) = tokio::io::duplex(1);
        let mut reader = FrameReader::new(receiver, 64);
        let wire: Vec<u8> = [&[0, 0, 0, 5][..], b"hello", &[0, 0, 0, 2], b"ok"].concat();
        let writing = tokio::spawn(async move {
            for byte in wire {
                sender.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut frames = vec![];
        while frames.len() < 2 {
            tokio::select! {
                biased;
                frame = reader.next() => frames.push(frame.unwrap().to_vec()),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(frames, [b"hello".to_vec(), b"ok".to_vec()]);
        writing.await.unwrap();
        assert!(reader.next().await.is_err(), "end of stream");
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_by_its_header() {
        let mut reader = FrameReader::new(&[0, 0, 0, 65][..], 64);
        assert!(matches!(reader.next().await, Err(ConnectionError::Protocol(cug_proto::ProtocolError::TooLarge))));
        assert_eq!(reader.body.capacity(), 0);
    }
}
