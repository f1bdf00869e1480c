//! Asks the daemon of this host for its state.
//!
//! In:  `GET /status.json`
//! Out: an [`Observation`]
//! Lost: figures that only another version of profilerd knows

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::STATUS_PATH;
use crate::http::client::exchange;
use crate::model::Observation;

/// Largest answer accepted: ten times the usual size.
const ANSWER_MAX_BYTES: usize = 64 << 10;
/// Longer than the server waits.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the program that listens at `address`.
///
/// # Errors
///
/// Nobody does, or it is no profilerd; the text says what to do.
pub async fn ask(address: SocketAddr) -> Result<Observation> {
    let answer = timeout(TIMEOUT, get(address));
    let body = answer
        .await
        .unwrap_or_else(|_| bail!("no answer within {TIMEOUT:?}"))
        .with_context(|| {
            format!(
                "no profilerd answers at {address}; is one running, with --metrics {address}? Its log \
                 names the address"
            )
        })?;
    serde_json::from_slice(&body).with_context(|| {
        format!("the program at {address} is not profilerd, or another version of it")
    })
}

async fn get(address: SocketAddr) -> Result<Bytes> {
    let request = Request::get(STATUS_PATH)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Full::default())?;
    let stream = TcpStream::connect(address)
        .await
        .context("failed to connect")?;
    let (status, body) = exchange(stream, request, ANSWER_MAX_BYTES).await?;
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::SERVICE_UNAVAILABLE => bail!("it is stopping, or too busy to answer"),
        status => bail!("the answer is HTTP {status}"),
    }
}
