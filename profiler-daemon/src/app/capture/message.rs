//! What the capture thread is told, and what it passes on.

use std::sync::Arc;

use crate::model::{
    ActiveRequest, Counter, Coverage, FinishedRequest, ProcessKey, ProfileTask, RawSample,
    RequestId, Service, TaskId, TaskSlot,
};
use crate::process::python::PythonRuntime;
use crate::request::Endpoint;
use crate::timeline::{Grid, Grids};

/// What the capture thread is told.
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
    /// Watch a process for a task.
    AddTarget {
        /// Slot of the task.
        slot: TaskSlot,
        /// Process.
        process: ProcessKey,
        /// The instance it reports as.
        service: Service,
        /// Its interpreter.
        python: Option<Arc<PythonRuntime>>,
        /// It has a SkyWalking agent.
        has_agent: bool,
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
    /// Make dump periods so many times as long as the tasks ask for.
    Stretch(u32),
    /// Tell the programs' run times, once a second: somebody has the kernel count them.
    TellProgramTime,
    /// End all tasks at once and leave.
    Shutdown,
}

/// What the resolve thread is given, in order.
#[derive(Debug)]
pub(in crate::app) enum Work {
    /// A process and its interpreter.
    Target(ProcessKey, Option<Arc<PythonRuntime>>),
    /// Samples of this request follow.
    Begin(Box<ActiveRequest>, Grids),
    /// The request's thread is looked at by another grid since this instant (`CLOCK_MONOTONIC`).
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
    ProgramTime(u64, u64),
    /// The task is over; its final coverage of the capture side.
    TaskDone(TaskId, Coverage),
    /// The task could not be armed.
    TaskFailed(TaskId, anyhow::Error),
    /// Armed: programs are attached and the rule is live.
    Armed(TaskId),
    /// A process is gone or runs another program; `true` if it lives on.
    ForgetProcess(ProcessKey, bool),
    /// A process forked a child of the same service.
    Forked(ProcessKey, ProcessKey),
    /// No task is live.
    Idle,
}
