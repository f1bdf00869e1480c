//! The thread that owns the kernel side: rings, ticks, tags.
//!
//! In:  [`Command`]s from [`super::control`]; rings and thread states from [`crate::kernel`]
//! Out: [`Work`] to [`super::resolve`]
//! Lost: full queue -> [`Counter::SamplesQueueFull`]; late tick -> [`Counter::TicksLate`];
//!       undecodable record -> [`Counter::BadRecords`]
//!
//! Nothing is loaded while no task is live, and the thread then sleeps in `poll` without a timeout.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use profiler_common::{Conn, KernelCounter, ThreadState};

use crate::kernel::{Kernel, KernelError, LoadOptions};
use crate::model::{
    ActiveRequest, Counter, Coverage, FinishedRequest, Pid, ProfileTask, PythonChain, RawSample,
    RequestEvent, RequestId, SampleKind, Service, TaskId, TaskSlot, Tid, WallClock,
};
use crate::process::ProcessMemory;
use crate::process::python::PythonRuntime;
use crate::request::{Action, ConnView, Endpoint, RequestTracker, TrackerLimits};
use crate::sampler::{ChainWalker, Sampler, ThreadStates, Watched};
use crate::timeline::Grid;
use crate::unwind::python::PythonWalker;

/// Most ticks that are made up for at once.
const TICKS_BEHIND_MAX: u64 = 100;
/// How often open requests are looked at.
const LOOK_NS: u64 = 50_000_000;
/// How often live coverage is published.
const PUBLISH_NS: u64 = 1_000_000_000;
/// How long a task's open requests may run on after its end.
const GRACE_NS: u64 = 2_000_000_000;

/// What the capture thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Arm a task.
    StartTask {
        /// Free slot.
        slot: TaskSlot,
        /// The task.
        task: Box<ProfileTask>,
        /// Its endpoint, parsed.
        endpoint: Box<Endpoint>,
    },
    /// Watch a process for a task.
    AddTarget {
        /// Slot of the task.
        slot: TaskSlot,
        /// Process.
        pid: Pid,
        /// The instance it reports as.
        service: Service,
        /// Its interpreter.
        python: Option<Arc<PythonRuntime>>,
    },
    /// End a task; its open requests get a moment.
    EndTask {
        /// Slot of the task.
        slot: TaskSlot,
    },
    /// A profiled request left nothing: its place is free.
    ReleasePlace {
        /// Slot of the task.
        slot: TaskSlot,
        /// Instance.
        service: Service,
    },
    /// A note for the task's coverage.
    Note {
        /// Slot of the task.
        slot: TaskSlot,
        /// What it counts as, if anything.
        counter: Option<Counter>,
        /// Text.
        text: String,
    },
    /// End all tasks at once and leave.
    Shutdown,
}

/// What the resolve thread is given, in order.
#[derive(Debug)]
pub(super) enum Work {
    /// A process and its interpreter.
    Target(Pid, Option<Arc<PythonRuntime>>),
    /// Samples of this request follow.
    Begin(Box<ActiveRequest>, Grid),
    /// A sample.
    Sample(RawSample),
    /// Forget the request.
    Drop(RequestId),
    /// The request is over; build and report its segment.
    Finish(Box<FinishedRequest>, Service),
    /// Coverage of the capture side so far.
    Publish(TaskId, Coverage),
    /// The task is over; its final coverage of the capture side.
    TaskDone(TaskId, Coverage),
    /// The kernel side refused the task.
    TaskFailed(TaskId, KernelError),
    /// Armed: programs are attached and the rule is live.
    Armed(TaskId),
    /// A process is gone or runs another program; `true` if it lives on.
    ForgetProcess(Pid, bool),
    /// A process forked a child of the same service.
    Forked(Pid, Pid),
    /// No task is live.
    Idle,
}

impl ConnView for Kernel {
    fn conn(&self, pid: Pid, fd: i32) -> Option<Conn> {
        Self::conn(self, pid, fd).ok().flatten()
    }
}

impl ThreadStates for Kernel {
    fn thread_state(&self, tid: Tid) -> Option<ThreadState> {
        Self::thread_state(self, tid).ok().flatten()
    }
}

/// Python frames of blocked threads.
struct Walker<'a> {
    walker: &'a mut PythonWalker,
    runtimes: &'a HashMap<Pid, Arc<PythonRuntime>>,
}

impl ChainWalker for Walker<'_> {
    fn walk(&mut self, pid: Pid, tid: Tid) -> Option<PythonChain> {
        let runtime = self.runtimes.get(&pid)?;
        Some(
            self.walker
                .walk_thread(&ProcessMemory::new(pid), runtime, tid),
        )
    }
}

/// A live task.
struct Live {
    task_id: TaskId,
    period: Duration,
    ends_ktime_ns: Option<u64>,
    targets: Vec<Pid>,
}

/// State of the thread.
pub(super) struct Capture {
    pub(super) commands: Receiver<Command>,
    pub(super) wake: Arc<EventFd>,
    pub(super) work: Sender<Work>,
    pub(super) options: LoadOptions,
    kernel: Option<Kernel>,
    tracker: RequestTracker,
    sampler: Sampler,
    walker: PythonWalker,
    runtimes: HashMap<Pid, Arc<PythonRuntime>>,
    live: HashMap<TaskSlot, Live>,
    grid: Grid,
    next_tick_ktime_ns: u64,
    looked_ktime_ns: u64,
    published_ktime_ns: u64,
    leaving: bool,
}

impl Capture {
    pub(super) fn new(
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        work: Sender<Work>,
        options: LoadOptions,
        limits: TrackerLimits,
    ) -> Self {
        Self {
            commands,
            wake,
            work,
            options,
            kernel: None,
            tracker: RequestTracker::new(limits),
            sampler: Sampler::default(),
            walker: PythonWalker::default(),
            runtimes: HashMap::new(),
            live: HashMap::new(),
            grid: Grid {
                origin_ktime_ns: 0,
                period_ns: 10_000_000,
            },
            next_tick_ktime_ns: 0,
            looked_ktime_ns: 0,
            published_ktime_ns: 0,
            leaving: false,
        }
    }

    /// Runs until told to leave.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        loop {
            self.wait(&timer)?;
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command, &timer);
            }
            if self.kernel.is_some() {
                self.drain();
                self.tick(&timer)?;
            }
            if self.leaving && self.live.is_empty() {
                return Ok(());
            }
        }
    }

    fn wait(&self, timer: &TimerFd) -> anyhow::Result<()> {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if let Some(kernel) = &self.kernel {
            fds.push(PollFd::new(timer.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(kernel.request_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(kernel.sample_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // The wake counter only says that commands wait; reading it must not block.
        if fds[0]
            .revents()
            .is_some_and(|r| r.contains(PollFlags::POLLIN))
        {
            let _count = self.wake.read();
        }
        Ok(())
    }

    fn obey(&mut self, command: Command, timer: &TimerFd) {
        match command {
            Command::StartTask {
                slot,
                task,
                endpoint,
            } => {
                let task_id = task.task_id.clone();
                match self.arm(slot, &task, &endpoint, timer) {
                    Ok(()) => {
                        self.tracker.add_task(slot, *task, *endpoint);
                        self.send(Work::Armed(task_id));
                    }
                    Err(error) => {
                        self.live.remove(&slot);
                        self.disarm_if_idle();
                        self.send(Work::TaskFailed(task_id, error));
                    }
                }
            }
            Command::AddTarget {
                slot,
                pid,
                service,
                python,
            } => {
                self.add_target(slot, pid, service, python);
            }
            Command::EndTask { slot } => {
                let now = now_ktime_ns();
                if let Some(live) = self.live.get_mut(&slot) {
                    live.ends_ktime_ns.get_or_insert(now + GRACE_NS);
                    self.kernel_do(|kernel| kernel.set_count_only(slot, true));
                }
            }
            Command::ReleasePlace { slot, service } => {
                let mut actions = Vec::new();
                self.tracker.release_place(slot, &service, &mut actions);
                self.act(actions);
            }
            Command::Note {
                slot,
                counter,
                text,
            } => {
                if let Some(coverage) = self.tracker.coverage_mut(slot) {
                    if let Some(counter) = counter {
                        coverage.bump(counter);
                    }
                    coverage.note(text);
                }
            }
            Command::Shutdown => {
                self.leaving = true;
                let now = now_ktime_ns();
                for live in self.live.values_mut() {
                    live.ends_ktime_ns = Some(now);
                }
            }
        }
    }

    fn arm(
        &mut self,
        slot: TaskSlot,
        task: &ProfileTask,
        endpoint: &Endpoint,
        timer: &TimerFd,
    ) -> Result<(), KernelError> {
        let period = Duration::from_millis(u64::from(task.dump_period_ms.max(1)));
        let live = Live {
            task_id: task.task_id.clone(),
            period,
            ends_ktime_ns: None,
            targets: Vec::new(),
        };
        self.live.insert(slot, live);
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            None => self.kernel.insert(Kernel::load(&self.options)?),
        };
        kernel.set_rule(slot, &endpoint.rule())?;
        let period_ns = period.as_nanos() as u64;
        if !kernel.is_attached() || period_ns < self.grid.period_ns {
            let origin_ktime_ns = kernel.attach(period)?;
            self.grid = Grid {
                origin_ktime_ns,
                period_ns,
            };
            self.set_timer(timer);
        }
        Ok(())
    }

    fn set_timer(&mut self, timer: &TimerFd) {
        let now = now_ktime_ns();
        let behind = now.saturating_sub(self.grid.origin_ktime_ns);
        let ticks = behind / self.grid.period_ns + 1;
        self.next_tick_ktime_ns = self.grid.origin_ktime_ns + ticks * self.grid.period_ns;
        let expiration = Expiration::IntervalDelayed(
            Duration::from_nanos(self.next_tick_ktime_ns).into(),
            Duration::from_nanos(self.grid.period_ns).into(),
        );
        if let Err(error) = timer.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME) {
            tracing::error!(%error, "the tick could not be armed: blocked threads are not sampled");
        }
    }

    fn add_target(
        &mut self,
        slot: TaskSlot,
        pid: Pid,
        service: Service,
        python: Option<Arc<PythonRuntime>>,
    ) {
        let Some(live) = self.live.get_mut(&slot) else {
            return;
        };
        if !live.targets.contains(&pid) {
            live.targets.push(pid);
        }
        self.tracker.add_target(slot, pid, service);
        if let Some(python) = &python {
            self.runtimes.insert(pid, Arc::clone(python));
        }
        self.send(Work::Target(pid, python.clone()));
        let record = python.map(|python| python.to_kernel());
        self.kernel_do(|kernel| {
            kernel.set_python(pid, record.as_ref())?;
            kernel.add_target(pid, slot)
        });
    }

    fn kernel_do(&mut self, operation: impl FnOnce(&mut Kernel) -> Result<(), KernelError>) {
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = operation(kernel)
        {
            tracing::warn!(%error, "the kernel side refused an update");
        }
    }

    fn drain(&mut self) {
        let Some(kernel) = &mut self.kernel else {
            return;
        };
        let clock = wall_clock();
        let mut events = Vec::new();
        let mut samples = Vec::new();
        let mut bad = 0;
        kernel.drain_requests(|event| match event {
            Ok(event) => events.push(event),
            Err(error) => {
                tracing::debug!(%error, "bad request record");
                bad += 1;
            }
        });
        // After the requests: every sample of a request that ended above is in the ring by now.
        kernel.drain_samples(|sample| match sample {
            Ok(sample) => samples.push(sample),
            Err(error) => {
                tracing::debug!(%error, "bad sample record");
                bad += 1;
            }
        });
        let mut actions = Vec::new();
        for event in events {
            self.on_process_event(&event, &mut actions);
            self.tracker.on_event(event, clock, &mut actions);
        }
        let (finished, now): (Vec<_>, Vec<_>) = actions
            .into_iter()
            .partition(|a| matches!(a, Action::Finish(_)));
        self.act(now);
        for sample in samples {
            self.send_sample(sample);
        }
        self.act(finished);
        if bad > 0 {
            self.count_all(Counter::BadRecords, bad);
        }
    }

    fn on_process_event(&mut self, event: &RequestEvent, actions: &mut Vec<Action>) {
        match *event {
            RequestEvent::Fork { parent, child } => {
                if let Some(python) = self.runtimes.get(&parent).cloned() {
                    self.runtimes.insert(child, python);
                }
                for (slot, live) in &mut self.live {
                    if let Some(service) = self.tracker.service_of(*slot, parent).cloned() {
                        self.tracker.add_target(*slot, child, service);
                        live.targets.push(child);
                    }
                }
                self.send(Work::Forked(parent, child));
            }
            RequestEvent::Exec { pid } | RequestEvent::Exit { pid } => {
                let lives = matches!(event, RequestEvent::Exec { .. });
                self.tracker.on_process_gone(pid, now_ktime_ns(), actions);
                self.runtimes.remove(&pid);
                self.walker.forget(pid);
                self.kernel_do(|kernel| {
                    kernel.set_python(pid, None)?;
                    kernel.forget_process(pid)
                });
                // Finished requests of the process are still to be resolved: forget it after them.
                let finished = std::mem::take(actions);
                self.act(finished);
                self.send(Work::ForgetProcess(pid, lives));
            }
            _ => {}
        }
    }

    fn tick(&mut self, timer: &TimerFd) -> anyhow::Result<()> {
        match nix::unistd::read(timer, &mut [0_u8; 8]) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let now = now_ktime_ns();
        if now.saturating_sub(self.next_tick_ktime_ns) > self.grid.period_ns / 2 {
            self.count_all(Counter::TicksLate, 1);
        }
        // Every tick that has passed, those we were too late for included: a thread that has been
        // blocked all the time is known at each of them.
        let behind = now.saturating_sub(self.next_tick_ktime_ns) / self.grid.period_ns;
        let forgotten = behind.saturating_sub(TICKS_BEHIND_MAX);
        self.next_tick_ktime_ns += forgotten * self.grid.period_ns;
        while self.next_tick_ktime_ns <= now {
            self.sample_blocked(self.next_tick_ktime_ns);
            self.next_tick_ktime_ns += self.grid.period_ns;
        }
        let now = now_ktime_ns();
        if now.saturating_sub(self.looked_ktime_ns) >= LOOK_NS {
            self.looked_ktime_ns = now;
            self.look(now);
        }
        if now.saturating_sub(self.published_ktime_ns) >= PUBLISH_NS {
            self.published_ktime_ns = now;
            let slots: Vec<TaskSlot> = self.live.keys().copied().collect();
            for slot in slots {
                if let Some((task_id, coverage)) = self.coverage(slot) {
                    self.send(Work::Publish(task_id, coverage));
                }
            }
        }
        Ok(())
    }

    fn sample_blocked(&mut self, tick_ktime_ns: u64) {
        let watched: Vec<(TaskSlot, Watched)> = self
            .tracker
            .sampled()
            .map(|r| {
                (
                    r.slot,
                    Watched {
                        request: r.id,
                        start_ktime_ns: r.start_ktime_ns,
                        pid: r.pid,
                        tid: r.tid,
                    },
                )
            })
            .collect();
        let mut walker = Walker {
            walker: &mut self.walker,
            runtimes: &self.runtimes,
        };
        let mut found = Vec::new();
        for (slot, watched) in watched {
            let Some(kernel) = &self.kernel else { return };
            let Some(losses) = self.tracker.coverage_mut(slot) else {
                continue;
            };
            let memory = ProcessMemory::new(watched.pid);
            found.extend(self.sampler.sample(
                watched,
                tick_ktime_ns,
                kernel,
                &memory,
                &mut walker,
                losses,
            ));
        }
        for sample in found {
            self.send_sample(sample);
        }
    }

    /// Looks at open requests and at tasks whose time is over.
    fn look(&mut self, now: u64) {
        let mut actions = Vec::new();
        if let Some(kernel) = &self.kernel {
            self.tracker.on_tick(now, kernel, &mut actions);
        }
        self.act(actions);
        let over: Vec<TaskSlot> = self
            .live
            .iter()
            .filter(|(slot, live)| {
                live.ends_ktime_ns
                    .is_some_and(|ends| ends <= now || self.tracker.open_count(**slot) == 0)
            })
            .map(|(slot, _)| *slot)
            .collect();
        for slot in over {
            self.end_task(slot, now);
        }
    }

    fn end_task(&mut self, slot: TaskSlot, now: u64) {
        let coverage = self.coverage(slot);
        let mut actions = Vec::new();
        let unfinished = self.tracker.end_task(slot, now, &mut actions);
        self.act(actions);
        let Some(live) = self.live.remove(&slot) else {
            return;
        };
        for pid in &live.targets {
            self.kernel_do(|kernel| kernel.remove_target(*pid, slot));
        }
        self.kernel_do(|kernel| kernel.clear_rule(slot));
        let mut coverage = coverage.map_or_else(Coverage::default, |(_, coverage)| coverage);
        if let Some(last) = unfinished {
            // What cutting the open requests added since.
            for counter in Counter::all() {
                if last.get(counter) > coverage.get(counter) {
                    coverage.set(counter, last.get(counter));
                }
            }
        }
        self.send(Work::TaskDone(live.task_id, coverage));
        self.disarm_if_idle();
    }

    fn disarm_if_idle(&mut self) {
        if self.live.is_empty() {
            self.kernel = None;
            self.runtimes.clear();
            self.sampler = Sampler::default();
            self.grid.period_ns = u64::MAX;
            self.send(Work::Idle);
        }
    }

    /// The task's coverage as this thread and the kernel side know it.
    fn coverage(&mut self, slot: TaskSlot) -> Option<(TaskId, Coverage)> {
        let task_id = self.live.get(&slot)?.task_id.clone();
        let mut coverage = self.tracker.coverage_mut(slot)?.clone();
        for (counter, n) in self.kernel.as_ref()?.counters(slot).unwrap_or_default() {
            let to = match counter {
                KernelCounter::RequestsSeen => Counter::RequestsSeen,
                KernelCounter::RequestRingFull => Counter::RequestEventsLost,
                KernelCounter::SampleRingFull => Counter::SamplesRingFull,
                KernelCounter::SamplesTaken => Counter::SamplesOnCpu,
                KernelCounter::TagsFull => Counter::TagsFull,
                KernelCounter::PipelinedHeads => Counter::PipelinedHeads,
                KernelCounter::NotServerSocket => Counter::NotServerSocket,
                KernelCounter::HeadUnreadable => Counter::HeadsUnreadable,
                KernelCounter::StackUnreadable => Counter::SamplesNoStack,
                KernelCounter::PythonUnreadable => Counter::PythonPartial,
                KernelCounter::HeadAfterShutdown => Counter::HeadsAfterShutdown,
                KernelCounter::PartialHeadDropped => Counter::PartialHeadsDropped,
                KernelCounter::MapUpdateFailed => Counter::MapUpdatesFailed,
                KernelCounter::CountedOnly | KernelCounter::OtherTask => {
                    // Matched by the prefilter after the task had its requests, or while another
                    // task had them.
                    coverage.add(Counter::RequestsMatched, n);
                    Counter::RequestsOverLimit
                }
                KernelCounter::PrefilterPassed => continue,
            };
            coverage.add(to, n);
        }
        Some((task_id, coverage))
    }

    fn count_all(&mut self, counter: Counter, n: u64) {
        for slot in self.live.keys() {
            if let Some(coverage) = self.tracker.coverage_mut(*slot) {
                coverage.add(counter, n);
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Begin(request) => {
                    let period = self.live.get(&request.slot).map(|live| live.period);
                    let period_ns =
                        period.map_or(self.grid.period_ns, |period| period.as_nanos() as u64);
                    self.send(Work::Begin(
                        request,
                        Grid {
                            period_ns,
                            ..self.grid
                        },
                    ));
                }
                Action::Drop { id, pid, tid, fd } => {
                    self.sampler.forget(tid);
                    self.kernel_do(|kernel| kernel.cancel(pid, fd, id));
                    self.send(Work::Drop(id));
                }
                Action::Untag { id, tid } => {
                    self.sampler.forget(tid);
                    self.kernel_do(|kernel| kernel.untag(tid, id));
                }
                Action::CountOnly { slot, on } => {
                    self.kernel_do(|kernel| kernel.set_count_only(slot, on));
                }
                Action::Finish(finished) => {
                    let request = &finished.request;
                    let (pid, tid, fd, id) = (request.pid, request.tid, request.fd, request.id);
                    self.sampler.forget(tid);
                    self.kernel_do(|kernel| kernel.cancel(pid, fd, id));
                    if let Some(service) = self.tracker.service_of(request.slot, pid).cloned() {
                        self.send(Work::Finish(finished, service));
                    }
                }
            }
        }
    }

    fn send_sample(&mut self, sample: RawSample) {
        let (tid, id) = (sample.tid, sample.request);
        let unchanged = matches!(sample.kind, SampleKind::Unchanged);
        if let Err(TrySendError::Full(_)) = self.work.try_send(Work::Sample(sample)) {
            if !unchanged {
                // The next tick must not say "as before" of a stack that never arrived.
                self.sampler.forget(tid);
            }
            let slot = self.tracker.sampled().find(|r| r.id == id).map(|r| r.slot);
            if let Some(coverage) = slot.and_then(|slot| self.tracker.coverage_mut(slot)) {
                coverage.bump(Counter::SamplesQueueFull);
            }
        }
    }

    fn send(&self, work: Work) {
        // Fails only when the resolve thread is gone, and then the daemon is leaving.
        let _gone = self.work.send(work);
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(super) fn now_ktime_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_MONOTONIC)
}

fn wall_clock() -> WallClock {
    WallClock::from_readings(now_ktime_ns(), clock_ns(nix::time::ClockId::CLOCK_REALTIME))
}

fn clock_ns(clock: nix::time::ClockId) -> u64 {
    nix::time::clock_gettime(clock).map_or(0, |time| {
        time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
    })
}
