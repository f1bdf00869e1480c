//! Connects to an OAP in plain text. On this host only programs of trusted users are spoken to.
//!
//! In:  an address
//! Out: a channel; each of its connections is checked before anything is sent
//! Lost: nothing

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use crate::connection::trust::Trusted;

/// After so long without a byte the kernel asks whether the other end still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connects, and does so again whenever the channel needs a connection.
///
/// # Errors
///
/// Nobody listens there, or a user who is not trusted.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    trusted: Trusted,
) -> Result<Channel, tonic::transport::Error> {
    endpoint.connect_with_connector(Dialer(trusted)).await
}

/// A connection, if its other end may be spoken to.
///
/// # Errors
///
/// As [`dial`].
pub(crate) async fn connect(host: &str, port: u16, trusted: Trusted) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
    let checked = spawn_blocking(move || trusted.check(local, remote));
    checked.await.map_err(io::Error::other)??;
    Ok(stream)
}

struct Dialer(Trusted);

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let trusted = self.0.clone();
        Box::pin(async move {
            let place = uri.host().zip(uri.port_u16());
            let (host, port) = place.ok_or(io::ErrorKind::InvalidInput)?;
            let stream = connect(host, port, trusted).await?;
            stream.set_nodelay(true)?;
            // As the kernel counts: whole seconds.
            setsockopt(&stream, sockopt::KeepAlive, &true)?;
            setsockopt(&stream, sockopt::TcpKeepIdle, &(KEEPALIVE.as_secs() as u32))?;
            Ok(TokioIo::new(stream))
        })
    }
}
