//! The thread that turns samples into stacks with names, and finished requests into segments.
//!
//! In:  [`Work`] from [`super::capture`], in order
//! Out: [`PipelineEvent`]s to [`super::control`]
//! Lost: sample of a process that is gone -> [`Counter::SamplesOrphaned`]; of one whose stacks take too much time
//!       ([`Budgets`], [`STACK_TIME_MAX`]) -> [`Counter::SamplesTooDear`]; see also [`super::namer`]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tokio::sync::mpsc;

use super::budget::Budgets;
use super::capture::{Command, Commands, NewTarget, WaitingBytes, Work, now_ktime_ns};
use super::namer::{Namer, Sampled};
use super::open_request::OpenRequests;
use super::relay::{Ended, Relay, Resume};
use crate::frames::FrameSet;
use crate::guard::RunTime;
use crate::model::{
    Counter, Coverage, FinishedRequest, Frame, LeftOut, Pid, ProcessKey, ProfiledSegment,
    RawSample, RequestId, SampleKind, Service, Stack, TAG_CUT, TaskId, TaskSlot, TimedStack,
};
use crate::process::patience::left_out_text;
use crate::process::python::{CodeSignature, PythonRuntime};
use crate::snapshot;
use crate::timeline;
use crate::usage::release_free_memory;

/// Tag of a request of which fewer snapshots were taken than its task asked for: the longest period.
const TAG_DUMP_PERIOD: &str = "profilerd.dump_period_ms";

/// Longest time for one stack. A usual one takes 50 µs, the first of a large program as long as its debug information.
const STACK_TIME_MAX: Duration = Duration::from_secs(1);
/// Longest time for what the first stacks of a process need.
const PREPARE_TIME_MAX: Duration = Duration::from_secs(5);

/// An event for the owner of the pipeline.
#[derive(Debug)]
pub(super) enum PipelineEvent {
    /// Programs are attached for this task.
    Armed(TaskId),
    /// A profiled request.
    Segment(Box<ProfiledSegment>),
    /// A finished request left no stack: its place is free again.
    NoStack(TaskSlot, Service),
    /// Coverage so far.
    Coverage(TaskId, Coverage),
    /// Time in all runs of the programs while the kernel counted them, and an instant (`CLOCK_MONOTONIC`).
    ProgramTime(RunTime, u64),
    /// The task is over.
    TaskDone(TaskId, Coverage),
    /// The task could not be armed.
    TaskFailed(TaskId, anyhow::Error),
    /// A process executed another program: inspect it again.
    ProcessChanged(ProcessKey),
}

/// State of the thread.
pub(super) struct Resolve {
    work: Receiver<Work>,
    waiting: Arc<WaitingBytes>,
    commands: Commands,
    events: mpsc::Sender<PipelineEvent>,
    code_signature: CodeSignature,
    frames: FrameSet,
    /// What the namer has been asked for.
    asked: Option<Asked>,
    runtimes: HashMap<ProcessKey, Arc<PythonRuntime>>,
    requests: OpenRequests,
    budgets: Budgets,
    coverage: HashMap<TaskId, Coverage>,
}

/// What the namer is asked for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// To prepare a target of a task.
    Target(TaskSlot),
    /// To name a stack of a request.
    Stack(RequestId),
}

impl Resolve {
    pub(super) fn new(
        work: Receiver<Work>,
        waiting: Arc<WaitingBytes>,
        commands: Commands,
        events: mpsc::Sender<PipelineEvent>,
        code_signature: CodeSignature,
        frames: FrameSet,
    ) -> Self {
        Self {
            work,
            waiting,
            commands,
            events,
            code_signature,
            frames,
            asked: None,
            runtimes: HashMap::new(),
            requests: OpenRequests::default(),
            budgets: Budgets::default(),
            coverage: HashMap::new(),
        }
    }

    /// Does one piece of work; `None` if another thread has gone on meanwhile.
    fn take(
        mut self: Box<Self>,
        work: Work,
        namer: &mut Namer,
        relay: &Relay<Self>,
    ) -> Option<Box<Self>> {
        match work {
            Work::Target(target) => return self.on_target(target, namer, relay),
            Work::Sample(sample) => {
                self.waiting.remove(&sample);
                return self.on_sample(sample, namer, relay);
            }
            Work::Forked(child, python) => {
                if let Some(python) = python {
                    self.runtimes.insert(child, python);
                }
            }
            Work::Begin(request, grids) => self.requests.begin(*request, grids),
            Work::Regrid(id, since_ktime_ns, grid) => {
                if let Some(open) = self.requests.get_mut(id) {
                    open.grids.change(since_ktime_ns, grid);
                }
            }
            Work::Drop(id) => {
                self.requests.close(id);
            }
            Work::Finish(finished) => self.on_finish(*finished),
            Work::Publish(task_id, coverage) => {
                let coverage = self.with_own(&task_id, coverage);
                self.tell(PipelineEvent::Coverage(task_id, coverage));
            }
            Work::ProgramTime(run_time, ktime_ns) => {
                self.tell(PipelineEvent::ProgramTime(run_time, ktime_ns));
            }
            Work::TaskDone(task_id, coverage) => {
                let coverage = self.with_own(&task_id, coverage);
                self.coverage.remove(&task_id);
                self.tell(PipelineEvent::TaskDone(task_id, coverage));
            }
            Work::TaskFailed(task_id, error) => {
                self.tell(PipelineEvent::TaskFailed(task_id, error));
            }
            Work::Armed(task_id) => self.tell(PipelineEvent::Armed(task_id)),
            Work::ForgetProcess(key, lives) => {
                self.runtimes.remove(&key);
                self.budgets.forget(key);
                namer.forget(key);
                if lives {
                    self.tell(PipelineEvent::ProcessChanged(key));
                }
            }
            Work::Idle => {
                self.runtimes.clear();
                self.requests.clear();
                self.budgets = Budgets::default();
                namer.release();
                // Symbols take tens of megabytes, and the next task may be days away.
                release_free_memory();
            }
        }
        Some(self)
    }

    /// Has the namer read a process, which may never end.
    fn ask<T>(
        mut self: Box<Self>,
        asked: Asked,
        process: ProcessKey,
        relay: &Relay<Self>,
        read: impl FnOnce() -> T,
    ) -> Option<(Box<Self>, T)> {
        self.asked = Some(asked);
        let (mut this, result) = relay.lend(self, |reading| {
            reading.begin(process.pid);
            read()
        })?;
        this.asked = None;
        Some((this, result))
    }

    /// Has what stacks of a process need read, before there are any.
    fn on_target(
        mut self: Box<Self>,
        mut target: NewTarget,
        namer: &mut Namer,
        relay: &Relay<Self>,
    ) -> Option<Box<Self>> {
        let key = target.process;
        self.runtimes.remove(&key);
        self.budgets.forget(key);
        namer.forget(key);
        if let Some(python) = &target.python {
            self.runtimes.insert(key, Arc::clone(python));
        }
        let python = target.python.as_ref();
        let start = Instant::now();
        let time_max = if self.budgets.is_spent(&target.service, start) {
            Duration::ZERO
        } else {
            PREPARE_TIME_MAX
        };
        let (mut this, (threads, is_same)) =
            self.ask(Asked::Target(target.slot), key, relay, || {
                let threads = python.map(|python| python.thread_states());
                let is_same = namer.prepare(key, python, &target.program, time_max);
                (threads.unwrap_or_default(), is_same)
            })?;
        this.budgets
            .charge(key, &target.service, start, Instant::now());
        if is_same {
            target.python_threads = threads;
            this.commands.send(Command::Watch(target));
        } else {
            this.runtimes.remove(&key);
            namer.forget(key);
            this.tell(PipelineEvent::ProcessChanged(key));
        }
        Some(this)
    }

    fn on_sample(
        mut self: Box<Self>,
        sample: RawSample,
        namer: &mut Namer,
        relay: &Relay<Self>,
    ) -> Option<Box<Self>> {
        let RawSample {
            request,
            ktime_ns,
            kind,
            ..
        } = sample;
        let Some(open) = self.requests.get_mut(request) else {
            // Requests that were dropped leave samples behind in the rings.
            return Some(self);
        };
        let bytes_before = open.samples.memory_bytes();
        let (captured, since_ktime_ns) = match kind {
            SampleKind::Ended => {
                // Its stack while it was blocked held until then.
                if let Ok(blocked) = &open.blocked {
                    open.samples.end_block(blocked, ktime_ns);
                }
                return Some(self);
            }
            SampleKind::Unchanged => {
                let stack = open.blocked.clone();
                self.add(request, bytes_before, (ktime_ns, ktime_ns), stack);
                return Some(self);
            }
            SampleKind::OnCpu(captured) => (captured, None),
            SampleKind::OffCpu {
                since_ktime_ns,
                captured,
            } => (captured, Some(since_ktime_ns.min(ktime_ns))),
        };
        let (process, service) = (open.request.process, open.request.service.clone());
        let start = Instant::now();
        let age = Duration::from_nanos(now_ktime_ns().saturating_sub(ktime_ns));
        let (mut this, stack) = if self.budgets.is_refused(process, &service, age, start) {
            (self, Err(Counter::SamplesTooDear))
        } else {
            let sampled = Sampled {
                process,
                python: self.runtimes.get(&process).cloned(),
                captured,
                is_off_cpu: since_ktime_ns.is_some(),
                deadline: start + STACK_TIME_MAX,
            };
            let name = || {
                let mut losses = Coverage::default();
                let stack = namer.name(sampled, &mut losses);
                (stack, losses)
            };
            let asked = Asked::Stack(request);
            let (mut this, (stack, losses)) = self.ask(asked, process, relay, name)?;
            this.budgets
                .charge(process, &service, start, Instant::now());
            if let Some(open) = this.requests.get_mut(request) {
                open.losses.merge(&losses);
            }
            (this, stack)
        };
        if let Some(open) = this.requests.get_mut(request) {
            if stack == Err(Counter::SamplesTooDear) {
                open.losses.note(format!(
                    "process {process} has lost samples: to unwind and name its stacks takes so much time that others would \
                     lose theirs"
                ));
            }
            let stack = stack.map(|stack| open.samples.share(stack));
            if since_ktime_ns.is_some() {
                open.blocked.clone_from(&stack);
            }
            let since_ktime_ns = since_ktime_ns.unwrap_or(ktime_ns);
            this.add(request, bytes_before, (since_ktime_ns, ktime_ns), stack);
        }
        Some(this)
    }

    /// Adds what a request's thread was in between two times; or the counter that says why that is not known.
    fn add(
        &mut self,
        request: RequestId,
        bytes_before: usize,
        (since_ktime_ns, ktime_ns): (u64, u64),
        stack: Result<Arc<Stack<Frame>>, Counter>,
    ) {
        let stack = match stack {
            Ok(stack) => Some(TimedStack {
                since_ktime_ns,
                ..TimedStack::at(ktime_ns, stack)
            }),
            Err(lost) => {
                if let Some(open) = self.requests.get_mut(request) {
                    open.losses.bump(lost);
                }
                None
            }
        };
        self.requests.push(request, bytes_before, stack);
    }

    fn on_finish(&mut self, mut finished: FinishedRequest) {
        let Some(open) = self.requests.close(finished.request.id) else {
            return;
        };
        finished.losses.merge(&open.losses);
        let step = open.samples.step();
        let samples = open.samples.finish(&open.grids, &mut finished.losses);
        let timeline = timeline::build(
            samples,
            &open.grids,
            finished.request.start_ktime_ns,
            finished.end_ktime_ns,
            &mut finished.losses,
        );
        let stretched_ns = open.grids.stretched_period_ns(finished.end_ktime_ns, step);
        let task_id = finished.request.task_id.clone();
        let (slot, service) = (finished.request.slot, finished.request.service.clone());
        match snapshot::build(finished, &timeline, self.frames) {
            Ok(mut segment) => {
                if let Some(period_ns) = stretched_ns {
                    let period_ms = (period_ns / 1_000_000).to_string();
                    segment.tags.push((TAG_DUMP_PERIOD.to_owned(), period_ms));
                }
                if let Some(why) = segment.request.cut {
                    segment.tags.push((TAG_CUT.to_owned(), why.to_string()));
                }
                self.coverage
                    .entry(task_id)
                    .or_default()
                    .merge(&segment.request.losses);
                self.tell(PipelineEvent::Segment(Box::new(segment)));
            }
            Err(finished) => {
                self.coverage
                    .entry(task_id)
                    .or_default()
                    .merge(&finished.losses);
                self.tell(PipelineEvent::NoStack(slot, service));
            }
        }
    }

    fn with_own(&self, task_id: &TaskId, mut coverage: Coverage) -> Coverage {
        if let Some(own) = self.coverage.get(task_id) {
            coverage.merge(own);
        }
        coverage
    }

    fn tell(&self, event: PipelineEvent) {
        // Fails only when the owner is gone, and then the daemon is leaving.
        let _gone = self.events.blocking_send(event);
    }
}

impl Resume for Resolve {
    /// Five seconds: symbols of a large program on a slow disk.
    const LOOKS_MAX: u32 = 100;

    /// Runs until the capture thread is gone.
    fn run(mut self: Box<Self>, relay: &Relay<Self>) -> anyhow::Result<Ended> {
        let mut namer = Namer::new(self.code_signature, self.frames);
        while let Ok(work) = self.work.recv() {
            match self.take(work, &mut namer, relay) {
                Some(back) => self = back,
                None => return Ok(Ended::Replaced),
            }
        }
        Ok(Ended::Done)
    }

    fn leave_out(&mut self, process: Pid) {
        match self.asked.take() {
            // It is not watched yet.
            Some(Asked::Target(slot)) => self.commands.send(Command::Note {
                slot,
                counter: Some(Counter::ProcessesUnreadable),
                text: left_out_text(process),
            }),
            Some(Asked::Stack(request)) => {
                if let Some(open) = self.requests.get_mut(request) {
                    open.losses.bump(Counter::SamplesHeldUp);
                }
                let why = LeftOut::Unreadable(left_out_text(process));
                self.commands.send(Command::LeaveOut(process, why));
            }
            None => {}
        }
    }
}
