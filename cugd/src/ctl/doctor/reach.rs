//! A management server as this workstation reaches it: TCP, then TLS under each pinned CA. Nothing is said to it.

use std::{io, sync::Arc, time::Duration};

use cug_proto::trust::{self, CaPin};
use rustls::CertificateError;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::facts::{Outcome, Server, Validity};
use crate::clock;

/// Tries one server, each step for `limit` at most.
pub(super) async fn server(name: &str, pins: &[CaPin], limit: Duration) -> Server {
    let mut outcome = Outcome::Silent;
    for pin in pins {
        outcome = connect(name, *pin, limit).await.unwrap_or_else(|failed| failed);
        // Another pin changes nothing but whether it is trusted.
        if !matches!(outcome, Outcome::NotTrusted(_)) {
            break;
        }
    }
    Server { name: name.to_owned(), outcome }
}

async fn connect(name: &str, pin: CaPin, limit: Duration) -> Result<Outcome, Outcome> {
    let began = clock::uptime();
    let silent = |_| Outcome::Silent;
    let found = timeout(limit, lookup_host(name)).await.map_err(silent)?;
    let addresses: Vec<_> = found.map_err(|error| Outcome::NoAddress(error.to_string()))?.collect();
    let tcp = timeout(limit, TcpStream::connect(addresses.as_slice())).await.map_err(silent)?;
    let tcp = tcp.map_err(|error| Outcome::Refused(error.to_string()))?;
    let config = trust::client_config(pin).map_err(|error| Outcome::Broken(error.to_string()))?;
    let tls = TlsConnector::from(Arc::new(config)).connect(trust::server_name(), tcp);
    let stream = timeout(limit, tls).await.map_err(silent)?.map_err(|error| refusal(&error))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let ms = u64::try_from(clock::uptime().saturating_sub(began).as_millis()).unwrap_or(u64::MAX);
    Ok(Outcome::Trusted { validity: chain.first().and_then(|certificate| validity(certificate)), ms })
}

fn refusal(error: &io::Error) -> Outcome {
    use CertificateError as C;
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Outcome::Broken(error.to_string());
    };
    match tls {
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => Outcome::NotNow { early: false },
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            Outcome::NotNow { early: true }
        }
        rustls::Error::InvalidCertificate(_) => Outcome::NotTrusted(tls.to_string()),
        _ => Outcome::Broken(tls.to_string()),
    }
}

/// When a DER certificate is valid.
pub(super) fn validity(der: &[u8]) -> Option<Validity> {
    use x509_cert::der::Decode;
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: &x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).ok();
    Some(Validity { from: seconds(&validity.not_before)?, until: seconds(&validity.not_after)? })
}
