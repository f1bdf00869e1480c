//! Accepts connections for which there is a place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::warn;

use super::places::Places;
use super::{Limits, Peer, Place};
use crate::process::sock_diag::SockDiag;

/// Pause after a connection could not be accepted: without file descriptors it fails again at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that are refused before [`REFUSAL_PAUSE`]. A client can connect again at once, and telling whose a connection
/// is costs some 50 us: without a pause, refusing takes half a core. A queue of 1,024 connections is through in a second.
const REFUSALS: u32 = 2;
const REFUSAL_PAUSE: Duration = Duration::from_millis(1);
/// Between two log lines about connections that were not accepted, of one kind.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// A connection that has a place.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) place: Place,
}

/// Accepts the connections of one server.
pub(crate) struct Acceptor {
    listener: TcpListener,
    places: Arc<Places>,
    diag: Option<SockDiag>,
    /// What the server is for, in the log.
    purpose: &'static str,
    failures: Told,
    refusals: Told,
}

impl Acceptor {
    pub(crate) fn new(listener: TcpListener, limits: Limits, purpose: &'static str) -> Self {
        let diag = SockDiag::open().inspect_err(|error| {
            warn!(%error, "clients of this host cannot be told apart, and share the connections for {purpose} of one peer");
        });
        Self {
            listener,
            places: Places::new(limits),
            diag: diag.ok(),
            purpose,
            failures: Told::default(),
            refusals: Told::default(),
        }
    }

    /// The next connection that has a place. Others are closed.
    pub(crate) async fn next(&mut self) -> Accepted {
        let mut refused = 0;
        loop {
            match self.listener.accept().await {
                Ok((stream, remote)) => {
                    if let Some(accepted) = self.admit(stream, remote) {
                        return accepted;
                    }
                    refused += 1;
                    if refused % REFUSALS == 0 {
                        sleep(REFUSAL_PAUSE).await;
                    }
                }
                Err(error) => {
                    if let Some(more) = self.failures.tell(Instant::now()) {
                        let purpose = self.purpose;
                        warn!(%error, more, "a connection for {purpose} was not accepted");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, remote: SocketAddr) -> Option<Accepted> {
        let local = stream.local_addr().ok()?;
        let peer = Peer::of(self.diag.as_ref(), local, remote);
        if let Some(place) = self.places.take(peer) {
            return Some(Accepted { stream, place });
        }
        if let Some(more) = self.refusals.tell(Instant::now()) {
            let purpose = self.purpose;
            warn!(
                ?peer,
                more, "too many connections for {purpose}: one was closed"
            );
        }
        None
    }
}

/// What is told once a minute.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Told {
    /// How many were not told since the last time; `None` if this one is not told either.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        let is_due = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL);
        if !is_due {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Check that one line a minute is told, with the number of those that were not.
    #[test]
    fn one_line_a_minute_is_told() {
        let mut told = Told::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(told.tell(at(0)), Some(0));
        for second in [0, 1, 59] {
            assert_eq!(told.tell(at(second)), None);
        }
        assert_eq!(told.tell(at(60)), Some(3));
        assert_eq!(told.tell(at(61)), None);
        assert_eq!(told.tell(at(200)), Some(1));
    }

    /// Check that connections without a place are closed, and no faster than a server can afford.
    #[tokio::test]
    async fn refusals_take_their_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits {
            total: 1,
            per_peer: 1,
            reserved: 0,
        };
        let mut acceptor = Acceptor::new(listener, limits, "a test");
        let client = TcpStream::connect(address).await.unwrap();
        let first = acceptor.next().await;
        let begin = Instant::now();
        let next = tokio::spawn(async move { acceptor.next().await });
        for _ in 0..20 {
            let mut refused = TcpStream::connect(address).await.unwrap();
            assert_eq!(refused.read(&mut [0]).await.unwrap_or(0), 0);
        }
        assert!(begin.elapsed() >= REFUSAL_PAUSE * (20 / REFUSALS - 1));
        drop((client, first));
        let _kept = TcpStream::connect(address).await.unwrap();
        next.await.unwrap();
    }
}
