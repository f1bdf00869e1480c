//! The client side of SkyWalking's protocol: tasks come in, snapshots go out.
//!
//! In:  [`ProfiledSegment`]s, service instances, coverage, through [`OapHandle`]
//! Out: [`OapEvent`]s: tasks to run; and all that is sent to the OAP
//! Lost: segments over the limits of queue and spool, and snapshots on a failed connection, counted per task
//! ([`DeliveryStats`]); commands that are refused, told as events
//!
//! ```text
//!                  link.rs: one connection, kept, failed over (cause.rs, tls.rs: why not; skew.rs: its clock;
//!                                                              dial.rs: whom it may be with;
//!                                                              token.rs: what it is let in by)
//!                 /          |                \
//! presence.rs  heartbeat   poll.rs  tasks     report.rs  segments, snapshots, ends of tasks
//!    (turns.rs: each in its turn)             ^
//! endpoints.rs  what services are asked for  |
//!                            |                |
//!                     command.rs: checked   queue.rs <- segment.rs
//!                            v                |   \ room.rs: how much, spool.rs: the rest on disk
//!                         OapEvent          OapHandle
//! ```
//!
//! Embedded or real, an OAP is spoken to in one way; only `ReportCoverage` is ours, and an OAP that
//! does not know it is not asked again on that connection.

pub mod auth;
mod cause;
pub(crate) mod command;
mod config;
mod delivery;
pub(crate) mod dial;
mod endpoints;
pub mod graphql;
mod ledger;
mod link;
mod observe;
mod outgoing;
mod poll;
mod presence;
mod progress;
mod queue;
mod report;
mod room;
mod segment;
mod skew;
mod spool;
mod spool_file;
mod tls;
mod token;
mod turns;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::model::{Coverage, ProfileTask, ProfiledSegment, Service, TaskId};
use crate::model::{backoff, name};
use endpoints::Introducer;
use link::Link;
use observe::LinkState;
use poll::Poller;
use presence::Presence;
use queue::Queue;
use report::Reporter;
use skew::Skew;
use token::TokenKeeper;

pub use config::OapConfig;
pub use delivery::DeliveryStats;
pub use endpoints::EndpointNews;
pub use observe::Contact;
pub use presence::Reporting;
pub use queue::ReportError;
pub use room::QueueRoom;
pub use tls::TlsConfig;
pub use token::{TokenNow, TokenSource};

/// Events that may wait for the application.
const EVENTS_MAX: usize = 64;

/// An event of the OAP client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OapEvent {
    /// Run this task at the instance it names. It comes once per instance.
    Task(ProfileTask),
    /// A task for this instance was not understood or is out of range; nothing of it is run.
    TaskRefused {
        /// The task, if the command names one that can be reported on.
        task_id: Option<TaskId>,
        /// The instance it was for.
        service: Service,
        /// Why, for people.
        reason: String,
    },
    /// A user has cancelled this task at the built-in OAP. It may come several times.
    TaskCancelled(TaskId),
    /// An OAP has answered.
    Connected,
    /// No OAP can be reached; attempts go on.
    Disconnected {
        /// The first cause, for people.
        reason: String,
    },
}

/// Number of records of a spool file that can be read.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_spool_file(bytes: &[u8]) -> u64 {
    let mut records = spool_file::Records::new(bytes);
    let mut count = 0;
    while let Ok(spool_file::Found::Item(_) | spool_file::Found::Unreadable) = records.next() {
        count += 1;
    }
    count
}

/// Starts the client.
#[derive(Debug)]
pub struct OapClient;

impl OapClient {
    /// Starts the client on the current tokio runtime. It stops at [`OapHandle::shutdown`] or when
    /// the last handle is dropped.
    ///
    /// Connection events are dropped when nobody reads them; tasks wait.
    #[must_use]
    pub fn spawn(config: OapConfig) -> (OapHandle, mpsc::Receiver<OapEvent>) {
        let config = Arc::new(config);
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (services, watched) = watch::channel(Arc::default());
        let queue = Arc::new(match config.open_spool() {
            Some((spool, losses)) => Queue::with_spool(config.queue, spool, losses),
            None => Queue::new(config.queue),
        });
        let (token_source, source) = watch::channel(config.token.clone());
        let (token_keeper, token) = TokenKeeper::new(source);
        let (link, keeper) = Link::new(Arc::clone(&config), token.clone(), events.clone());
        let (state, skew) = (Arc::clone(&link.state), Arc::clone(&link.skew));
        let poller = Poller {
            config: Arc::clone(&config),
            link: link.clone(),
            services: watched.clone(),
            events: events.clone(),
        };
        let presence = Presence {
            config: Arc::clone(&config),
            link: link.clone(),
            services: watched.clone(),
        };
        let (endpoints, news) = mpsc::channel(endpoints::WAITING_MAX);
        let introducer = Introducer {
            link: link.clone(),
            services: watched,
            news,
        };
        let reporter = Reporter {
            config,
            link,
            queue: Arc::clone(&queue),
            events,
            without_coverage: None,
        };
        let running = Running {
            reporter: Mutex::new(Some(tokio::spawn(reporter.run()))),
            others: [
                tokio::spawn(token_keeper.run()),
                tokio::spawn(keeper.run()),
                tokio::spawn(poller.run()),
                tokio::spawn(presence.run()),
                tokio::spawn(introducer.run()),
            ],
        };
        let handle = OapHandle {
            queue,
            state,
            skew,
            token_source: Arc::new(token_source),
            token,
            services: Arc::new(services),
            endpoints,
            running: Arc::new(running),
        };
        (handle, receiver)
    }
}

/// How long the reporter may take to return its items at a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// The client's tasks; they end with it.
#[derive(Debug)]
struct Running {
    reporter: Mutex<Option<JoinHandle<()>>>,
    others: [JoinHandle<()>; 5],
}

impl Running {
    fn take_reporter(&self) -> Option<JoinHandle<()>> {
        let mut reporter = self.reporter.lock().unwrap_or_else(PoisonError::into_inner);
        reporter.take()
    }

    fn abort_others(&self) {
        for task in &self.others {
            task.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.abort_others();
        if let Some(reporter) = self.take_reporter() {
            reporter.abort();
        }
    }
}

/// The application's side of a running client. Clones share it.
#[derive(Clone, Debug)]
pub struct OapHandle {
    queue: Arc<Queue>,
    state: Arc<LinkState>,
    skew: Arc<Skew>,
    token_source: Arc<watch::Sender<TokenSource>>,
    token: watch::Receiver<TokenNow>,
    services: Arc<watch::Sender<Arc<Vec<Reporting>>>>,
    endpoints: mpsc::Sender<Vec<EndpointNews>>,
    running: Arc<Running>,
}

impl OapHandle {
    /// Replaces the service instances. Exactly these are asked for tasks; heartbeats are sent for those that
    /// no agent reports.
    pub fn set_services(&self, services: impl IntoIterator<Item = impl Into<Reporting>>) {
        let services: Vec<Reporting> = services.into_iter().map(Into::into).collect();
        self.services.send_if_modified(|current| {
            let is_new = **current != services;
            if is_new {
                *current = Arc::new(services);
            }
            is_new
        });
    }

    /// Has the token taken from here from now on. A connection that has another one is replaced.
    pub fn set_token(&self, source: TokenSource) {
        self.token_source.send_if_modified(|current| {
            let is_new = *current != source;
            if is_new {
                *current = source;
            }
            is_new
        });
    }

    /// The token as it is now, for others who ask the OAP.
    #[must_use]
    pub fn token(&self) -> watch::Receiver<TokenNow> {
        self.token.clone()
    }

    /// Tells the OAP of endpoints that services have.
    pub fn tell_endpoints(&self, news: Vec<EndpointNews>) {
        let count = news.len();
        if count > 0 && self.endpoints.try_send(news).is_err() {
            tracing::warn!(
                count,
                "endpoints are not told to the OAP: too many wait to be"
            );
        }
    }

    /// Queues a profiled request for delivery. Snapshots without frames are left out and the others
    /// numbered from 0.
    ///
    /// # Errors
    ///
    /// [`ReportError`] if it was not taken; its snapshots count as lost then. May write to the disk.
    pub fn report(&self, segment: ProfiledSegment) -> Result<(), ReportError> {
        self.queue.report(segment)
    }

    /// Sends the counts of a task at an instance while it runs; only the latest of a task is kept.
    /// What became of its requests on the way is added here, see [`DeliveryStats::add_to`].
    pub fn coverage(&self, task_id: TaskId, service: Service, coverage: Coverage) {
        self.queue.coverage((task_id, service), coverage);
    }

    /// Reports the end of a task at an instance, after everything that was reported before. May write to
    /// the disk.
    pub fn finish(&self, task_id: TaskId, service: Service, coverage: Coverage) {
        self.queue.finish((task_id, service), coverage);
    }

    /// What became of a task's snapshots so far, over all instances.
    #[must_use]
    pub fn delivery(&self, task_id: &TaskId) -> DeliveryStats {
        self.queue.stats(task_id)
    }

    /// What became of a task's snapshots at an instance so far.
    #[must_use]
    pub fn delivery_at(&self, task_id: &TaskId, service: &Service) -> DeliveryStats {
        self.queue.stats_at(&(task_id.clone(), service.clone()))
    }

    /// Adds to the counts of a task at an instance what became of its requests on the way to the OAP.
    pub fn add_delivery(&self, task_id: &TaskId, service: &Service, coverage: &mut Coverage) {
        self.delivery_at(task_id, service).add_to(coverage);
    }

    /// A sentence about the clock of the OAP, if it is more than a second from the clock of this host.
    #[must_use]
    pub fn clock_skew(&self) -> Option<String> {
        self.skew.text()
    }

    /// Delivers what waits, for at most `deadline`, and stops. Returns the number of snapshots that
    /// were given up.
    pub async fn shutdown(&self, deadline: Duration) -> u64 {
        self.queue.close();
        if let Some(mut reporter) = self.running.take_reporter()
            && timeout(deadline, &mut reporter).await.is_err()
        {
            // It gives back what no connection has taken; a call that hangs is not waited for.
            self.queue.stop();
            if timeout(STOP_DEADLINE, &mut reporter).await.is_err() {
                reporter.abort();
                let _ = reporter.await;
            }
        }
        self.running.abort_others();
        self.queue.give_up()
    }
}
