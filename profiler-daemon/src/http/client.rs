//! One request on a connection of its own.
//!
//! In:  a connection and a request
//! Out: the status and the body, whole
//! Lost: nothing; a body over the caller's bound is an error

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Sends, and reads an answer of at most `body_max_bytes`. How long that may take is the caller's.
///
/// # Errors
///
/// It is no HTTP, or the answer broke off or is too long.
pub(crate) async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
    body_max_bytes: usize,
) -> Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with this call, also if the call is dropped.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), body_max_bytes);
    let body = body
        .collect()
        .await
        .map_err(|error| anyhow!("the answer broke off or is too long: {error}"))?;
    Ok((status, body.to_bytes()))
}
