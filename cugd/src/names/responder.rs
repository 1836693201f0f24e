//! The responder: a zone on a loopback address, by UDP and TCP, for systemd-resolved at this machine.
//!
//! It listens on [`ADDRESS`] at a port that the system chooses: no other name service is in its way, and nobody outside can reach it. Every
//! local user can, as every local user can ask systemd-resolved; who learns a name here still cannot reach the address. What one asker can take
//! is bounded.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    answer::{MAX_QUERY, Transport, answer},
    zone::Zone,
};

/// Where all responders listen. Of 127.0.0.0/8, and not the address that other local name services take.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 53, 67, 85);

/// Most TCP connections at a time.
const MAX_CONNECTIONS: usize = 16;
/// How long a TCP connection may be silent, and an answer may take to be taken.
const IDLE: Duration = Duration::from_secs(5);
/// Most queries on one TCP connection.
const MAX_QUERIES: usize = 100;
/// How often a port that is free for UDP may be taken for TCP.
const PORT_TRIES: usize = 8;

/// A running responder. Dropping it closes its sockets.
pub struct Responder {
    port: u16,
    zone: watch::Sender<Arc<Zone>>,
    _tasks: JoinSet<()>,
}

impl Responder {
    /// Starts to answer for `zone`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(zone: Arc<Zone>) -> io::Result<Self> {
        let (udp, tcp) = sockets().await?;
        let port = udp.local_addr()?.port();
        let (zone, current) = watch::channel(zone);
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(udp, current.clone()));
        tasks.spawn(connections(tcp, current));
        Ok(Self { port, zone, _tasks: tasks })
    }

    /// The UDP and TCP port on [`ADDRESS`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers for this from now on.
    pub fn set(&self, zone: Arc<Zone>) {
        self.zone.send_replace(zone);
    }
}

/// The same port for both.
async fn sockets() -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let udp = UdpSocket::bind((ADDRESS, 0)).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn datagrams(socket: UdpSocket, zone: watch::Receiver<Arc<Zone>>) {
    let mut buffer = [0; MAX_QUERY + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An answer that nobody took any more comes back as an error of this socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                pause("UDP", &error).await;
                continue;
            }
        };
        let now = zone.borrow().clone();
        let reply = match buffer.get(..length) {
            Some(query) if length <= MAX_QUERY && is_local(from) => answer(query, &now, Transport::Udp),
            _ => None,
        };
        if let Some(reply) = reply {
            let _asker_gone = socket.send_to(&reply, from).await;
        }
    }
}

async fn connections(listener: TcpListener, zone: watch::Receiver<Arc<Zone>>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut served = JoinSet::new();
    loop {
        while served.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) if is_local(from) => {
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let zone = zone.clone();
                    served.spawn(async move {
                        let _over = serve(stream, &zone).await;
                        drop(place);
                    });
                }
            }
            Ok(_) => {}
            Err(error) => pause("TCP", &error).await,
        }
    }
}

/// Queries in turn, each with its length before it (RFC 1035, 4.2.2).
async fn serve(mut stream: TcpStream, zone: &watch::Receiver<Arc<Zone>>) -> io::Result<()> {
    for _ in 0..MAX_QUERIES {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > MAX_QUERY {
            return Ok(());
        }
        let mut query = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let now = zone.borrow().clone();
        let Some(reply) = answer(&query, &now, Transport::Tcp) else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let framed = [length.to_be_bytes().as_slice(), &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// The kernel lets nobody else send to 127.0.0.0/8, unless somebody has told it to.
fn is_local(from: SocketAddr) -> bool {
    matches!(from.ip(), IpAddr::V4(address) if address.is_loopback())
}

async fn pause(what: &str, error: &io::Error) {
    tracing::warn!(%error, "the name service has trouble with {what}");
    sleep(Duration::from_millis(200)).await;
}

#[cfg(test)]
mod tests {
    use super::{super::zone::tests::zone, *};
    use hickory_proto::{
        op::{Message, MessageType, OpCode, Query},
        rr::{Name, RecordType},
    };

    fn query() -> Vec<u8> {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("user-b.vpn1.cug.").unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn address(answer: &[u8]) -> Option<String> {
        Message::from_vec(answer).unwrap().answers.first().map(|record| record.data.to_string())
    }

    async fn by_tcp(port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((ADDRESS, port)).await.unwrap();
        let query = query();
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        address(&reply)
    }

    #[tokio::test]
    async fn it_answers_both_ways_until_it_is_dropped_whatever_is_sent() {
        let responder = Responder::start(Arc::new(zone(&["USER-A"]))).await.unwrap();
        let port = responder.port();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let noise: [&[u8]; 4] = [b"", b"x", &[0xff; 12], &[0xff; 2000]];
        for noise in noise {
            socket.send_to(noise, (ADDRESS, port)).await.unwrap();
        }
        // Connections that say nothing take their places, and no more.
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS - 1 {
            silent.push(TcpStream::connect((ADDRESS, port)).await.unwrap());
        }
        assert_eq!(by_tcp(port).await, None);
        responder.set(Arc::new(zone(&["USER-A", "USER-B"])));
        assert_eq!(by_tcp(port).await.as_deref(), Some("100.96.16.2"));
        socket.send_to(&query(), (ADDRESS, port)).await.unwrap();
        let mut buffer = [0; 600];
        let length = timeout(IDLE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(address(&buffer[..length]).as_deref(), Some("100.96.16.2"));
        drop(responder);
        timeout(IDLE, async { while TcpStream::connect((ADDRESS, port)).await.is_ok() {} }).await.unwrap();
    }
}
