//! How to reach an OAP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::room::QueueRoom;
use super::spool::{Losses, Spool};
use super::tls::TlsConfig;
use super::token::TokenSource;
use crate::model::ProfileTask;
use anyhow::{Context, Result, bail};
use tokio::sync::Notify;
use tonic::transport::Endpoint;

/// Everything the client needs to know.
#[derive(Clone, Debug)]
pub struct OapConfig {
    /// OAPs as `host:port`; the first that can be reached is used.
    pub backends: Vec<String>,
    /// Token sent as `authentication` metadata.
    pub token: TokenSource,
    /// TLS; `None` is plain text.
    pub tls: Option<TlsConfig>,
    /// User ids whose programs on this host may be spoken to in plain text, beside root and our own.
    pub local_users: Vec<u32>,
    /// Time between two task queries of an instance. Agents ask every 20 s, which is the largest
    /// part of a task's start latency; a query is one small call.
    pub poll_interval: Duration,
    /// Notified by somebody who knows that there is a task to ask for, before the interval is over.
    pub poll_now: Option<Arc<Notify>>,
    /// Tasks that were received before: they are not received again.
    pub known_tasks: Vec<ProfileTask>,
    /// Time between two heartbeats of an instance.
    pub heartbeat_interval: Duration,
    /// Properties are sent with every so many heartbeats.
    pub properties_every: u32,
    /// Longest time for one connection attempt.
    pub connect_timeout: Duration,
    /// Longest time for one call, a stream of snapshots included.
    pub call_timeout: Duration,
    /// First and longest pause between connection attempts.
    pub retry: (Duration, Duration),
    /// What may wait for delivery in memory, over all tasks.
    pub queue: QueueRoom,
    /// Folder for what the memory has no room for, and its most bytes; `None` keeps nothing on disk.
    pub spool: Option<(PathBuf, u64)>,
    /// Most snapshots in one stream.
    pub batch_snapshots: usize,
}

impl OapConfig {
    /// For a built-in OAP, which says when there is a task.
    #[must_use]
    pub fn embedded(address: impl Into<String>, task_created: Arc<Notify>) -> Self {
        Self {
            poll_now: Some(task_created),
            retry: (Duration::from_millis(100), Duration::from_secs(5)),
            ..Self::new(vec![address.into()])
        }
    }

    /// Whether the OAP is part of this process.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.poll_now.is_some()
    }

    /// For SkyWalking OAPs.
    #[must_use]
    pub fn new(backends: Vec<String>) -> Self {
        Self {
            backends,
            token: TokenSource::None,
            tls: None,
            local_users: Vec::new(),
            poll_interval: Duration::from_secs(5),
            poll_now: None,
            known_tasks: Vec::new(),
            heartbeat_interval: Duration::from_secs(30),
            properties_every: 10,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            retry: (Duration::from_millis(500), Duration::from_secs(30)),
            queue: QueueRoom::default(),
            spool: None,
            batch_snapshots: 1_000,
        }
    }

    /// Checks what can be checked without connecting.
    ///
    /// # Errors
    ///
    /// If there is no backend, an address is malformed or the token cannot be sent.
    pub fn check(&self) -> Result<()> {
        if self.backends.is_empty() {
            bail!(
                "no OAP is named: give the address of its gRPC port with --backend HOST:PORT, with \
                 SW_AGENT_COLLECTOR_BACKEND_SERVICES=HOST:PORT, or as oap.backends in the configuration; \
                 `profilerd standalone` runs without one"
            );
        }
        self.check_given()
    }

    /// As [`Self::check`], for those who need no OAP.
    ///
    /// # Errors
    ///
    /// If an address is malformed or the token cannot be sent.
    pub fn check_given(&self) -> Result<()> {
        for backend in &self.backends {
            self.endpoint_without_tls(backend)?;
        }
        self.token.check()
    }

    /// The spool, if there is to be one. A disk that cannot be used must not end the daemon.
    pub(super) fn open_spool(&self) -> Option<(Spool, Losses)> {
        let (folder, limit_bytes) = self.spool.as_ref()?;
        match Spool::open(folder, *limit_bytes) {
            Ok(opened) => Some(opened),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "results that no OAP accepts are kept in memory only");
                None
            }
        }
    }

    /// A tonic endpoint for one backend.
    pub(super) fn endpoint(&self, backend: &str) -> Result<Endpoint> {
        let endpoint = self.endpoint_without_tls(backend)?;
        match &self.tls {
            Some(tls) => endpoint
                .tls_config(tls.to_tonic()?)
                .context("the TLS configuration cannot be used"),
            None => Ok(endpoint),
        }
    }

    fn endpoint_without_tls(&self, backend: &str) -> Result<Endpoint> {
        let malformed = || format!("{backend:?} is not an OAP address of the form HOST:PORT");
        let (host, port) = backend.rsplit_once(':').with_context(malformed)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            bail!(malformed());
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint =
            Endpoint::from_shared(format!("{scheme}://{backend}")).with_context(malformed)?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(60)))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check which addresses are taken.
    #[test]
    fn addresses_are_host_and_port() {
        let check = |backend: &str| OapConfig::new(vec![backend.to_owned()]).check();
        for good in ["127.0.0.1:11800", "oap:11800", "[::1]:11800"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "oap",
            "oap:",
            ":1",
            "oap:99999",
            "http://oap:1",
            "a b:1",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(OapConfig::new(Vec::new()).check().is_err());
    }
}
