//! `profilerd record`: the pipeline for one endpoint, without an OAP.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::capture::Command;
use super::inspect::inspect;
use super::pipeline::Pipeline;
use super::resolve::PipelineEvent;
use super::search::Search;
use super::table::{logged_table, require_service, wanted_process};
use crate::analyze;
use crate::config::Config;
use crate::model::{
    Counter, Coverage, ProcessKey, ProfileReport, ProfileTask, ProfiledSegment, Progress,
    ProgressState, RecordRequest, RecordTarget, SegmentReport, Service, SnapshotReport, TaskId,
    TaskReport, TaskSlot,
};
use crate::process::{Family, ProcessTable};
use crate::request::Endpoint;

const SLOT: TaskSlot = TaskSlot(0);

/// An event that a recording reacts to.
struct Inputs {
    events: mpsc::Receiver<PipelineEvent>,
    /// One stream each for the whole time: a signal that comes between two waits is not lost.
    interrupt: Signal,
    terminate: Signal,
}

/// Waits for one of two signals.
async fn stopped(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Records one endpoint and returns what was found, coverage included.
///
/// # Errors
///
/// Bad endpoint, unknown process or service, or the kernel refuses.
pub fn record(
    config: &Config,
    request: &RecordRequest,
    progress: &dyn Progress,
) -> Result<ProfileReport> {
    // The caller's thread reads nothing foreign and keeps its privileges: it writes the result wherever who started it
    // may write.
    super::privilege::restricted(|| super::block_on(run(config, request, progress)))
}

async fn run(
    config: &Config,
    request: &RecordRequest,
    progress: &dyn Progress,
) -> Result<ProfileReport> {
    let endpoint = Endpoint::parse(&request.endpoint)?;
    let mut table = logged_table(config).await;
    table.scan()?;
    let mut targets = Targets::new(&table, &request.target)?;
    let found = targets.find(&table);
    let service = match found.first() {
        Some((_, service)) => service.clone(),
        None => bail!("the process has just ended"),
    };
    let now_ms = crate::model::clock::unix_ms_now();
    let task = ProfileTask {
        task_id: TaskId("record".to_owned()),
        service,
        endpoint: request.endpoint.clone(),
        duration: request.duration,
        min_duration_threshold_ms: request.min_duration.as_millis() as u32,
        dump_period_ms: request.dump_period.as_millis() as u32,
        max_sampling_count: request.max_requests,
        start_unix_ms: now_ms,
        create_unix_ms: now_ms,
    };
    // Before anything is attached: from here on a signal ends the recording in order.
    super::end_at_second_signal()?;
    let interrupt = signal(SignalKind::interrupt()).context("failed to catch SIGINT")?;
    let terminate = signal(SignalKind::terminate()).context("failed to catch SIGTERM")?;
    let (pipeline, events) = Pipeline::spawn(config)?;
    let mut inputs = Inputs {
        events,
        interrupt,
        terminate,
    };
    pipeline.send(Command::StartTask {
        slot: SLOT,
        task: Box::new(task.clone()),
        endpoint: Box::new(endpoint),
    });
    for (process, service) in found {
        targets.watch(&pipeline, process, service);
    }
    let mut search = Search::new(config)?;
    let collected = collect(
        &pipeline,
        &mut inputs,
        &task,
        progress,
        (&mut table, targets),
        &mut search,
    );
    let collected = collected.await;
    let hint = search.hint(&task).await;
    // Also after a failure: the kernel side is detached in order, and why a thread ended early is
    // known when it is joined.
    pipeline.shut_down();
    while inputs.events.recv().await.is_some() {}
    let ended = pipeline.join();
    match collected {
        Ok((segments, mut coverage)) => {
            if let Some(hint) = hint {
                coverage.note(hint);
            }
            if let Err(error) = ended {
                // The result was complete by then.
                tracing::warn!("{error:#}");
            }
            Ok(report(&task, &coverage, &segments))
        }
        Err(error) => Err(ended.err().unwrap_or(error)),
    }
}

async fn collect(
    pipeline: &Pipeline,
    inputs: &mut Inputs,
    task: &ProfileTask,
    progress: &dyn Progress,
    (table, mut targets): (&mut ProcessTable, Targets),
    search: &mut Search,
) -> Result<(Vec<ProfiledSegment>, Coverage)> {
    let started = Instant::now();
    let mut segments: Vec<ProfiledSegment> = Vec::new();
    let mut state = ProgressState {
        duration: task.duration,
        ..ProgressState::default()
    };
    let mut ending = false;
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let mut scanned = Some(Instant::now());
    loop {
        tokio::select! {
            event = inputs.events.recv() => match event {
                Some(PipelineEvent::Segment(segment)) => {
                    state.snapshots += segment.snapshots.len() as u64;
                    segments.push(*segment);
                }
                Some(PipelineEvent::NoStack(slot, service)) => {
                    pipeline.send(Command::ReleasePlace { slot, service });
                }
                Some(PipelineEvent::Coverage(_, coverage)) => {
                    state.requests_matched = coverage.get(Counter::RequestsMatched);
                }
                Some(PipelineEvent::TaskDone(_, mut coverage)) => {
                    targets.note(&mut coverage);
                    return Ok((segments, coverage));
                }
                Some(PipelineEvent::TaskFailed(_, error)) => return Err(error),
                // It runs another program now.
                Some(PipelineEvent::ProcessChanged(process)) => {
                    targets.watched.remove(&process);
                    scanned = None;
                }
                Some(PipelineEvent::Armed(_) | PipelineEvent::ProgramTime(..)) => {}
                None => bail!("nothing can be captured any more"),
            },
            _ = tick.tick() => {}
            () = stopped(&mut inputs.interrupt, &mut inputs.terminate), if !ending => {
                ending = true;
                pipeline.send(Command::EndTask { slot: SLOT });
            }
        }
        search.mind(state.requests_matched, &targets.watched, &task.service);
        state.elapsed = started.elapsed().min(task.duration);
        progress.update(state);
        let full = segments.len() >= task.max_sampling_count as usize;
        if !ending && (full || started.elapsed() >= task.duration) {
            ending = true;
            pipeline.send(Command::EndTask { slot: SLOT });
        }
        if !ending && scanned.is_none_or(|it| it.elapsed() > Duration::from_secs(1)) {
            scanned = Some(Instant::now());
            if table.scan().is_ok() {
                for (process, service) in targets.find(table) {
                    targets.watch(pipeline, process, service);
                }
            }
        }
    }
}

/// The processes that are recorded.
struct Targets {
    whom: Whom,
    watched: HashSet<ProcessKey>,
    /// Most that were there at one time.
    most: usize,
}

/// Whom to record, once it is known which process has the id that was asked for.
enum Whom {
    /// A process and its descendants, all of which report as the process does.
    Family(Service, Family),
    /// A service by its name.
    Service(String),
}

impl Targets {
    fn new(table: &ProcessTable, target: &RecordTarget) -> Result<Self> {
        let whom = match target {
            RecordTarget::Pid(pid) => {
                let first = wanted_process(table, *pid)?;
                Whom::Family(first.identity.service.clone(), Family::of(first.key))
            }
            RecordTarget::Service(name) => {
                require_service(table, name)?;
                Whom::Service(name.clone())
            }
        };
        Ok(Self {
            whom,
            watched: HashSet::new(),
            most: 0,
        })
    }

    /// Those among the processes of the table, and the instances that they report as.
    fn find(&mut self, table: &ProcessTable) -> Vec<(ProcessKey, Service)> {
        self.watched
            .retain(|&process| table.find(process).is_some());
        let found: Vec<(ProcessKey, Service)> = match &mut self.whom {
            Whom::Family(service, family) => {
                let members = family.update(table).into_iter();
                members.map(|member| (member, service.clone())).collect()
            }
            Whom::Service(name) => {
                let processes = table.processes_of_name(name);
                processes
                    .map(|process| (process.key, process.identity.service.clone()))
                    .collect()
            }
        };
        self.most = self.most.max(found.len());
        found
    }

    /// Adds a process, unless it is watched already or its interpreter still starts.
    fn watch(&mut self, pipeline: &Pipeline, process: ProcessKey, service: Service) {
        let look = || inspect(SLOT, process, service, false);
        if !self.watched.contains(&process)
            && let Some(commands) = tokio::task::block_in_place(look)
        {
            self.watched.insert(process);
            commands
                .into_iter()
                .for_each(|command| pipeline.send(command));
        }
    }

    /// Says that more than the process that was asked for was recorded.
    fn note(&self, coverage: &mut Coverage) {
        if let Whom::Family(_, family) = &self.whom
            && self.most > 1
        {
            coverage.note(format!(
                "process {} was recorded with its descendants, at most {} at one time",
                family.first(),
                self.most - 1
            ));
        }
    }
}

fn report(task: &ProfileTask, coverage: &Coverage, segments: &[ProfiledSegment]) -> ProfileReport {
    let mut segments: Vec<SegmentReport> = segments.iter().map(segment_report).collect();
    segments.sort_by_key(|s| s.start_ms);
    ProfileReport {
        task: TaskReport {
            task_id: task.task_id.0.clone(),
            service: task.service.name.clone(),
            endpoint: task.endpoint.clone(),
            start_ms: task.start_unix_ms,
            duration_ms: task.duration.as_millis() as i64,
            min_duration_threshold_ms: task.min_duration_threshold_ms,
            dump_period_ms: task.dump_period_ms,
            max_sampling_count: task.max_sampling_count,
        },
        coverage: coverage.to_report(),
        segments,
    }
}

fn segment_report(segment: &ProfiledSegment) -> SegmentReport {
    let request = &segment.request.request;
    let analysis = analyze::analyze_snapshots(
        &segment.snapshots,
        segment.start_unix_ms,
        segment.end_unix_ms,
    );
    SegmentReport {
        segment_id: request.segment_id.clone(),
        trace_id: request
            .sw8
            .as_ref()
            .map_or_else(|| request.segment_id.clone(), |sw8| sw8.trace_id.clone()),
        service_instance: segment.service.instance.clone(),
        endpoint: request.endpoint.clone(),
        method: request.method.clone(),
        path: request.path.clone(),
        start_ms: segment.start_unix_ms,
        duration_ms: segment.end_unix_ms - segment.start_unix_ms,
        status: segment.request.status,
        cut: segment.request.cut.map(|why| why.to_string()),
        snapshots: segment
            .snapshots
            .iter()
            .map(|s| SnapshotReport {
                sequence: s.sequence,
                time_ms: s.unix_ms,
                stack: s.stack.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        trees: analysis.trees.iter().map(analyze::Tree::to_node).collect(),
    }
}
