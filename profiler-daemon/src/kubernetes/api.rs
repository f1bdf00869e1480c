//! One call of the API server.
//!
//! In:  a query for pods of the node
//! Out: the body, whole or by lines
//! Lost: nothing; what is too long is an error
//!
//! The token and the certificates are read for each call: both are replaced while we run.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::settings::Target;
use crate::model::plain::acts;

/// A page of 250 pods is some megabytes.
const PAGE_MAX_BYTES: usize = 32 << 20;
/// etcd takes 1.5 MiB for one object.
const LINE_MAX_BYTES: usize = 4 << 20;
/// What is read of the body of a refusal.
const REFUSAL_MAX_BYTES: usize = 4 << 10;
const TOKEN_MAX_BYTES: usize = 64 << 10;

/// An API server.
#[derive(Debug)]
pub(super) struct Api {
    target: Target,
}

impl Api {
    pub(super) fn new(target: Target) -> Self {
        Self { target }
    }

    /// A page of the list of pods; `query` goes behind the node's selector.
    pub(super) async fn page(&self, query: &str) -> Result<Bytes> {
        let (response, _connection) = self.get(query).await?;
        let body = Limited::new(response.into_body(), PAGE_MAX_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow!("the answer broke off or is too long: {error}"))?;
        Ok(body.to_bytes())
    }

    /// A watch of pods, one event per line.
    pub(super) async fn lines(&self, query: &str) -> Result<Lines> {
        let (response, connection) = self.get(query).await?;
        Ok(Lines {
            body: response.into_body(),
            _connection: connection,
            buffer: Vec::new(),
        })
    }

    async fn get(&self, query: &str) -> Result<(Response<Incoming>, Driver)> {
        let Target {
            host, port, node, ..
        } = &self.target;
        let to = || format!("the API server at {host}:{port}");
        let stream = TcpStream::connect((host.as_str(), *port))
            .await
            .with_context(|| format!("failed to connect to {}", to()))?;
        let (mut sender, driver) = if self.target.is_tls {
            let stream = self.encrypt(stream).await.with_context(to)?;
            drive(handshake(TokioIo::new(stream)).await.with_context(to)?)
        } else {
            drive(handshake(TokioIo::new(stream)).await.with_context(to)?)
        };
        let selector = encode(&format!("spec.nodeName={node}"));
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let request = Request::get(format!("/api/v1/pods?fieldSelector={selector}{query}"))
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("profilerd/", env!("CARGO_PKG_VERSION")),
            )
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.token().await?),
            )
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(to)?;
        match response.status() {
            StatusCode::OK => Ok((response, driver)),
            status => {
                let body = Limited::new(response.into_body(), REFUSAL_MAX_BYTES)
                    .collect()
                    .await;
                let text = body.map(|body| body.to_bytes()).unwrap_or_default();
                bail!("{}: {}", to(), explain(status, &text))
            }
        }
    }

    async fn token(&self) -> Result<String> {
        let path = &self.target.token_file;
        let token = read(path).await?;
        let token = std::str::from_utf8(&token).unwrap_or_default().trim();
        let is_header =
            token.len() <= TOKEN_MAX_BYTES && token.chars().all(|c| c.is_ascii_graphic());
        if token.is_empty() || !is_header {
            bail!("{} holds no token", path.display());
        }
        Ok(token.to_owned())
    }

    async fn encrypt(
        &self,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let path = &self.target.ca_file;
        let pem = read(path).await?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate =
                certificate.with_context(|| format!("{} is not PEM", path.display()))?;
            roots
                .add(certificate)
                .context("a certificate cannot be used")?;
        }
        if roots.is_empty() {
            bail!("{} holds no certificate", path.display());
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("no TLS version can be used")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name =
            ServerName::try_from(self.target.host.clone()).context("not the name of a host")?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await;
        stream.context("TLS failed")
    }
}

/// Files of ours that are on a disk like any other.
async fn read(path: &Path) -> Result<Vec<u8>> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(owned)).await?;
    read.with_context(|| format!("failed to read {}", path.display()))
}

/// What may stand in a query as it is.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn explain(status: StatusCode, body: &[u8]) -> String {
    let remedy = match status {
        StatusCode::UNAUTHORIZED => "; the token is not accepted, see kubernetes.token_file",
        StatusCode::FORBIDDEN => "; the service account may not list and watch pods",
        _ => "",
    };
    let status_text = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let message = status_text["message"].as_str().unwrap_or_default();
    let message: String = message.chars().filter(|&c| !acts(c)).take(200).collect();
    format!("HTTP {status}{remedy} {message}")
        .trim_end()
        .to_owned()
}

/// Ends the connection when dropped.
pub(super) struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Handshake<S> = (
    SendRequest<Empty<Bytes>>,
    Connection<TokioIo<S>, Empty<Bytes>>,
);

fn drive<S>((sender, connection): Handshake<S>) -> (SendRequest<Empty<Bytes>>, Driver)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let driver = tokio::spawn(connection).abort_handle();
    (sender, Driver(driver))
}

/// The lines of a body as they come.
pub(super) struct Lines {
    body: Incoming,
    _connection: Driver,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line that is not empty, `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let end = self.buffer[searched..]
                .iter()
                .position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let rest = self.buffer.split_off(searched + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched > LINE_MAX_BYTES {
                bail!("an event of the watch is longer than {LINE_MAX_BYTES} bytes");
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None); // what is left is no whole event
            };
            if let Ok(data) = frame.context("the watch broke off")?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
