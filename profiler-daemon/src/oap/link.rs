//! The connection to one of the configured OAPs.
//!
//! In:  addresses; failures seen by callers
//! Out: [`Connection`]s to call on; [`OapEvent::Connected`] and [`OapEvent::Disconnected`]
//!
//! One task keeps the connection. It tries the addresses in turn, pauses when none answers, and
//! starts over when a caller reports that calls no longer get through. Callers wait for the next
//! connection instead of each trying on its own.

use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use profiler_proto::profilerd::tasks_client::TasksClient;
use profiler_proto::skywalking::log_report_service_client::LogReportServiceClient;
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
use super::cause;
use super::dial::dial;
use super::observe::LinkState;
use super::skew::{Bounds, Skew};
use super::{OapConfig, OapEvent, TokenNow, tls};
use crate::connection::trust::Trusted;
use crate::model::clock::unix_ms_now;

/// A connection that lasted this long was good: the next attempt starts with the shortest pause.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Largest answer accepted: a list of commands.
const ANSWER_MAX_BYTES: usize = 4 << 20;

/// Reasons remembered.
const TOLD_MAX: usize = 16;

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

    pub(super) fn logs(&self) -> LogReportServiceClient<Authenticated> {
        LogReportServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
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
    /// The OAP is too busy and has not read the call.
    Busy,
    /// The OAP answered with an error.
    Refused,
}

impl Failure {
    pub(super) fn of(status: &Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::Unimplemented,
            // A message that is too large is so the next time as well.
            Code::ResourceExhausted if status.message().contains("exceeds maximum") => {
                Self::Refused
            }
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
    report: Arc<watch::Sender<Report>>,
    pub(super) state: Arc<LinkState>,
    call_timeout: Duration,
    /// The clock of the OAP, as its answers show it.
    pub(super) skew: Arc<Skew>,
}

/// Reports of callers about connections.
#[derive(Debug, Default)]
struct Report {
    /// The latest on which a call was answered.
    answered: u64,
    /// The latest on which calls do not get through, and why.
    failed: Option<(u64, String)>,
}

impl Link {
    /// A link and the task that keeps it.
    pub(super) fn new(
        config: Arc<OapConfig>,
        token: watch::Receiver<TokenNow>,
        events: mpsc::Sender<OapEvent>,
    ) -> (Self, Keeper) {
        let (sender, current) = watch::channel(None);
        let (report, reports) = watch::channel(Report::default());
        let (state, skew) = (Arc::<LinkState>::default(), Arc::<Skew>::default());
        let link = Self {
            current,
            report: Arc::new(report),
            state: Arc::clone(&state),
            call_timeout: config.call_timeout,
            skew: Arc::clone(&skew),
        };
        let keeper = Keeper {
            config,
            token,
            events,
            sender,
            reports,
            state,
            skew,
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
        self.stream(connection, &AtomicUsize::new(0), call).await
    }

    /// As [`Self::call`], for a stream of which `taken` counts the messages. As long as they are taken, the
    /// OAP is slow, not gone.
    pub(super) async fn stream<T>(
        &self,
        connection: &Connection,
        taken: &AtomicUsize,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let asked_ms = unix_ms_now();
        let result = self.answer(taken, call).await;
        let failed = result
            .as_ref()
            .err()
            .filter(|status| Failure::of(status) == Failure::Link);
        let generation = connection.generation;
        let answered_ms = unix_ms_now();
        if let Some(status) = failed {
            self.report.send_if_modified(|report| {
                let is_new = report
                    .failed
                    .as_ref()
                    .is_none_or(|&(of, _)| of < generation);
                if is_new {
                    report.failed = Some((generation, explain(status)));
                }
                is_new
            });
        } else {
            self.state.on_answer(answered_ms);
            self.report.send_if_modified(|report| {
                let is_new = report.answered < generation;
                report.answered = report.answered.max(generation);
                is_new
            });
        }
        let response = result?;
        if let Some(bounds) = Bounds::of_answer(response.metadata(), asked_ms, answered_ms) {
            self.skew.learn(bounds);
        }
        Ok(response.into_inner())
    }

    async fn answer<T>(
        &self,
        taken: &AtomicUsize,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mut call = pin!(call);
        let answers = self.state.answers();
        loop {
            let before = taken.load(Ordering::Relaxed);
            if let Ok(result) = timeout(self.call_timeout, &mut call).await {
                return result;
            }
            if taken.load(Ordering::Relaxed) != before {
                continue;
            }
            let text = format!("no answer within {:?}", self.call_timeout);
            // One that answers others has a reason to be silent here, and is no worse on another connection.
            return Err(if self.state.answers() == answers {
                Status::deadline_exceeded(text)
            } else {
                Status::aborted(text)
            });
        }
    }
}

/// Why a connection is given up.
enum Down {
    /// The text says all there is to say.
    Explained(String),
    /// Nothing has come from the other side that an OAP would say.
    NeverAnswered(String),
    /// It has another token than the one to be sent now.
    OldToken,
}

/// Reasons that the application was told since an OAP answered. A wrong port may fail in turns in several ways.
#[derive(Debug, Default)]
struct Told(Vec<String>);

impl Told {
    fn is_new(&mut self, reason: &str) -> bool {
        let is_new = !self.0.iter().any(|told| told == reason);
        if is_new {
            if self.0.len() >= TOLD_MAX {
                self.0.remove(0);
            }
            self.0.push(reason.to_owned());
        }
        is_new
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

/// Keeps the connection; ends when no [`Link`] is left.
#[derive(Debug)]
pub(super) struct Keeper {
    config: Arc<OapConfig>,
    token: watch::Receiver<TokenNow>,
    events: mpsc::Sender<OapEvent>,
    sender: watch::Sender<Option<Connection>>,
    reports: watch::Receiver<Report>,
    state: Arc<LinkState>,
    skew: Arc<Skew>,
}

impl Keeper {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.retry);
        let mut first_backend = 0;
        let mut told = Told::default();
        let mut generation = 0;
        loop {
            match self.connect(first_backend).await {
                Ok((backend, channel, token)) => {
                    generation += 1;
                    self.state.on_connection();
                    self.skew.forget();
                    let up_since = Instant::now();
                    let connection = Connection {
                        channel,
                        token,
                        generation,
                    };
                    self.sender.send_replace(Some(connection));
                    let failure = self.wait_for_failure(generation, &mut told).await;
                    let Some(failure) = failure else { return };
                    self.sender.send_replace(None);
                    if let Down::OldToken = failure {
                        told.forget();
                        backoff.reset();
                        first_backend = backend;
                        continue;
                    }
                    let backend_name = &self.config.backends[backend];
                    let reason = self.down_reason(failure, backend_name).await;
                    self.tell_down(format!("the OAP at {backend_name}: {reason}"), &mut told);
                    first_backend = (backend + 1) % self.config.backends.len();
                    if up_since.elapsed() > GOOD_AFTER {
                        backoff.reset();
                    }
                }
                Err(error) => self.tell_down(format!("{error:#}"), &mut told),
            }
            tokio::select! {
                () = sleep(backoff.pause()) => {}
                // It may have been refused for its token.
                Ok(()) = self.token.changed() => {}
            }
        }
    }

    /// Tries all backends once, from `first` on.
    async fn connect(&mut self, first: usize) -> Result<(usize, Channel, Token)> {
        let token = {
            let token = self.token.borrow_and_update();
            Token::new(token.get()?)?
        };
        let backends = &self.config.backends;
        let mut reasons = Vec::new();
        for index in (first..backends.len()).chain(0..first) {
            match self.connect_to(&backends[index]).await {
                Ok(channel) => return Ok((index, channel, token)),
                Err(error) => {
                    debug!(backend = backends[index], "{error:#}");
                    reasons.push(format!("{error:#}"));
                }
            }
        }
        bail!("{}", reasons.join("; "))
    }

    async fn connect_to(&self, backend: &str) -> Result<Channel> {
        let endpoint = self.config.endpoint(backend)?;
        let connected = timeout(self.config.connect_timeout, async {
            match self.config.tls {
                Some(_) => endpoint.connect().await,
                None => dial(&endpoint, Trusted::new(&self.config.local_users)).await,
            }
        });
        let channel = connected
            .await
            .map_err(anyhow::Error::from)
            .and_then(|result| result.map_err(anyhow::Error::from))
            .map_err(|error| {
                let hint = cause::hint(&format!("{error:#}"));
                let error = error.context(format!("failed to connect to the OAP at {backend}"));
                hint.map_or_else(
                    || anyhow!("{error:#}"),
                    |hint| anyhow!("{error:#} ({hint})"),
                )
            })?;
        Ok(channel)
    }

    /// Waits until a caller reports that this connection is bad; `None` when all callers are gone. An
    /// open port is no OAP yet: the application is told of the first answer.
    async fn wait_for_failure(&mut self, generation: u64, told: &mut Told) -> Option<Down> {
        let mut was_answered = false;
        loop {
            let (is_answered, failed) = {
                let report = self.reports.borrow_and_update();
                let failed = report.failed.as_ref().filter(|(of, _)| *of == generation);
                let reason = failed.map(|(_, reason)| reason.clone());
                (report.answered == generation, reason)
            };
            if is_answered && !was_answered {
                was_answered = true;
                self.state.set_connected();
                told.forget();
                self.tell(OapEvent::Connected);
            }
            match failed {
                Some(reason) if was_answered || cause::hint(&reason).is_some() => {
                    return Some(Down::Explained(reason));
                }
                Some(reason) => return Some(Down::NeverAnswered(reason)),
                None => tokio::select! {
                    report = self.reports.changed() => report.ok()?,
                    Ok(()) = self.token.changed() => return Some(Down::OldToken),
                },
            }
        }
    }

    /// The cause of a failure, with what to do about it.
    async fn down_reason(&self, down: Down, backend: &str) -> String {
        match down {
            Down::Explained(reason) => reason,
            Down::OldToken => "its token is another one now".to_owned(),
            Down::NeverAnswered(_) if self.config.tls.is_none() && tls::is_spoken_at(backend).await => {
                "it speaks TLS on this port, but oap.tls.enabled is false: set it to true \
                 (SW_AGENT_FORCE_TLS=true), and set oap.tls.ca_file if its certificate is not signed by a \
                 CA that this host trusts"
                    .to_owned()
            }
            Down::NeverAnswered(reason) => {
                let tls = match self.config.tls {
                    Some(_) => "on",
                    None => "off",
                };
                format!("{reason} (expected: its gRPC port, usually 11800, with TLS {tls})")
            }
        }
    }

    /// Tells why there is no OAP, once for each reason.
    fn tell_down(&self, reason: String, told: &mut Told) {
        self.state.set_disconnected(&reason);
        if told.is_new(&reason) {
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
            "it refuses the token: oap.authentication, or what is in oap.token_file, must be the same as its \
             SW_AUTHENTICATION"
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
    if let Some(hint) = cause::hint(&text) {
        text = format!("{text} ({hint})");
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
        let large = "gRPC message exceeds maximum size 52428800: 60000000";
        assert_eq!(
            Failure::of(&Status::resource_exhausted(large)),
            Failure::Refused
        );
        assert_eq!(of(Code::Unknown), Failure::Refused);
        assert_eq!(of(Code::OutOfRange), Failure::Refused);
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(broken));
        assert_eq!(Failure::of(&status), Failure::Link);
        assert!(explain(&status).contains("connection reset"));
        let refused = explain(&Status::permission_denied(""));
        assert!(
            refused.ends_with("the same as its SW_AUTHENTICATION"),
            "{refused}"
        );
    }
}
