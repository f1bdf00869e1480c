//! Commands to the capture thread, and the work that it passes on.

use std::sync::Arc;

use crossbeam_channel::Sender;
use nix::sys::eventfd::EventFd;

use crate::guard::RunTime;
use crate::model::{
    ActiveRequest, Counter, Coverage, FinishedRequest, LeftOut, Pid, ProcessKey, ProfileTask,
    RawSample, RequestId, Service, TaskId, TaskSlot, Tid,
};
use crate::process::procfs::Stat;
use crate::process::python::PythonRuntime;
use crate::request::{Endpoint, TrackerLimits};
use crate::timeline::{Grid, Grids};

/// A process that a task is about to watch.
#[derive(Clone, Debug)]
pub(in crate::app) struct NewTarget {
    /// Slot of the task.
    pub(in crate::app) slot: TaskSlot,
    /// The process.
    pub(in crate::app) process: ProcessKey,
    /// The instance it reports as.
    pub(in crate::app) service: Service,
    /// Shows whether the process still runs the program that was inspected.
    pub(in crate::app) program: Stat,
    /// Its CPython interpreter, if it has one.
    pub(in crate::app) python: Option<Arc<PythonRuntime>>,
    /// Where its interpreter keeps the state of each thread, as found when the process was prepared.
    pub(in crate::app) python_threads: Vec<(Tid, u64)>,
    /// It has a SkyWalking agent.
    pub(in crate::app) has_agent: bool,
}

/// Gives commands to the capture thread.
#[derive(Clone, Debug)]
pub(in crate::app) struct Commands {
    pub(in crate::app) sender: Sender<Command>,
    pub(in crate::app) wake: Arc<EventFd>,
}

impl Commands {
    /// Gives a command; without a capture thread it is lost.
    pub(in crate::app) fn send(&self, command: Command) {
        if self.sender.send(command).is_ok() {
            // A full counter still wakes.
            let _ = self.wake.write(1);
        }
    }
}

/// A command to the capture thread.
#[derive(Debug)]
pub(in crate::app) enum Command {
    /// Arm a task.
    StartTask {
        /// Free slot.
        slot: TaskSlot,
        /// The task.
        task: Box<ProfileTask>,
        /// Its endpoint, parsed.
        endpoint: Box<Endpoint>,
    },
    /// Add a process to a task. It is watched once the resolve thread is ready for it.
    AddTarget(NewTarget),
    /// The resolve thread is ready for a process: its requests may be seen.
    Watch(NewTarget),
    /// Watch a process no more.
    LeaveOut(Pid, LeftOut),
    /// Have other limits from now on.
    SetLimits(TrackerLimits),
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
    /// An instance had requests of the task profiled before profilerd was started again.
    UsePlaces {
        /// Slot of the task.
        slot: TaskSlot,
        /// Instance.
        service: Service,
        /// How many.
        count: u32,
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
    /// Multiply the dump periods that tasks ask for by this.
    Stretch(u32),
    /// Report the programs' run times once a second, because the kernel counts them now.
    TellProgramTime,
    /// End all tasks at once and leave.
    Shutdown,
}

/// Work of the resolve thread, in order.
#[derive(Debug)]
pub(in crate::app) enum Work {
    /// A process that a task is about to watch; to be answered by [`Command::Watch`].
    Target(NewTarget),
    /// Samples of this request follow.
    Begin(Box<ActiveRequest>, Grids),
    /// The request's thread is sampled by another grid since this instant (`CLOCK_MONOTONIC`).
    Regrid(RequestId, u64, Grid),
    /// A sample.
    Sample(RawSample),
    /// Forget the request.
    Drop(RequestId),
    /// The request is over; build and report its segment.
    Finish(Box<FinishedRequest>),
    /// Coverage of the capture side so far.
    Publish(TaskId, Coverage),
    /// Time in all runs of the programs while the kernel counted them, and an instant (`CLOCK_MONOTONIC`).
    ProgramTime(RunTime, u64),
    /// The task is over; its final coverage of the capture side.
    TaskDone(TaskId, Coverage),
    /// The task could not be armed.
    TaskFailed(TaskId, anyhow::Error),
    /// Armed: programs are attached and the rule is live.
    Armed(TaskId),
    /// A process is gone or runs another program; `true` if it lives on.
    ForgetProcess(ProcessKey, bool),
    /// A process forked this child of the same service, with its interpreter.
    Forked(ProcessKey, Option<Arc<PythonRuntime>>),
    /// No task is live.
    Idle,
}
