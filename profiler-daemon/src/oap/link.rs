//! The connection to one of the configured OAPs.
//!
//! In:  addresses; failures seen by callers
//! Out: [`Connection`]s to call on; [`OapEvent::Connected`] and [`OapEvent::Disconnected`]
//!
//! One task keeps the connection. It tries the addresses in turn, pauses when none answers, and
//! starts over when a caller reports that calls no longer get through. Callers wait for the next
//! connection instead of each trying on its own.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use profiler_proto::profilerd::tasks_client::TasksClient;
use profiler_proto::skywalking::management_service_client::ManagementServiceClient;
use profiler_proto::skywalking::profile_task_client::ProfileTaskClient;
use profiler_proto::skywalking::trace_segment_report_service_client::TraceSegmentReportServiceClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::debug;

use super::auth::Token;
use super::backoff::Backoff;
use super::{OapConfig, OapEvent};

/// A connection that lasted this long was good: the next attempt starts with the shortest pause.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Largest answer accepted: a list of commands.
const ANSWER_MAX_BYTES: usize = 4 << 20;

type Authenticated = InterceptedService<Channel, Token>;

/// A connection, good until a call fails.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    channel: Channel,
    token: Token,
    /// Differs for each connection made.
    pub(super) generation: u64,
}

impl Connection {
    pub(super) fn profile_task(&self) -> ProfileTaskClient<Authenticated> {
        ProfileTaskClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(ANSWER_MAX_BYTES)
    }

    pub(super) fn management(&self) -> ManagementServiceClient<Authenticated> {
        ManagementServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
    }

    pub(super) fn trace_segments(&self) -> TraceSegmentReportServiceClient<Authenticated> {
        TraceSegmentReportServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
    }

    pub(super) fn tasks(&self) -> TasksClient<Authenticated> {
        TasksClient::with_interceptor(self.channel.clone(), self.token.clone())
    }
}

/// What a failed call means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The OAP was not reached or did not answer in time, or it refuses the token.
    Link,
    /// The OAP does not know the call.
    Unimplemented,
    /// The OAP is too busy and has not looked at the call.
    Busy,
    /// The OAP answered with an error.
    Refused,
}

impl Failure {
    pub(super) fn of(status: &Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::Unimplemented,
            Code::ResourceExhausted if status.source().is_none() => Self::Busy,
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::PermissionDenied
            | Code::Unauthenticated => Self::Link,
            // An error of our own transport has a cause; one that the OAP sent has none.
            _ if status.source().is_some() => Self::Link,
            _ => Self::Refused,
        }
    }
}

/// Gives connections to callers.
#[derive(Clone, Debug)]
pub(super) struct Link {
    current: watch::Receiver<Option<Connection>>,
    reports: mpsc::Sender<(u64, Report)>,
    /// Generation of the latest connection on which a call was answered.
    answered: Arc<AtomicU64>,
    call_timeout: Duration,
}

/// What a caller tells of a connection.
#[derive(Debug)]
enum Report {
    /// A call was answered, for the first time.
    Answered,
    /// Calls do not get through, for this reason.
    Failed(String),
}

impl Link {
    /// A link and the task that keeps it.
    pub(super) fn new(config: Arc<OapConfig>, events: mpsc::Sender<OapEvent>) -> (Self, Keeper) {
        let (sender, current) = watch::channel(None);
        let (reporting, reports) = mpsc::channel(8);
        let link = Self {
            current,
            reports: reporting,
            answered: Arc::default(),
            call_timeout: config.call_timeout,
        };
        let keeper = Keeper {
            config,
            events,
            sender,
            reports,
        };
        (link, keeper)
    }

    /// Waits for a connection; `None` when the client is shutting down.
    pub(super) async fn connection(&self) -> Option<Connection> {
        let mut current = self.current.clone();
        let connection = current.wait_for(Option::is_some).await.ok()?;
        connection.clone()
    }

    /// Waits until there is a connection other than `generation`.
    pub(super) async fn connection_after(&self, generation: u64) -> Option<Connection> {
        let mut current = self.current.clone();
        let other = |connection: &Option<Connection>| {
            connection
                .as_ref()
                .is_some_and(|c| c.generation != generation)
        };
        let connection = current.wait_for(other).await.ok()?;
        connection.clone()
    }

    /// Makes a call with the deadline; reports to the keeper when the connection is at fault.
    pub(super) async fn call<T>(
        &self,
        connection: &Connection,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let result = timeout(self.call_timeout, call).await.unwrap_or_else(|_| {
            let text = format!("no answer within {:?}", self.call_timeout);
            Err(Status::deadline_exceeded(text))
        });
        let failed = result
            .as_ref()
            .err()
            .filter(|status| Failure::of(status) == Failure::Link);
        let generation = connection.generation;
        let report = match failed {
            Some(status) => Some(Report::Failed(explain(status))),
            None if self.answered.swap(generation, Ordering::Relaxed) != generation => {
                Some(Report::Answered)
            }
            None => None,
        };
        if let Some(report) = report {
            // A full queue means that the keeper has been told already.
            let _ = self.reports.try_send((generation, report));
        }
        result.map(tonic::Response::into_inner)
    }
}

/// Keeps the connection; ends when no [`Link`] is left.
#[derive(Debug)]
pub(super) struct Keeper {
    config: Arc<OapConfig>,
    events: mpsc::Sender<OapEvent>,
    sender: watch::Sender<Option<Connection>>,
    reports: mpsc::Receiver<(u64, Report)>,
}

impl Keeper {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.retry);
        let mut first_backend = 0;
        let mut told_reason = None;
        let mut generation = 0;
        loop {
            match self.connect(first_backend).await {
                Ok((backend, channel, token)) => {
                    generation += 1;
                    let up_since = Instant::now();
                    let connection = Connection {
                        channel,
                        token,
                        generation,
                    };
                    self.sender.send_replace(Some(connection));
                    let failure = self.wait_for_failure(generation, &mut told_reason).await;
                    let Some(reason) = failure else { return };
                    self.sender.send_replace(None);
                    let reason = format!("the OAP at {}: {reason}", self.config.backends[backend]);
                    self.tell_down(reason, &mut told_reason);
                    first_backend = (backend + 1) % self.config.backends.len();
                    if up_since.elapsed() > GOOD_AFTER {
                        backoff.reset();
                    }
                }
                Err(error) => self.tell_down(format!("{error:#}"), &mut told_reason),
            }
            sleep(backoff.pause()).await;
        }
    }

    /// Tries all backends once, from `first` on.
    async fn connect(&self, first: usize) -> Result<(usize, Channel, Token)> {
        let backends = &self.config.backends;
        let mut last_error = anyhow::anyhow!("no OAP is configured");
        for index in (first..backends.len()).chain(0..first) {
            match self.connect_to(&backends[index]).await {
                Ok((channel, token)) => return Ok((index, channel, token)),
                Err(error) => {
                    debug!(backend = backends[index], "{error:#}");
                    last_error = error;
                }
            }
        }
        Err(last_error)
    }

    async fn connect_to(&self, backend: &str) -> Result<(Channel, Token)> {
        let token = Token::new(self.config.token.as_deref())?;
        let endpoint = self.config.endpoint(backend)?;
        let connected = timeout(self.config.connect_timeout, endpoint.connect());
        let channel = connected
            .await
            .map_err(anyhow::Error::from)
            .and_then(|result| result.map_err(anyhow::Error::from))
            .map_err(|error| error.context(format!("failed to connect to the OAP at {backend}")))?;
        Ok((channel, token))
    }

    /// Waits until a caller reports that this connection is bad; `None` when all callers are gone. An
    /// open port is no OAP yet: the application is told of the first answer.
    async fn wait_for_failure(
        &mut self,
        generation: u64,
        told_reason: &mut Option<String>,
    ) -> Option<String> {
        let mut was_answered = false;
        loop {
            match self.reports.recv().await? {
                (of, _) if of != generation => {}
                (_, Report::Failed(reason)) if was_answered => return Some(reason),
                (_, Report::Failed(reason)) => {
                    let tls = if self.config.tls.is_some() {
                        "on"
                    } else {
                        "off"
                    };
                    return Some(format!(
                        "{reason} (wanted is its gRPC port, usually 11800, with TLS {tls})"
                    ));
                }
                (_, Report::Answered) => {
                    was_answered = true;
                    *told_reason = None;
                    self.tell(OapEvent::Connected);
                }
            }
        }
    }

    /// Tells why there is no OAP, once for each reason.
    fn tell_down(&self, reason: String, told_reason: &mut Option<String>) {
        if told_reason.as_ref() != Some(&reason) {
            *told_reason = Some(reason.clone());
            self.tell(OapEvent::Disconnected { reason });
        }
    }

    /// Tells the application. It may not be listening, and it must not hold up the connection.
    fn tell(&self, event: OapEvent) {
        if self.events.try_send(event).is_err() {
            debug!("a connection event was dropped: nobody is reading");
        }
    }
}

/// A status with the causes below it, and what to do about it if that is known.
pub(super) fn explain(status: &Status) -> String {
    let mut text = match status.code() {
        // An OAP says no more than that.
        Code::PermissionDenied | Code::Unauthenticated => {
            "it refuses the token: oap.authentication must be what its SW_AUTHENTICATION is"
                .to_owned()
        }
        code => format!("{code:?}"),
    };
    if !status.message().is_empty() {
        text.push_str(": ");
        text.push_str(status.message());
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check which answers are the connection's fault, and which the OAP's.
    #[test]
    fn failures_are_told_apart() {
        let of = |code| Failure::of(&Status::new(code, "text"));
        assert_eq!(of(Code::Unavailable), Failure::Link);
        assert_eq!(of(Code::DeadlineExceeded), Failure::Link);
        assert_eq!(of(Code::PermissionDenied), Failure::Link);
        assert_eq!(of(Code::Unimplemented), Failure::Unimplemented);
        assert_eq!(of(Code::ResourceExhausted), Failure::Busy);
        assert_eq!(of(Code::Unknown), Failure::Refused);
        assert_eq!(of(Code::OutOfRange), Failure::Refused);
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(broken));
        assert_eq!(Failure::of(&status), Failure::Link);
        assert!(explain(&status).contains("connection reset"));
        let refused = explain(&Status::permission_denied(""));
        assert!(
            refused.ends_with("what its SW_AUTHENTICATION is"),
            "{refused}"
        );
    }
}
