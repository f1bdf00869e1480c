//! An OAP in the daemon: SkyWalking's profiling services over gRPC, with results for people.
//!
//! In:  tasks by `profilerd task`; heartbeats, segments, snapshots by language agents and by our
//!      own reporter ([`crate::oap`]), which knows no other way to it than gRPC
//! Out: commands for agents; results analysed by [`crate::analyze`]
//! Lost: see [`store`]
//!
//! ```text
//! agents, profilerd  --ProfileTask, ManagementService, TraceSegmentReportService-->  agents.rs
//! agents             --meters, logs and the like, forgotten--------------------------->  unkept.rs
//! profilerd task     --profilerd.v1.Tasks------------------------------------------>  tasks.rs
//! profilerd task, UIs --GraphQL over HTTP------------------------------------------>  query/
//! anything           --grpc.health.v1.Health--------------------------------------->  tonic-health
//!                    (grpc.rs: the server of all these, with its limits; unfinished.rs: of messages)
//!                                                       agents.rs, tasks.rs  ----->  store.rs
//!                                                                  store.rs  ----->  storage/
//! ```
//!
//! What a SkyWalking OAP refuses is refused here with the same words ([`task`]); what it would not
//! show is not shown ([`store`]). Unlike OAP, a new task is delivered at once: there is no cache
//! that is refreshed every 10 s.

mod agents;
pub mod cancel;
mod chunk;
pub mod client;
mod door;
mod grpc;
mod intake;
mod lookup;
mod query;
mod record;
mod span;
mod storage;
pub mod store;
#[cfg(test)]
mod store_tests;
pub mod task;
mod tasks;
pub mod trace;
mod unfinished;
mod unkept;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{info, warn};

use door::Door;
use store::{Store, StoreLimits};

use crate::http::HttpServer;
use crate::model::clock::unix_ms_now;

pub use client::TaskClient;
pub use query::sdl;
#[cfg(feature = "fuzzing")]
pub(crate) use query::server::answer_anything;
pub use storage::StorageError;
pub use storage::database::{DataDir, OpenError};

/// How often old data is looked for. Retention counts in days.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);
/// How long a stop waits for open calls.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How the built-in OAP is run.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where to answer GraphQL, if at all.
    pub http_listen: Option<SocketAddr>,
    /// Names by which GraphQL may be asked, beside addresses, `localhost` and the name of this host.
    pub host_names: Vec<String>,
    /// Token that callers of either door must send, see `door.rs`; `None` lets everybody in.
    pub token: Option<String>,
    /// Where the data is kept.
    pub data: DataDir,
    /// Sizes of the store.
    pub limits: StoreLimits,
}

impl EmbeddedConfig {
    /// In memory, without GraphQL and a token, with the default sizes.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            http_listen: None,
            host_names: Vec::new(),
            token: None,
            data: DataDir::Memory,
            limits: StoreLimits::default(),
        }
    }
}

/// A running built-in OAP. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct EmbeddedOap {
    local_addr: SocketAddr,
    store: Arc<Store>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    query: Option<HttpServer>,
    _sweeper: Sweeper,
}

/// The task that removes what is too old; ends when dropped.
#[derive(Debug)]
struct Sweeper(JoinHandle<()>);

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn sweep(store: Arc<Store>) {
    let mut turns = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        turns.tick().await;
        // A failure is in the log already, and the next turn tries again.
        let _ = store.run(|store| store.sweep(unix_ms_now())).await;
    }
}

impl EmbeddedOap {
    /// Starts on `listen`, in memory, without GraphQL and a token.
    ///
    /// # Errors
    ///
    /// See [`Self::start_with`].
    pub async fn start(listen: SocketAddr) -> Result<Self> {
        Self::start_with(EmbeddedConfig::new(listen)).await
    }

    /// Starts. Calls are accepted when this returns.
    ///
    /// # Errors
    ///
    /// If the address cannot be listened on, or the data not used; the text says what to do.
    pub async fn start_with(config: EmbeddedConfig) -> Result<Self> {
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "failed to listen on {listen}; is another OAP or profilerd running there? \
                 Choose another address with --listen"
            )
        })?;
        let local_addr = listener
            .local_addr()
            .context("failed to read the listening address")?;
        let EmbeddedConfig { data, limits, .. } = config;
        let store = spawn_blocking(move || Store::open(&data, limits)).await;
        let store = Arc::new(store.context("the store of the built-in OAP was not opened")??);
        let door = Door::new(config.token);
        let query = match config.http_listen {
            Some(listen) => {
                let (store, door) = (Arc::clone(&store), door.clone());
                Some(query::server::start(listen, &config.host_names, store, door).await?)
            }
            None => None,
        };
        let (stop, stopped) = oneshot::channel();
        let services = grpc::services(&store, door).await;
        let sweeper = Sweeper(tokio::spawn(sweep(Arc::clone(&store))));
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await; // a dropped sender means stop, too
            };
            if let Err(error) = grpc::serve(listener, services, stopped).await {
                warn!(%error, "the built-in OAP has failed");
            }
        });
        info!(%local_addr, "the built-in OAP listens");
        Ok(Self {
            local_addr,
            store,
            stop,
            server,
            query,
            _sweeper: sweeper,
        })
    }

    /// Address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Address at which it answers GraphQL.
    #[must_use]
    pub fn query_addr(&self) -> Option<SocketAddr> {
        self.query.as_ref().map(HttpServer::local_addr)
    }

    /// What it remembers, for looking at.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stops: no new calls, open ones get two seconds.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(STOP_DEADLINE, &mut self.server)
            .await
            .is_err()
        {
            self.server.abort();
            let _ = self.server.await;
        }
    }
}
