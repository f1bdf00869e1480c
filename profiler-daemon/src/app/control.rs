//! Connects tasks of an OAP, processes and the pipeline: an event of one is passed to the others.
//!
//! In:  [`OapEvent`]s, process scans, [`PipelineEvent`]s, signals
//! Out: [`Command`]s to the pipeline; segments, coverage and finish reports to [`crate::oap`]
//! Lost: results that no OAP accepts before the deadline of a stop; the log says how many
//!
//! [`scan`] finds processes and has tasks watch them, [`tasks`] has the rules of tasks, [`budget`] limits their cost,
//! [`observe`] collects the state of the daemon, [`ready`] says what is in its way, and [`reload`] changes its
//! configuration.

mod budget;
mod observe;
mod ready;
mod reload;
mod scan;
mod tasks;

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::SHUTDOWN_DEADLINE;
use super::agent_instance::{AgentInstances, Found};
use super::binding::Bindings;
use super::capture::Command;
use super::discovery::Discovery;
use super::fitness;
use super::inspection::Inspections;
use super::neighbour::Mark;
use super::notify::{Notifier, alive_interval};
use super::oap_query::OapQuery;
use super::overhead::Overhead;
use super::pipeline::Pipeline;
use super::resolve::PipelineEvent;
use super::signals::{Asked, EarlyReload, Signals};
use super::statistics::StatisticsKeeper;
use crate::config::{Config, ConfigSource};
use crate::kubernetes::{PodWatch, watch_pods};
use crate::metrics::{MetricsServer, Questions};
use crate::model::{Counter, Coverage, ProcessKey, ProfileTask, ProfiledSegment, Service, TaskId};
use crate::oap::{OapClient, OapConfig, OapEvent, OapHandle};
use crate::process::{Changes, Choice, ProcessTable, Processes};
use crate::state::TaskJournal;
pub(super) use observe::Observed;
use tasks::Live;

/// How often starts and ends of tasks are checked while there are any.
const STEP: Duration = Duration::from_millis(50);

/// How often what tasks cost is measured while there are any.
const MEASURE: Duration = Duration::from_secs(1);

/// How often systemd hears that the daemon lives, unless it wants to hear it more often.
const ALIVE: Duration = Duration::from_secs(5);

/// What the daemon starts with.
pub(super) struct Start {
    pub(super) early_reload: EarlyReload,
    pub(super) config: Config,
    /// To read the configuration again.
    pub(super) source: ConfigSource,
    pub(super) oap: OapConfig,
    pub(super) journal: Option<TaskJournal>,
    pub(super) mark: Mark,
    pub(super) statistics: Option<StatisticsKeeper>,
    pub(super) metrics: Option<TcpListener>,
}

struct Control {
    /// In use; a reload may change it.
    config: Config,
    source: ConfigSource,
    oap: OapHandle,
    pipeline: Pipeline,
    /// The processes as of the last scan.
    processes: Processes,
    /// What scans; none while it does.
    table: Option<Box<ProcessTable>>,
    scan: JoinSet<(Box<ProcessTable>, std::io::Result<Changes>)>,
    /// Something has changed since the scan that is under way began.
    must_scan_again: bool,
    /// When the ports of new processes are looked at again.
    settles_at: Option<Instant>,
    inspections: Inspections,
    /// When it was last told that looks at processes wait.
    postponed_told: Option<Instant>,
    /// Time in system calls of each process, in clock ticks, when it was last noted.
    system_ticks: HashMap<ProcessKey, u64>,
    pods: Option<PodWatch>,
    waiting: Vec<ProfileTask>,
    live: HashMap<TaskId, Live>,
    journal: Option<TaskJournal>,
    mark: Mark,
    /// The OAP is ours: it need not hear of the end of a task that goes on when both are started again.
    oap_stops_too: bool,
    /// Tasks that go on with the next start, with what they have counted.
    stopped: Vec<(TaskId, Service, Coverage)>,
    clashes_told: HashSet<String>,
    bindings: Bindings,
    overhead: Overhead,
    agent_instances: AgentInstances,
    /// What they have found since the last scan.
    found_instances: Found,
    discovery: Discovery,
    observed: Observed,
    questions: Questions,
}

/// Runs until a signal ends it.
///
/// # Errors
///
/// It cannot start, or a part of it ended before its time.
pub(super) async fn run(start: Start) -> Result<()> {
    let Start {
        early_reload,
        config,
        source,
        oap: oap_config,
        journal,
        mark,
        statistics,
        metrics,
    } = start;
    let mut signals = Signals::catch(early_reload)?;
    let start = |listener| MetricsServer::start(listener, &config.host_names);
    let metrics = metrics.map(start).transpose()?;
    let (metrics, questions) = metrics.unzip();
    if let Some(server) = &metrics {
        tracing::info!(address = %server.local_addr(), "metrics are served");
    }
    let mut questions = questions.unwrap_or_default();
    if fitness::waits(&config) && !fitness::wait(&mut questions, &mut signals).await? {
        return Ok(());
    }
    let oap_stops_too = oap_config.is_embedded();
    let has_tls = oap_config.tls.is_some();
    let (oap, oap_events) = OapClient::spawn(oap_config);
    // GraphQL has no TLS, so a token that goes through TLS elsewhere is not sent there.
    let query = OapQuery::of(&config, (!has_tls).then(|| oap.token()))?;
    let bindings = Bindings::spawn(&config, query.clone());
    let (pipeline, events) = Pipeline::spawn(&config)?;
    if statistics.is_some() {
        pipeline.send(Command::TellProgramTime);
    }
    let pods = watch_pods(&config.kubernetes)?;
    let choice = Choice::new(&config.kubernetes, pods.is_some());
    let table = ProcessTable::new(config.services.clone())
        .with_choice(choice)
        .with_budget()
        .asking_agent_instances(query.is_some());
    let agent_instances = AgentInstances::new(query, table.host());
    let control = Control {
        oap,
        pipeline,
        processes: Processes::default(),
        table: Some(Box::new(table)),
        scan: JoinSet::new(),
        must_scan_again: false,
        settles_at: None,
        inspections: Inspections::default(),
        postponed_told: None,
        system_ticks: HashMap::new(),
        pods,
        waiting: Vec::new(),
        live: HashMap::new(),
        journal,
        mark,
        oap_stops_too,
        stopped: Vec::new(),
        clashes_told: HashSet::new(),
        bindings,
        overhead: Overhead::new(config.budget(), statistics),
        agent_instances,
        found_instances: Found::new(),
        discovery: Discovery::spawn(&config)?,
        observed: Observed::default(),
        questions,
        config,
        source,
    };
    control.run(oap_events, events, signals).await
}

impl Control {
    async fn run(
        mut self,
        mut oap_events: mpsc::Receiver<OapEvent>,
        mut events: mpsc::Receiver<PipelineEvent>,
        mut signals: Signals,
    ) -> Result<()> {
        let mut scan = tokio::time::interval(self.config.processes.scan_interval);
        scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut measure = tokio::time::interval(MEASURE);
        measure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut alive = tokio::time::interval(alive_interval(ALIVE));
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut notifier = Notifier::default();
        self.resume();
        notifier.ready();
        let result = loop {
            let busy = !self.waiting.is_empty() || !self.live.is_empty();
            tokio::select! {
                event = oap_events.recv() => match event {
                    Some(event) => self.on_oap_event(event),
                    None => break Err(anyhow!("the OAP client ended early")),
                },
                event = events.recv() => match event {
                    Some(event) => self.on_pipeline_event(event),
                    None => break Err(anyhow!("nothing can be captured any more")),
                },
                settled = self.bindings.next() => match settled {
                    Ok(segment) => self.on_settled(*segment),
                    Err(error) => break Err(error),
                },
                question = self.questions.next() => question.answer(self.observe()),
                _ = scan.tick() => self.begin_scan(),
                () = sleep_until(self.settles_at.unwrap_or_else(Instant::now).into()),
                    if self.settles_at.is_some() => self.begin_settling(),
                Some(scanned) = self.scan.join_next() => match scanned {
                    Ok((table, result)) => self.end_scan(table, result),
                    Err(error) => break Err(anyhow!(error).context("the look at processes failed")),
                },
                Some(inspected) = self.inspections.next() => match inspected {
                    Ok(inspected) => self.end_inspection(inspected),
                    Err(error) => break Err(error),
                },
                found = self.agent_instances.next() => {
                    self.found_instances.extend(found);
                    self.begin_scan();
                }
                looked = self.discovery.next() => {
                    let news = self.discovery.on_looked(looked, &self.processes);
                    self.oap.tell_endpoints(news);
                    self.mind_discovery();
                }
                _ = step.tick(), if busy => self.step(),
                _ = measure.tick(), if !self.live.is_empty() => self.mind_overhead(),
                _ = alive.tick() => notifier.alive(&self.obstacles()),
                asked = signals.next() => match asked {
                    Asked::Stop => break Ok(()),
                    Asked::Reload => {
                        notifier.reloading();
                        self.reload();
                        notifier.ready();
                    }
                },
            }
        };
        notifier.stopping();
        self.questions = Questions::default();
        // Why the pipeline ended comes before what that led to.
        self.shut_down(events).await.and(result)
    }

    fn on_oap_event(&mut self, event: OapEvent) {
        match event {
            OapEvent::Task(task) => self.on_task(task),
            OapEvent::TaskRefused {
                task_id,
                service,
                reason,
            } => {
                tracing::warn!(service = service.name, reason, "task refused");
                self.observed.refused += 1;
                self.observed.totals.add(Counter::TasksNotRun, 1);
                // A client that waits for the task must not wait for ever.
                if let Some(task_id) = task_id {
                    self.tell_end(task_id, service, Coverage::not_run(&reason));
                }
            }
            OapEvent::TaskCancelled(task_id) => self.cancel(&task_id),
            OapEvent::Connected => tracing::info!("Connected: an OAP has answered"),
            OapEvent::Disconnected { reason } => tracing::warn!("Disconnected: {reason}"),
        }
    }

    fn on_pipeline_event(&mut self, event: PipelineEvent) {
        match event {
            PipelineEvent::Armed(task_id) => tracing::info!(%task_id, "armed"),
            PipelineEvent::Segment(mut segment) => {
                let task_id = segment.task_id.clone();
                // Before it is sent: a crash in between must not let in another request.
                let service = segment.service.clone();
                self.journal(|journal| journal.profiled(&task_id, &service));
                let process = self.processes.find(segment.request.request.process);
                let tags = process.map_or_else(Vec::new, |p| p.identity.tags.clone());
                segment.tags.extend(tags);
                tracing::info!(
                    %task_id, endpoint = segment.request.request.endpoint,
                    snapshots = segment.snapshots.len(), "request profiled"
                );
                if process.is_some_and(|process| process.agent.is_none()) {
                    let news = self
                        .discovery
                        .on_profiled(&segment.request, &self.processes);
                    self.oap.tell_endpoints(news);
                }
                if let Some(segment) = self.bindings.take(segment, process) {
                    self.report(*segment);
                }
            }
            PipelineEvent::NoStack(slot, service) => {
                self.pipeline.send(Command::ReleasePlace { slot, service });
            }
            PipelineEvent::Coverage(task_id, coverage) => {
                self.tell_coverage(&task_id, coverage);
            }
            PipelineEvent::ProgramTime(run_time, ktime_ns) => {
                self.overhead.on_program_time(run_time, ktime_ns);
            }
            PipelineEvent::TaskDone(task_id, coverage) => {
                if let Some(live) = self.live.get_mut(&task_id) {
                    self.observed.totals.update(&task_id, &coverage);
                    live.done = Some(coverage);
                }
                self.finish_if_settled(&task_id);
            }
            PipelineEvent::TaskFailed(task_id, error) => {
                tracing::error!(%task_id, error = format!("{error:#}"), "task failed");
                self.observed.failed += 1;
                self.observed.totals.add(Counter::TasksNotRun, 1);
                if let Some(live) = self.live.get_mut(&task_id) {
                    live.ending = true; // it would fail again after a restart
                }
                self.finish(&task_id, &Coverage::not_run(&format!("{error:#}")));
            }
            PipelineEvent::ProcessChanged(process) => {
                for live in self.live.values_mut() {
                    live.watched.remove(&process);
                }
                self.begin_scan();
            }
        }
    }

    fn report(&mut self, segment: ProfiledSegment) {
        let task_id = segment.task_id.clone();
        // It may have to go to disk.
        if let Err(error) = tokio::task::block_in_place(|| self.oap.report(segment)) {
            tracing::warn!(%task_id, %error, "a segment is lost");
            self.note(&task_id, format!("a profiled request is lost: {error}"));
        }
    }

    /// Adds a sentence to the coverage of a task.
    pub(super) fn note(&mut self, task_id: &TaskId, text: String) {
        let Some(live) = self.live.get_mut(task_id) else {
            return;
        };
        match &mut live.done {
            Some(coverage) => coverage.note(text),
            None => self.pipeline.send(Command::Note {
                slot: live.slot,
                counter: None,
                text,
            }),
        }
    }

    fn on_settled(&mut self, segment: ProfiledSegment) {
        let task_id = segment.task_id.clone();
        self.report(segment);
        self.finish_if_settled(&task_id);
    }

    async fn shut_down(mut self, mut events: mpsc::Receiver<PipelineEvent>) -> Result<()> {
        tracing::info!("leaving");
        self.pipeline.shut_down();
        while let Some(event) = events.recv().await {
            self.on_pipeline_event(event);
        }
        // Without a journal they are forgotten after this.
        if self.journal.is_none() {
            for task in std::mem::take(&mut self.waiting) {
                self.refuse(&task, "profilerd was stopped before its start".to_owned());
            }
        }
        self.bindings.close();
        while self.bindings.can_settle()
            && let Ok(segment) = self.bindings.next().await
        {
            self.on_settled(*segment);
        }
        let (pipeline, oap, live) = (self.pipeline, self.oap, self.live);
        let result = pipeline.join();
        // Tasks without an end: clients that wait for them must not wait for ever.
        for (task_id, live) in live {
            for service in live.instances.into_keys().chain(live.ended) {
                let mut coverage = Coverage::default();
                coverage.note("cut short: profilerd had to stop, its log says why");
                oap.finish(task_id.clone(), service, coverage);
            }
        }
        let lost = oap.shutdown(SHUTDOWN_DEADLINE).await;
        if let Some(journal) = &mut self.journal {
            note_stopped(journal, &oap, self.stopped);
        }
        if lost > 0 {
            tracing::warn!(lost, "snapshots could not be delivered before the exit");
        }
        result
    }
}

/// Keeps the counts of tasks that continue for the next start, deliveries included.
fn note_stopped(
    journal: &mut TaskJournal,
    oap: &OapHandle,
    stopped: Vec<(TaskId, Service, Coverage)>,
) {
    for (task_id, service, mut coverage) in stopped {
        oap.add_delivery(&task_id, &service, &mut coverage);
        journal.stopped(&task_id, &service, &coverage);
    }
}

#[cfg(test)]
mod tests;
