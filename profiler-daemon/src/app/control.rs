//! Runs tasks that come from an OAP: when they start, for which processes, when they end.
//!
//! In:  [`OapEvent`]s, process scans, [`PipelineEvent`]s, signals
//! Out: [`Command`]s to the pipeline; segments, coverage and finish reports to [`crate::oap`]
//! Lost: a task that cannot run is reported as finished, with the reason in its coverage

mod budget;
mod observe;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use profiler_common::MAX_TASKS;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::SHUTDOWN_DEADLINE;
use super::binding::Bindings;
use super::capture::Command;
use super::inspect::inspect;
use super::overhead::Overhead;
use super::pipeline::Pipeline;
use super::resolve::PipelineEvent;
use super::statistics::StatisticsKeeper;
use crate::config::Config;
use crate::kubernetes::watch_pods;
use crate::metrics::{MetricsServer, Questions};
use crate::model::clock::unix_ms_now;
use crate::model::{
    Counter, Coverage, Pid, ProfileTask, ProfiledSegment, Service, TaskId, TaskSlot,
};
use crate::oap::{OapClient, OapConfig, OapEvent, OapHandle};
use crate::output::explain_nothing;
use crate::process::{Pods, ProcessTable};
use crate::request::Endpoint;
use crate::state::{SavedTask, TaskJournal};
use budget::period_note;
use observe::Observed;

/// How often starts and ends of tasks are looked at while there are any.
const STEP: Duration = Duration::from_millis(50);

/// How often what tasks cost is measured while there are any.
const MEASURE: Duration = Duration::from_secs(1);

/// Names told of in [`Control::tell_clashes`]; processes can make up any number.
const CLASHES_MAX: usize = 64;

/// What the coverage of a task says that a stop has ended.
const CUT_SHORT: &str = "cut short: profilerd was stopped before the task's end; the task goes on if it \
                         is started again in time";

/// A task in a slot.
struct Live {
    slot: TaskSlot,
    /// As one of the instances has got it.
    task: ProfileTask,
    /// Coverage is kept per task; this instance reports it.
    reporter: Service,
    /// Instances that run it, with the time it ends for them.
    instances: BTreeMap<Service, Instant>,
    /// Instances it is over for; they are reported when the slot is done.
    ended: Vec<Service>,
    watched: HashSet<Pid>,
    began: Instant,
    ending: bool,
    /// It is over but for requests whose segments are not known yet.
    done: Option<Coverage>,
}

impl Live {
    /// Runs at the instance, or did until a moment ago.
    fn is_at(&self, service: &Service) -> bool {
        self.instances.contains_key(service) || self.ended.contains(service)
    }
}

struct Control {
    oap: OapHandle,
    pipeline: Pipeline,
    table: ProcessTable,
    pods: Option<watch::Receiver<Arc<Pods>>>,
    waiting: Vec<ProfileTask>,
    live: HashMap<TaskId, Live>,
    journal: Option<TaskJournal>,
    clashes_told: HashSet<String>,
    bindings: Bindings,
    overhead: Overhead,
    observed: Observed,
    questions: Questions,
}

/// Runs until a signal ends it.
///
/// # Errors
///
/// It cannot start, or a part of it ended before its time.
pub(super) async fn run(
    config: Config,
    oap_config: OapConfig,
    journal: Option<TaskJournal>,
    statistics: Option<StatisticsKeeper>,
    metrics: Option<TcpListener>,
) -> Result<()> {
    let metrics = metrics.map(MetricsServer::start).transpose()?;
    let (metrics, questions) = metrics.unzip();
    if let Some(server) = &metrics {
        tracing::info!(address = %server.local_addr(), "metrics are served");
    }
    let (oap, oap_events) = OapClient::spawn(oap_config);
    let (pipeline, events) = Pipeline::spawn(&config)?;
    if statistics.is_some() {
        pipeline.send(Command::TellProgramTime);
    }
    let control = Control {
        oap,
        pipeline,
        table: ProcessTable::new(config.services.clone()),
        pods: watch_pods(&config.kubernetes)?,
        waiting: Vec::new(),
        live: HashMap::new(),
        journal,
        clashes_told: HashSet::new(),
        bindings: Bindings::spawn(&config)?,
        overhead: Overhead::new(config.budget(), statistics),
        observed: Observed::default(),
        questions: questions.unwrap_or_default(),
    };
    control
        .run(oap_events, events, config.processes.scan_interval)
        .await
}

impl Control {
    async fn run(
        mut self,
        mut oap_events: mpsc::Receiver<OapEvent>,
        mut events: mpsc::Receiver<PipelineEvent>,
        scan_interval: Duration,
    ) -> Result<()> {
        // One stream each for the whole time: a signal that comes between two waits is not lost.
        let mut terminate = signal(SignalKind::terminate()).context("failed to catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to catch SIGINT")?;
        let mut scan = tokio::time::interval(scan_interval);
        scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut measure = tokio::time::interval(MEASURE);
        measure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.resume();
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
                _ = scan.tick() => self.scan(),
                _ = step.tick(), if busy => self.step(),
                _ = measure.tick(), if !self.live.is_empty() => self.mind_overhead(),
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
            }
        };
        self.questions = Questions::default();
        // Why the pipeline ended comes before what that led to.
        self.shut_down(events).await.and(result)
    }

    fn scan(&mut self) {
        if let Some(pods) = &mut self.pods {
            self.table.set_pods(Arc::clone(&pods.borrow_and_update()));
        }
        // Reads /proc: some milliseconds with hundreds of processes.
        match tokio::task::block_in_place(|| self.table.scan()) {
            Ok(changes) if !changes.is_empty() => {
                let services = self.table.instances().map(|identity| {
                    (
                        identity.service.clone(),
                        Arc::clone(&identity.properties),
                        identity.layer.clone(),
                    )
                });
                self.oap.set_services(services.collect::<Vec<_>>());
                self.tell_clashes();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "processes could not be listed"),
        }
        let tasks: Vec<TaskId> = self.live.keys().cloned().collect();
        for task_id in tasks {
            self.watch_new(&task_id);
        }
    }

    /// Says once that an OAP takes several services for one.
    fn tell_clashes(&mut self) {
        for (name, full) in self.table.clashes() {
            if self.clashes_told.len() < CLASHES_MAX && self.clashes_told.insert(name.to_owned()) {
                let services: Vec<&str> = full.into_iter().collect();
                tracing::warn!(
                    name,
                    ?services,
                    "an OAP keeps 70 characters of a name and takes these for one service"
                );
            }
        }
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
                // Who waits for it must not wait for ever.
                if let Some(task_id) = task_id {
                    self.tell_end(task_id, service, not_run(&reason));
                }
            }
            OapEvent::Connected => tracing::info!("Connected: an OAP has answered"),
            OapEvent::Disconnected { reason } => tracing::warn!("Disconnected: {reason}"),
        }
    }

    fn on_task(&mut self, task: ProfileTask) {
        tracing::info!(
            task_id = %task.task_id, service = task.service.name,
            instance = task.service.instance, endpoint = task.endpoint, "task received"
        );
        let live = self.live.values();
        let running = live
            .filter(|live| live.is_at(&task.service))
            .map(|live| &live.task);
        let waiting = self
            .waiting
            .iter()
            .filter(|other| other.service == task.service);
        let mut others = running.chain(waiting);
        if let Some(other) = others.find(|other| other.overlaps(&task)) {
            if other.task_id != task.task_id {
                let reason = format!(
                    "a service runs one task at a time, and {} came before for the same time",
                    other.task_id
                );
                self.refuse(&task, reason);
            }
            return;
        }
        if task.start_unix_ms > unix_ms_now() {
            // A restart must not forget it: it may not be delivered again.
            self.journal(|journal| journal.received(&task));
        }
        self.waiting.push(task);
        self.step();
    }

    /// Reports the end of a task at an instance.
    fn tell_end(&self, task_id: TaskId, service: Service, coverage: Coverage) {
        // It may have to go to disk.
        tokio::task::block_in_place(|| self.oap.finish(task_id, service, coverage));
    }

    /// Starts what is due and ends what is over.
    fn step(&mut self) {
        let now_ms = unix_ms_now();
        let (due, waiting): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .partition(|task| task.start_unix_ms <= now_ms);
        self.waiting = waiting;
        for task in due {
            self.start(task);
        }
        let now = Instant::now();
        for live in self.live.values_mut() {
            let over: Vec<Service> = live
                .instances
                .iter()
                .filter(|(_, ends)| **ends <= now)
                .map(|(service, _)| service.clone())
                .collect();
            for service in over {
                live.instances.remove(&service);
                live.ended.push(service);
            }
            if live.instances.is_empty() && !live.ending {
                live.ending = true;
                self.pipeline.send(Command::EndTask { slot: live.slot });
            }
        }
    }

    fn start(&mut self, task: ProfileTask) {
        let now_ms = unix_ms_now();
        let late_ms = now_ms.saturating_sub(task.start_unix_ms);
        if late_ms > i64::try_from(task.duration.as_millis()).unwrap_or(i64::MAX) {
            return self.refuse(&task, format!("the task's time was over {late_ms} ms ago"));
        }
        let refusal = self
            .shortest_period()
            .and_then(|it| self.overhead.refusal(it));
        if let Some(reason) = refusal.filter(|_| !self.live.contains_key(&task.task_id)) {
            return self.refuse(&task, reason);
        }
        let lasts = task.duration;
        let lasts_ms = i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX);
        self.journal(|journal| journal.started(&task, now_ms.saturating_add(lasts_ms)));
        self.run_for(task, lasts);
    }

    /// Ends what runs at an instance, late, when another task begins there: as agents do.
    fn make_way(&mut self, next: &TaskId, service: &Service) {
        for (task_id, live) in &mut self.live {
            if let Some(ends) = live.instances.get_mut(service)
                && task_id != next
            {
                *ends = Instant::now();
                let text = format!(
                    "cut short at {}: the next task, {next}, began",
                    service.instance
                );
                self.pipeline.send(Command::Note {
                    slot: live.slot,
                    counter: None,
                    text,
                });
            }
        }
    }

    /// Runs a task at an instance for so long.
    fn run_for(&mut self, task: ProfileTask, lasts: Duration) {
        let ends = Instant::now() + lasts;
        let (task_id, service) = (task.task_id.clone(), task.service.clone());
        if let Some(live) = self.live.get_mut(&task_id) {
            live.instances.insert(service.clone(), ends);
        } else {
            let endpoint = match Endpoint::parse(&task.endpoint) {
                Ok(endpoint) => endpoint,
                Err(error) => return self.refuse(&task, error.to_string()),
            };
            let used: HashSet<u32> = self.live.values().map(|live| live.slot.0).collect();
            let Some(slot) = (0..MAX_TASKS)
                .find(|slot| !used.contains(slot))
                .map(TaskSlot)
            else {
                return self.refuse(&task, format!("{MAX_TASKS} tasks are live already"));
            };
            let live = Live {
                slot,
                task: task.clone(),
                reporter: service.clone(),
                instances: BTreeMap::from([(service.clone(), ends)]),
                ended: Vec::new(),
                watched: HashSet::new(),
                began: Instant::now(),
                ending: false,
                done: None,
            };
            self.live.insert(task_id.clone(), live);
            let times = self.overhead.stretch();
            let stretched =
                (times > 1).then(|| period_note(&task, times, "the overhead guard is at work"));
            self.observed.started += 1;
            self.pipeline.send(Command::StartTask {
                slot,
                task: Box::new(task),
                endpoint: Box::new(endpoint),
            });
            if let Some(text) = stretched {
                self.note_guard(&self.live[&task_id], text);
            }
        }
        self.make_way(&task_id, &service);
        self.watch_new(&task_id);
    }

    /// Goes on with the tasks of the daemon before.
    fn resume(&mut self) {
        let now_ms = unix_ms_now();
        let saved: Vec<SavedTask> = self
            .journal
            .iter()
            .flat_map(TaskJournal::tasks)
            .cloned()
            .collect();
        for saved in saved.into_iter().filter(|saved| !saved.is_over) {
            let (task, service) = (saved.task(), saved.service());
            let task_id = task.task_id.clone();
            if saved.is_waiting && now_ms <= saved.ends_unix_ms {
                tracing::info!(%task_id, instance = service.instance, "task is still to start");
                self.waiting.push(task);
                continue;
            }
            let Ok(left_ms @ 1..) = u64::try_from(saved.ends_unix_ms - now_ms) else {
                tracing::warn!(%task_id, "a task ended while profilerd did not run");
                let mut coverage = Coverage::default();
                coverage.note("cut short: profilerd did not run when the task's time was over");
                self.journal(|journal| journal.ended(&task_id, &service));
                self.tell_end(task_id, service, coverage);
                continue;
            };
            tracing::info!(%task_id, instance = service.instance, used = saved.used, "task continued");
            self.run_for(task, Duration::from_millis(left_ms));
            if let Some(live) = self.live.get(&task_id) {
                self.pipeline.send(Command::UsePlaces {
                    slot: live.slot,
                    service,
                    count: saved.used,
                });
                self.pipeline.send(Command::Note {
                    slot: live.slot,
                    counter: None,
                    text: "profilerd was started again while the task ran, and counts from there"
                        .to_owned(),
                });
            }
        }
    }

    /// Writes to the journal, if one is kept.
    fn journal(&mut self, write: impl FnOnce(&mut TaskJournal)) {
        if let Some(journal) = &mut self.journal {
            tokio::task::block_in_place(|| write(journal));
        }
    }

    fn refuse(&mut self, task: &ProfileTask, reason: String) {
        tracing::warn!(task_id = %task.task_id, reason, "task refused");
        self.observed.refused += 1;
        let (task_id, service) = (task.task_id.clone(), task.service.clone());
        self.journal(|journal| {
            journal.received(task);
            journal.ended(&task_id, &service);
        });
        self.tell_end(task_id, service, not_run(&reason));
    }

    /// Adds processes of a task's instances that are not watched yet.
    fn watch_new(&mut self, task_id: &TaskId) {
        let Some(live) = self.live.get_mut(task_id) else {
            return;
        };
        for service in live.instances.keys() {
            for process in self.table.processes_of(service) {
                let pid = process.pid;
                if live.watched.contains(&pid) {
                    continue;
                }
                if let Some(text) = self.bindings.left_to_agent(pid, process.agent.as_ref()) {
                    live.watched.insert(pid);
                    tracing::warn!(%task_id, "{text}");
                    self.pipeline.send(Command::Note {
                        slot: live.slot,
                        counter: Some(Counter::ProcessesLeftToAgent),
                        text,
                    });
                    continue;
                }
                let has_agent = process.agent.is_some();
                let look = || inspect(live.slot, pid, service.clone(), has_agent);
                if let Some(commands) = tokio::task::block_in_place(look) {
                    live.watched.insert(pid);
                    commands
                        .into_iter()
                        .for_each(|command| self.pipeline.send(command));
                }
            }
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
                let process = self.table.get(segment.request.request.pid);
                let tags = process.map_or_else(Vec::new, |p| p.identity.tags.clone());
                segment.tags.extend(tags);
                tracing::info!(
                    %task_id, endpoint = segment.request.request.endpoint,
                    snapshots = segment.snapshots.len(), "request profiled"
                );
                if let Some(segment) = self.bindings.take(segment, process) {
                    self.report(*segment);
                }
            }
            PipelineEvent::NoStack(slot, service) => {
                self.pipeline.send(Command::ReleasePlace { slot, service });
            }
            PipelineEvent::Coverage(task_id, coverage) => {
                if let Some(live) = self.live.get(&task_id) {
                    let coverage = self.completed(&task_id, coverage);
                    self.observed.totals.update(&task_id, &coverage);
                    self.oap.coverage(task_id, live.reporter.clone(), coverage);
                }
            }
            PipelineEvent::ProgramTime(run_time_ns, ktime_ns) => {
                self.overhead.on_program_time(run_time_ns, ktime_ns);
            }
            PipelineEvent::TaskDone(task_id, coverage) => {
                let mut coverage = coverage;
                if let Some(live) = self.live.get_mut(&task_id) {
                    self.observed.totals.update(&task_id, &coverage);
                    if !live.ending {
                        coverage.note(CUT_SHORT);
                    }
                    live.done = Some(coverage);
                }
                self.finish_if_settled(&task_id);
            }
            PipelineEvent::TaskFailed(task_id, error) => {
                tracing::error!(%task_id, error = format!("{error:#}"), "task failed");
                self.observed.failed += 1;
                if let Some(live) = self.live.get_mut(&task_id) {
                    live.ending = true; // it would fail again after a restart
                }
                self.finish(&task_id, &not_run(&format!("{error:#}")));
            }
            PipelineEvent::ProcessChanged(pid) => {
                for live in self.live.values_mut() {
                    live.watched.remove(&pid);
                }
                self.scan();
            }
        }
    }

    fn report(&self, segment: ProfiledSegment) {
        let task_id = segment.task_id.clone();
        // It may have to go to disk.
        if let Err(error) = tokio::task::block_in_place(|| self.oap.report(segment)) {
            tracing::warn!(%task_id, %error, "a segment is lost");
        }
    }

    fn on_settled(&mut self, segment: ProfiledSegment) {
        let task_id = segment.task_id.clone();
        self.report(segment);
        self.finish_if_settled(&task_id);
    }

    /// Ends a task that is done once nothing of it can come any more.
    fn finish_if_settled(&mut self, task_id: &TaskId) {
        if self.bindings.is_waiting(task_id) {
            return;
        }
        let done = self.live.get_mut(task_id).and_then(|live| live.done.take());
        if let Some(coverage) = done {
            let coverage = self.completed(task_id, coverage);
            self.observed.totals.update(task_id, &coverage);
            if let Some(live) = self.live.get(task_id) {
                log_end(task_id, live, &coverage);
            }
            self.finish(task_id, &coverage);
        }
    }

    /// What the pipeline counted, with what bindings and the OAP's clock add.
    fn completed(&self, task_id: &TaskId, mut coverage: Coverage) -> Coverage {
        self.bindings.add_to(task_id, &mut coverage);
        if let Some(text) = self.oap.clock_skew() {
            coverage.note(text);
        }
        coverage
    }

    fn finish(&mut self, task_id: &TaskId, coverage: &Coverage) {
        self.bindings.forget(task_id);
        self.observed.totals.end(task_id);
        let Some(live) = self.live.remove(task_id) else {
            return;
        };
        for service in live.instances.into_keys().chain(live.ended) {
            let own = if service == live.reporter {
                coverage.clone()
            } else {
                Coverage::default()
            };
            // One that is cut short goes on with the next start.
            if live.ending {
                self.journal(|journal| journal.ended(task_id, &service));
            }
            self.tell_end(task_id.clone(), service, own);
        }
        if self.live.is_empty() {
            self.overhead.rest();
            self.pipeline.send(Command::Stretch(1));
        }
    }

    async fn shut_down(mut self, mut events: mpsc::Receiver<PipelineEvent>) -> Result<()> {
        tracing::info!("leaving");
        self.pipeline.shut_down();
        while let Some(event) = events.recv().await {
            self.on_pipeline_event(event);
        }
        // Without a journal nobody knows of them after this.
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
        // Tasks that nobody ended: who waits for them must not wait for ever.
        for (task_id, live) in live {
            for service in live.instances.into_keys().chain(live.ended) {
                let mut coverage = Coverage::default();
                coverage.note("cut short: profilerd had to stop, its log says why");
                oap.finish(task_id.clone(), service, coverage);
            }
        }
        let lost = oap.shutdown(SHUTDOWN_DEADLINE).await;
        if lost > 0 {
            tracing::warn!(lost, "snapshots could not be delivered before the exit");
        }
        result
    }
}

/// The coverage of a task that is not carried out.
fn not_run(reason: &str) -> Coverage {
    let mut coverage = Coverage::default();
    coverage.note(format!("not run: {reason}"));
    coverage
}

/// A SkyWalking OAP has no place for what was seen and lost, so the log tells it.
fn log_end(task_id: &TaskId, live: &Live, coverage: &Coverage) {
    let report = coverage.to_report();
    let moved = report.counters.iter().filter(|&(_, &count)| count > 0);
    let counts: Vec<String> = moved
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    let notes = report.notes.join("; ");
    tracing::info!(%task_id, counts = counts.join(" "), notes, "task done");
    if coverage.get(Counter::RequestsProfiled) == 0 {
        let reason = explain_nothing(&live.reporter.name, &live.task.endpoint, &report);
        tracing::warn!(%task_id, "no request was profiled. {reason}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::state::StateFolder;

    fn control(pipeline: Pipeline, oap: OapHandle, journal: Option<TaskJournal>) -> Control {
        Control {
            oap,
            pipeline,
            table: ProcessTable::new(Vec::new()),
            pods: None,
            waiting: Vec::new(),
            live: HashMap::new(),
            journal,
            clashes_told: HashSet::new(),
            bindings: Bindings::spawn(&Config::default()).unwrap(),
            overhead: Overhead::new(Config::default().budget(), None),
            observed: Observed::default(),
            questions: Questions::default(),
        }
    }

    /// Nothing is captured, and no OAP is there.
    fn idle(state: &Path) -> Control {
        let (oap, _) = OapClient::spawn(OapConfig::new(vec!["127.0.0.1:1".to_owned()]));
        let (pipeline, _) = Pipeline::with_resolve(|| {}).unwrap();
        let folder = StateFolder::open(state).unwrap();
        let journal = TaskJournal::open(folder, unix_ms_now()).unwrap();
        control(pipeline, oap, Some(journal))
    }

    /// For a minute.
    fn task(id: &str, service: &str, start_unix_ms: i64) -> ProfileTask {
        ProfileTask {
            task_id: TaskId(id.to_owned()),
            service: Service {
                name: service.to_owned(),
                instance: "one".to_owned(),
            },
            endpoint: "/".to_owned(),
            duration: Duration::from_secs(60),
            min_duration_threshold_ms: 0,
            dump_period_ms: 10,
            max_sampling_count: 5,
            start_unix_ms,
            create_unix_ms: start_unix_ms,
        }
    }

    fn is_ending(control: &Control, id: &str) -> Option<bool> {
        let live = control.live.get(&TaskId(id.to_owned()));
        live.map(|live| live.ending)
    }

    /// Tasks that are over, and those that are not.
    fn saved(control: &Control, is_over: bool) -> Vec<String> {
        let tasks = control.journal.as_ref().unwrap().tasks();
        let tasks = tasks.filter(|saved| saved.is_over == is_over);
        tasks.map(|saved| saved.task().task_id.0).collect()
    }

    /// Check that a task for the time of another one is refused, that one of another service runs beside it,
    /// and that the next one waits for its start and ends what runs late.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_service_runs_one_task_at_a_time() {
        let state = tempfile::tempdir().unwrap();
        let mut control = idle(state.path());
        let now = unix_ms_now();
        let late = now - 55_000; // its time is over in five seconds; it runs for a minute all the same
        control.on_task(task("late", "shop", late));
        control.on_task(task("late", "shop", late));
        control.on_task(task("same", "shop", now));
        control.on_task(task("beside", "stock", now));
        control.on_task(task("next", "shop", late + 60_001));
        assert_eq!(is_ending(&control, "late"), Some(false));
        assert_eq!(is_ending(&control, "beside"), Some(false));
        assert_eq!(control.waiting.len(), 1);
        assert_eq!(saved(&control, true), ["same"]);
        assert_eq!(saved(&control, false), ["late", "beside", "next"]);
        let seen = control.observe().tasks;
        assert_eq!((seen.live, seen.started), (2, 2));
        assert_eq!((seen.waiting, seen.refused), (1, 1));

        let deadline = Instant::now() + Duration::from_secs(30);
        while is_ending(&control, "next").is_none() && Instant::now() < deadline {
            tokio::time::sleep(STEP).await;
            control.step();
        }
        assert_eq!(is_ending(&control, "next"), Some(false));
        assert_eq!(is_ending(&control, "late"), Some(true));
        assert_eq!(is_ending(&control, "beside"), Some(false));
    }

    /// Check that a restart goes on with what runs until its end, still waits for what is to start, and ends
    /// what was over meanwhile.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_restart_goes_on() {
        let state = tempfile::tempdir().unwrap();
        let now = unix_ms_now();
        let mut before = idle(state.path());
        before.on_task(task("runs", "shop", now));
        before.on_task(task("waits", "shop", now + 3_600_000));
        let over = task("over", "stock", now - 70_000);
        before.journal(|journal| journal.started(&over, now - 1));
        drop(before);
        let mut after = idle(state.path());
        after.resume();
        assert_eq!(is_ending(&after, "runs"), Some(false));
        let runs = &after.live[&TaskId("runs".to_owned())];
        let ends = runs.instances.values().next().unwrap();
        assert!(*ends <= Instant::now() + Duration::from_secs(60));
        assert_eq!(after.waiting, [task("waits", "shop", now + 3_600_000)]);
        assert_eq!(saved(&after, true), ["over"]);
    }

    /// Check that the daemon ends with the reason when a thread of the pipeline does not live on.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_dead_pipeline_ends_the_daemon() {
        let (oap, oap_events) = OapClient::spawn(OapConfig::new(vec!["127.0.0.1:1".to_owned()]));
        let (pipeline, events) = Pipeline::with_resolve(|| panic!("an unheard-of stack")).unwrap();
        let control = control(pipeline, oap, None);
        let result = control.run(oap_events, events, STEP).await;
        assert_eq!(
            result.unwrap_err().to_string(),
            "the resolve thread panicked: an unheard-of stack"
        );
    }
}
