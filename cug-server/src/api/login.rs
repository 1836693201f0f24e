//! The login's messages in their order.

use super::{ConnectionError, Reader, Result, Writer, send};
use crate::service::{Answer, Service};
use cug_proto::{
    ProtocolError,
    frame::{self, HEADER_LEN},
    login::Transcript,
    message::{Challenge, ClientMessage, Hello, SealedOutcome, ServerMessage, Unavailable},
};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// Between `Challenge` and `Login` a person types ID, PIN and password. The connections that wait are bounded in number, per source too.
const TYPING_TIME: Duration = Duration::from_secs(120);

/// For the server's own work, waiting for the user's turn and for the password queue included.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// For the acknowledgement of a grant.
const ACK_TIME: Duration = Duration::from_secs(5);

/// Runs a login after its `Hello`. Every wait is bounded.
pub(super) async fn run(
    service: &Arc<Service>,
    mut reader: Reader,
    mut writer: Writer,
    hello: Hello,
    hello_body: &[u8],
    exporter: &[u8; 32],
    source: IpAddr,
) -> Result<()> {
    let mut challenged = match service.challenge(hello, source).await {
        Ok(challenged) => challenged,
        Err(unavailable) => return say(&mut writer, ServerMessage::Unavailable(unavailable)).await,
    };
    let challenge = ServerMessage::Challenge(Challenge { ciphertext: std::mem::take(&mut challenged.ciphertext) });
    let challenge = frame::encode(&challenge, frame::MAX_LOGIN)?;
    super::frames::send_frame(&mut writer, &challenge).await?;
    let transcript = Transcript::new(hello_body, challenge.get(HEADER_LEN..).unwrap_or_default());

    let login = tokio::time::timeout(TYPING_TIME, reader.next()).await.map_err(|_| ConnectionError::Deadline)??;
    let ClientMessage::Login(login) = frame::decode(&login)? else { return Err(ProtocolError::OutOfOrder.into()) };
    let answer = service.login(challenged, &transcript, &login, exporter);
    let answer = tokio::time::timeout(ANSWER_TIME, answer).await.unwrap_or(Answer::Unavailable(Unavailable::Busy(1)));
    let granted = match answer {
        Answer::Rejected => return say(&mut writer, ServerMessage::Rejected).await,
        Answer::Unavailable(unavailable) => return say(&mut writer, ServerMessage::Unavailable(unavailable)).await,
        Answer::Outcome(sealed, granted) => {
            say(&mut writer, ServerMessage::Outcome(SealedOutcome { sealed })).await?;
            granted
        }
    };
    let Some(granted) = granted else { return Ok(()) };

    let ack = tokio::time::timeout(ACK_TIME, reader.next()).await.map_err(|_| ConnectionError::Deadline)??;
    let ClientMessage::Ack(ack) = frame::decode(&ack)? else { return Err(ProtocolError::OutOfOrder.into()) };
    service.register(&granted, &ack.mac).await?;
    say(&mut writer, ServerMessage::Registered).await
}

async fn say(writer: &mut Writer, message: ServerMessage) -> Result<()> {
    send(writer, &message, frame::MAX_SESSION).await
}
