//! The thread that owns the kernel side: rings, ticks, tags.
//!
//! In:  [`Command`]s from [`super::control`]; rings and thread states from [`crate::kernel`]
//! Out: [`Work`] to [`super::resolve`]
//! Lost: full queue -> [`Counter::SamplesQueueFull`]; late tick -> [`Counter::TicksLate`];
//!       undecodable record -> [`Counter::BadRecords`]
//!
//! [`tasks`] obeys, [`targets`] keeps the processes, [`round`] takes what there is and passes it on, [`blocked`] samples at a tick and looks
//! [`ahead`] of it, [`clock`] follows the sampling grid, [`count`] translates the kernel side's counts,
//! [`message`] holds what comes in and goes out, [`waiting`] bounds the memory of that, [`observe`] tells how
//! the thread is doing. Nothing is loaded while no task is live, and the thread then sleeps in `poll` without a
//! timeout.

mod ahead;
mod blocked;
mod clock;
mod count;
mod message;
mod observe;
mod round;
mod targets;
mod tasks;
mod waiting;

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use profiler_common::Conn;

use super::relay::{Ended, Relay, Resume};
use super::worker;
use crate::kernel::{Kernel, KernelError, LoadOptions};
use crate::model::{
    ActiveRequest, Counter, Coverage, LeftOut, Pid, ProcessKey, TaskId, TaskSlot, Tid,
};
use crate::process::descriptor;
use crate::process::patience::left_out_text;
use crate::process::procfs::Procfs;
use crate::process::python::PythonRuntime;
use crate::process::wait_set::{self, WaitSet, Waits};
use crate::request::{ConnView, RequestTracker};
use ahead::AheadTimer;
use blocked::Memory;
use clock::GridTimer;
use count::add_kernel_counts;
use round::Round;
use targets::Watched;

pub(super) use clock::now_ktime_ns;
pub(super) use message::{Command, Commands, NewTarget, Work};
pub(super) use observe::CaptureState;
pub(super) use waiting::WaitingBytes;

/// How often open requests are checked.
const LOOK_NS: u64 = 50_000_000;
/// How long request events may wait to be read.
const EVENTS_WAIT_NS: u64 = 20_000_000;
/// How often live coverage is published.
const PUBLISH_NS: u64 = 1_000_000_000;

/// Longer than 500 years is as good as without end.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl ConnView for Kernel {
    fn conn(&self, pid: Pid, fd: i32) -> Option<Conn> {
        Self::conn(self, pid, fd).ok().flatten()
    }

    fn is_socket(&self, pid: Pid, tid: Tid, fd: i32, inode: u64) -> bool {
        descriptor::is_socket(&Procfs::default(), pid, tid, fd, inode)
    }

    fn waits(&self, request: &ActiveRequest, set: &WaitSet) -> Waits {
        let &ActiveRequest {
            process, tid, fd, ..
        } = request;
        let pid = process.pid;
        let is_client = |fd, inode| {
            ConnView::conn(self, pid, fd).is_some_and(|conn| conn.inode == 0 || conn.inode == inode)
        };
        wait_set::waits(&Procfs::default(), pid, tid, set, fd, is_client)
    }
}

/// A live task.
struct Live {
    task_id: TaskId,
    /// As the task asks for.
    period: Duration,
    ends_ktime_ns: Option<u64>,
    targets: HashSet<ProcessKey>,
    /// Hook runs that the kernel had left out before the task came.
    left_out_before: u64,
}

/// State of the thread.
pub(in crate::app) struct Capture {
    pub(in crate::app) commands: Receiver<Command>,
    pub(in crate::app) wake: Arc<EventFd>,
    pub(in crate::app) work: Sender<Work>,
    waiting: Arc<WaitingBytes>,
    pub(in crate::app) options: LoadOptions,
    state: Arc<CaptureState>,
    kernel: Option<Kernel>,
    tracker: RequestTracker,
    memory: Memory,
    /// A round whose second half has not begun.
    round: Option<Round>,
    /// Those that are watched, by the id that the kernel side names them by.
    processes: HashMap<Pid, Watched>,
    runtimes: HashMap<ProcessKey, Arc<PythonRuntime>>,
    live: HashMap<TaskSlot, Live>,
    /// Dump period in use, divided by the one that tasks ask for.
    stretch: u32,
    tells_program_time: bool,
    clock: GridTimer,
    ahead: AheadTimer,
    /// Events of all live tasks that are known to be lost.
    events_lost: u64,
    looked_ktime_ns: u64,
    published_ktime_ns: u64,
    leaving: bool,
}

impl Capture {
    pub(in crate::app) fn new(
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        work: Sender<Work>,
        waiting: Arc<WaitingBytes>,
        options: LoadOptions,
        tracker: RequestTracker,
        state: Arc<CaptureState>,
    ) -> Result<Self> {
        let clock = GridTimer::new()?;
        Ok(Self {
            commands,
            wake,
            work,
            waiting,
            options,
            state,
            kernel: None,
            tracker,
            memory: Memory::default(),
            round: None,
            processes: HashMap::new(),
            runtimes: HashMap::new(),
            live: HashMap::new(),
            stretch: 1,
            tells_program_time: false,
            clock,
            ahead: AheadTimer::new()?,
            events_lost: 0,
            looked_ktime_ns: 0,
            published_ktime_ns: 0,
            leaving: false,
        })
    }

    /// Obeys what waits; whether there was anything.
    fn obey_all(&mut self) -> bool {
        let mut has_obeyed = false;
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
            has_obeyed = true;
        }
        has_obeyed
    }

    /// Arms the timers for what there is now.
    fn arm_timers(&mut self) -> Result<()> {
        if self.kernel.is_some() {
            self.clock
                .set_needed(self.tracker.oldest_start_ktime_ns())?;
            self.ahead
                .arm(self.clock.next_tick(), self.clock.period())?;
            self.mind_wakeups();
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if let Some(kernel) = &self.kernel {
            fds.push(PollFd::new(self.clock.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(self.ahead.as_fd(), PollFlags::POLLIN));
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

    /// At dump periods up to 20 ms, events are read at the next tick: a wake-up would run in the profiled thread and
    /// delay it. The ring wakes the daemon before it is full.
    fn mind_wakeups(&mut self) {
        let unread_bytes = if self.clock.tells_within(EVENTS_WAIT_NS) {
            self.options.request_ring_bytes / 4
        } else {
            0
        };
        self.kernel_do(|kernel| kernel.set_request_wakeup(unread_bytes));
    }

    fn kernel_do(&mut self, operation: impl FnOnce(&mut Kernel) -> Result<(), KernelError>) {
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = operation(kernel)
        {
            tracing::warn!(%error, "the kernel refused an update of a BPF map or program");
        }
    }

    /// What is done every so often while ticks come.
    fn look_at_times(&mut self) {
        let now = now_ktime_ns();
        if now.saturating_sub(self.looked_ktime_ns) >= LOOK_NS {
            self.looked_ktime_ns = now;
            self.look(now);
        }
        if now.saturating_sub(self.published_ktime_ns) >= PUBLISH_NS {
            self.published_ktime_ns = now;
            self.state.end_second();
            let slots: Vec<TaskSlot> = self.live.keys().copied().collect();
            let mut events_lost = 0;
            for slot in slots {
                if let Some((task_id, coverage)) = self.coverage(slot) {
                    events_lost += coverage.get(Counter::RequestEventsLost)
                        + coverage.get(Counter::BadRecords);
                    self.send(Work::Publish(task_id, coverage));
                }
            }
            if std::mem::replace(&mut self.events_lost, events_lost) < events_lost {
                self.recheck_processes();
            }
            if let Some(kernel) = self.kernel.as_ref().filter(|_| self.tells_program_time) {
                self.send(Work::ProgramTime(kernel.program_time(), now));
            }
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

    /// The task's coverage as this thread and the kernel side know it.
    fn coverage(&mut self, slot: TaskSlot) -> Option<(TaskId, Coverage)> {
        let live = self.live.get(&slot)?;
        let (task_id, left_out_before) = (live.task_id.clone(), live.left_out_before);
        let mut coverage = self.tracker.coverage_mut(slot)?.clone();
        let kernel = self.kernel.as_ref()?;
        let counts = kernel.counters(slot).unwrap_or_default();
        add_kernel_counts(&mut coverage, &counts);
        let left_out = kernel.left_out_runs().saturating_sub(left_out_before);
        coverage.add(Counter::HooksLeftOut, left_out);
        Some((task_id, coverage))
    }

    fn count_all(&mut self, counter: Counter, n: u64) {
        for slot in self.live.keys() {
            if let Some(coverage) = self.tracker.coverage_mut(*slot) {
                coverage.add(counter, n);
            }
        }
    }

    fn send(&self, work: Work) {
        // Fails only when the resolve thread is gone, and then the daemon is leaving.
        let _gone = self.work.send(work);
    }
}

impl Resume for Capture {
    /// Half a second: all other threads wait for their samples.
    const LOOKS_MAX: u32 = 10;

    /// Runs until a command ends it.
    fn run(mut self: Box<Self>, relay: &Relay<Self>) -> Result<Ended> {
        worker::raise_priority();
        // Of the thread before, which did not come back in the middle of it.
        self.end_round(None);
        self.arm_timers()?;
        loop {
            self.wait()?;
            let has_obeyed = self.obey_all();
            if self.kernel.is_some() {
                let seen = match self.begin_round()? {
                    Some(look) => match relay.lend(self, |reading| look.run(reading)) {
                        Some((back, seen)) => {
                            self = back;
                            Some(seen)
                        }
                        None => return Ok(Ended::Replaced),
                    },
                    None => None,
                };
                self.end_round(seen);
                if has_obeyed {
                    self.look(now_ktime_ns());
                }
            }
            self.arm_timers()?;
            self.note_state();
            if self.leaving && self.live.is_empty() {
                return Ok(Ended::Done);
            }
        }
    }

    fn leave_out(&mut self, process: Pid) {
        let why = LeftOut::Unreadable(left_out_text(process));
        self.leave_out_target(process, &why);
    }
}

#[cfg(test)]
mod tests;
