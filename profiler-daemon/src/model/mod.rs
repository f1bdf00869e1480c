//! The nouns of the pipeline. No I/O, no dependency on another module of the daemon.
//!
//! Reading order: [`task`] (what to profile), [`process`] (whose), [`request`] (what was seen), [`sample`] (one
//! observation of one thread), [`stack`] (frames), [`snapshot`] (what is sent), [`binding`] (below which
//! segment), [`counter`] and [`coverage`] (what was lost and why), [`traffic`] (requests counted and measured), [`observation`] (the daemon itself),
//! [`clock`] (kernel time to wall time).

pub mod backoff;
pub mod binding;
pub mod clock;
pub mod counter;
pub mod coverage;
pub mod date;
pub mod name;
pub mod note;
pub mod observation;
pub mod plain;
pub mod process;
pub mod record;
pub mod report;
pub mod request;
pub mod sample;
pub mod snapshot;
pub mod stack;
pub mod task;
pub mod totals;
pub mod traffic;

pub use binding::{AgentNames, AgentSpan, Binding, BoundBy, Unbound};
pub use clock::WallClock;
pub use counter::{Counter, Subject};
pub use coverage::Coverage;
pub use observation::{
    CaptureObservation, DeliveryObservation, DiscoveryObservation, Observation, ProcessObservation,
    RingObservation, TaskObservation,
};
pub use process::{LeftOut, Pid, ProcessKey, Tid};
pub use record::{Progress, ProgressState, RecordRequest, RecordTarget};
pub use report::{
    CoverageReport, ProfileReport, SegmentReport, SnapshotReport, TaskReport, TreeNode,
};
pub use request::{
    ActiveRequest, Cut, EndpointRule, FinishedRequest, RequestEvent, RequestId, Sw8, TAG_CUT,
};
pub use sample::{
    Captured, PythonChain, RawSample, SampleKind, SampleRecord, StackBytes, SwitchOut, TimedStack,
};
pub use snapshot::{ProfiledSegment, Snapshot};
pub use stack::{AddrFrame, Frame, FrameKind, PythonRef, Stack, UnwindEnd};
pub use task::{ProfileTask, Service, TaskId, TaskLimits, TaskSlot};
pub use totals::Totals;
pub use traffic::{EndpointFigures, SeenRequest, Unseen, Watched};
