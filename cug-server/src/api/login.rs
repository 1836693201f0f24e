//! The login's messages in their order.

use super::{ConnectionError, Reader, Result, Writer, send};
use crate::service::{Answer, Service};
use cug_proto::{
    ProtocolError,
    frame::{self, HEADER_LEN},
    login::Transcript,
    message::{Challenge, ClientMessage, Hello, SealedOutcome, ServerMessage},
};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// For the acknowledgement of a grant.
const ACK_TIME: Duration = Duration::from_secs(5);

/// Runs a login after its `Hello`. The caller bounds the time.
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

    let login = reader.next().await?;
    let ClientMessage::Login(login) = frame::decode(&login)? else { return Err(ProtocolError::OutOfOrder.into()) };
    let granted = match service.login(challenged, &transcript, &login, exporter).await {
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
    send(writer, &message, frame::MAX_LOGIN).await
}
