//! The coverage report: what a task saw, kept and lost, and why. It answers "no data" questions.

use std::collections::BTreeMap;

/// A named count of one task. Each has a text for people and a name for the JSON output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// Request heads read by processes of the task's service.
    RequestsSeen,
    /// Requests whose endpoint matched.
    RequestsMatched,
    /// Heads that passed the kernel prefilter but are another endpoint.
    RequestsOtherEndpoint,
    /// Matched requests that ended before the minimum duration.
    RequestsBelowThreshold,
    /// Matched requests beyond the maximum sampling count.
    RequestsOverLimit,
    /// Matched requests that another live task of the process profiles.
    RequestsOfOtherTask,
    /// Matched requests not sampled because too many were open at once.
    RequestsOverOpenLimit,
    /// Matched requests that were profiled and reported.
    RequestsProfiled,
    /// Matched requests that were still open when the task ended.
    RequestsUnfinished,
    /// Matched requests that ended without a response line.
    RequestsUnanswered,
    /// Matched requests answered by another thread than the one that read them.
    RequestsHandedOff,
    /// Matched requests whose thread served another request at the same time.
    RequestsInterleaved,
    /// Matched requests that ended with no usable stack.
    RequestsWithoutStack,
    /// Request heads that could not be parsed.
    HeadsMalformed,
    /// Heads read before the previous request of the connection was answered.
    PipelinedHeads,
    /// Heads on descriptors that are not server sockets.
    NotServerSocket,
    /// Heads read after the response direction was shut down.
    HeadsAfterShutdown,
    /// Heads whose bytes could not be read.
    HeadsUnreadable,
    /// Split request lines that could not be joined.
    PartialHeadsDropped,
    /// Request events lost to a full ring buffer.
    RequestEventsLost,
    /// Ring buffer records that could not be decoded.
    BadRecords,
    /// Dump periods inside profiled requests.
    PeriodsExpected,
    /// Dump periods that have a snapshot.
    PeriodsSampled,
    /// On-CPU samples taken.
    SamplesOnCpu,
    /// Off-CPU samples taken.
    SamplesOffCpu,
    /// Off-CPU samples of the block that followed the one at the tick, which was over before it could be read.
    SamplesLate,
    /// Dump periods in which a blocked thread had not run since the one before.
    SamplesUnchanged,
    /// On-CPU samples lost to a full ring buffer.
    SamplesRingFull,
    /// Off-CPU samples of threads that were blocked at the tick and ran again before they were read.
    SamplesRaced,
    /// Samples without readable user stack.
    SamplesNoStack,
    /// Samples of blocked threads without their kernel frames: the thread blocks too often.
    KernelStacksSkipped,
    /// Samples lost because what waits for unwinding was too many or too large.
    SamplesQueueFull,
    /// Samples of requests that were already gone.
    SamplesOrphaned,
    /// Ticks that came more than half a period late.
    TicksLate,
    /// Stacks that end before their root: bytes ran out.
    StacksCut,
    /// Stacks that end before their root: no unwind information.
    StacksNoUnwindInfo,
    /// Stacks that end before their root: unreadable memory or register.
    StacksUnreadable,
    /// Stacks over the frame limit; the middle is left out.
    StacksTooDeep,
    /// Python and native frames that did not fit each other; Python was put on top.
    PythonMergeMismatch,
    /// Python chains that could not be read to their end.
    PythonPartial,
    /// Python frames whose code object could not be read.
    PythonNameUnreadable,
    /// Native frames without a symbol.
    FramesUnknown,
    /// Snapshots handed to the reporter.
    SnapshotsTaken,
    /// Snapshots accepted by the OAP.
    SnapshotsSent,
    /// Snapshots lost because the OAP could not be reached in time.
    SnapshotsLost,
    /// Requests bound to the segment that their own outbound calls name.
    SegmentsBoundByCall,
    /// Requests bound to a segment that the OAP was asked for.
    SegmentsBoundByQuery,
    /// Requests of a process with an agent that got a segment of ours.
    SegmentsSynthetic,
    /// Queries for the agents' segments that failed.
    SegmentQueriesFailed,
    /// Tags refused because the map was full.
    TagsFull,
    /// Other refused map updates.
    MapUpdatesFailed,
    /// Processes of the service that cannot be profiled yet (for example Go).
    ProcessesUnsupported,
    /// Processes of the service whose own agent runs the task.
    ProcessesLeftToAgent,
    /// Steps of the overhead guard while the task was live.
    GuardSteps,
}

/// Name and text of every counter, in report order.
const TABLE: &[(Counter, &str, &str)] = &[
    (
        Counter::RequestsSeen,
        "requests_seen",
        "request heads read by processes of the task's service",
    ),
    (
        Counter::RequestsMatched,
        "requests_matched",
        "requests whose endpoint matched",
    ),
    (
        Counter::RequestsOtherEndpoint,
        "requests_other_endpoint",
        "heads that passed the kernel prefilter but are another endpoint",
    ),
    (
        Counter::RequestsBelowThreshold,
        "requests_below_threshold",
        "matched requests that ended before the minimum duration",
    ),
    (
        Counter::RequestsOverLimit,
        "requests_over_limit",
        "matched requests beyond the maximum sampling count",
    ),
    (
        Counter::RequestsOfOtherTask,
        "requests_of_other_task",
        "matched requests that another live task of the process profiles",
    ),
    (
        Counter::RequestsOverOpenLimit,
        "requests_over_open_limit",
        "matched requests not sampled because too many were open at once",
    ),
    (
        Counter::RequestsProfiled,
        "requests_profiled",
        "matched requests that were profiled and reported",
    ),
    (
        Counter::RequestsUnfinished,
        "requests_unfinished",
        "matched requests that were still open when the task ended",
    ),
    (
        Counter::RequestsUnanswered,
        "requests_unanswered",
        "matched requests that ended without a response line",
    ),
    (
        Counter::RequestsHandedOff,
        "requests_handed_off",
        "matched requests answered by another thread than the one that read them",
    ),
    (
        Counter::RequestsInterleaved,
        "requests_interleaved",
        "matched requests whose thread served another request at the same time",
    ),
    (
        Counter::RequestsWithoutStack,
        "requests_without_stack",
        "matched requests that ended with no usable stack",
    ),
    (
        Counter::HeadsMalformed,
        "heads_malformed",
        "request heads that could not be parsed",
    ),
    (
        Counter::PipelinedHeads,
        "pipelined_heads",
        "heads read before the previous request of the connection was answered",
    ),
    (
        Counter::NotServerSocket,
        "not_server_socket",
        "heads on descriptors that are not server sockets",
    ),
    (
        Counter::HeadsAfterShutdown,
        "heads_after_shutdown",
        "heads read after the response direction was shut down",
    ),
    (
        Counter::HeadsUnreadable,
        "heads_unreadable",
        "heads whose bytes could not be read",
    ),
    (
        Counter::PartialHeadsDropped,
        "partial_heads_dropped",
        "split request lines that could not be joined",
    ),
    (
        Counter::RequestEventsLost,
        "request_events_lost",
        "request events lost to a full ring buffer",
    ),
    (
        Counter::BadRecords,
        "bad_records",
        "ring buffer records that could not be decoded",
    ),
    (
        Counter::PeriodsExpected,
        "periods_expected",
        "dump periods inside profiled requests",
    ),
    (
        Counter::PeriodsSampled,
        "periods_sampled",
        "dump periods that have a snapshot",
    ),
    (
        Counter::SamplesOnCpu,
        "samples_on_cpu",
        "on-CPU samples taken",
    ),
    (
        Counter::SamplesOffCpu,
        "samples_off_cpu",
        "off-CPU samples taken",
    ),
    (
        Counter::SamplesLate,
        "samples_late",
        "off-CPU samples of the block that followed the one at the tick, which was over before it could be read",
    ),
    (
        Counter::SamplesUnchanged,
        "samples_unchanged",
        "dump periods in which a blocked thread had not run since the one before",
    ),
    (
        Counter::SamplesRingFull,
        "samples_ring_full",
        "on-CPU samples lost to a full ring buffer",
    ),
    (
        Counter::SamplesRaced,
        "samples_raced",
        "samples of threads that were blocked at the tick and ran again before they were read",
    ),
    (
        Counter::SamplesNoStack,
        "samples_no_stack",
        "samples without readable user stack",
    ),
    (
        Counter::KernelStacksSkipped,
        "kernel_stacks_skipped",
        "samples of blocked threads without their kernel frames: the thread blocks too often",
    ),
    (
        Counter::SamplesQueueFull,
        "samples_queue_full",
        "samples lost because what waits for unwinding was too many or too large",
    ),
    (
        Counter::SamplesOrphaned,
        "samples_orphaned",
        "samples of requests that were already gone",
    ),
    (
        Counter::TicksLate,
        "ticks_late",
        "ticks that came more than half a period late",
    ),
    (
        Counter::StacksCut,
        "stacks_cut",
        "stacks that end before their root: bytes ran out",
    ),
    (
        Counter::StacksNoUnwindInfo,
        "stacks_no_unwind_info",
        "stacks that end before their root: no unwind information",
    ),
    (
        Counter::StacksUnreadable,
        "stacks_unreadable",
        "stacks that end before their root: unreadable memory or register",
    ),
    (
        Counter::StacksTooDeep,
        "stacks_too_deep",
        "stacks over the frame limit; the middle is left out",
    ),
    (
        Counter::PythonMergeMismatch,
        "python_merge_mismatch",
        "python and native frames that did not fit each other; Python was put on top",
    ),
    (
        Counter::PythonPartial,
        "python_partial",
        "python chains that could not be read to their end",
    ),
    (
        Counter::PythonNameUnreadable,
        "python_name_unreadable",
        "python frames whose code object could not be read",
    ),
    (
        Counter::FramesUnknown,
        "frames_unknown",
        "native frames without a symbol",
    ),
    (
        Counter::SnapshotsTaken,
        "snapshots_taken",
        "snapshots handed to the reporter",
    ),
    (
        Counter::SnapshotsSent,
        "snapshots_sent",
        "snapshots accepted by the OAP",
    ),
    (
        Counter::SnapshotsLost,
        "snapshots_lost",
        "snapshots lost because the OAP could not be reached in time",
    ),
    (
        Counter::SegmentsBoundByCall,
        "segments_bound_by_call",
        "requests shown in their agent's segment, which their own outbound calls name",
    ),
    (
        Counter::SegmentsBoundByQuery,
        "segments_bound_by_query",
        "requests shown in their agent's segment, which the OAP was asked for",
    ),
    (
        Counter::SegmentsSynthetic,
        "segments_synthetic",
        "requests of a process with an agent that are shown in a segment of profilerd instead",
    ),
    (
        Counter::SegmentQueriesFailed,
        "segment_queries_failed",
        "failed queries for segments of agents",
    ),
    (
        Counter::TagsFull,
        "tags_full",
        "tags refused because the map was full",
    ),
    (
        Counter::MapUpdatesFailed,
        "map_updates_failed",
        "other refused map updates",
    ),
    (
        Counter::ProcessesUnsupported,
        "processes_unsupported",
        "processes of the service that cannot be profiled yet (for example Go)",
    ),
    (
        Counter::ProcessesLeftToAgent,
        "processes_left_to_agent",
        "processes of the service that are left to the profiler of their own agent",
    ),
    (
        Counter::GuardSteps,
        "guard_steps",
        "steps of the overhead guard, which change the dump period or end the task",
    ),
];

impl Counter {
    /// All counters, in report order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|&(counter, _, _)| counter)
    }

    /// Name in JSON and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// Text for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        TABLE[self as usize].2
    }

    /// The counter with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE
            .iter()
            .find(|&&(_, n, _)| n == name)
            .map(|&(counter, _, _)| counter)
    }
}

const _: () = {
    let mut index = 0;
    while index < TABLE.len() {
        assert!(TABLE[index].0 as usize == index);
        index += 1;
    }
};

/// Counts of one task (or of one request, to be merged into its task's).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<Counter, u64>,
    /// Sentences about the whole task, for example "pid 4711 is a Go process".
    pub notes: Vec<String>,
}

impl Coverage {
    /// Adds one.
    pub fn bump(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `n`.
    pub fn add(&mut self, counter: Counter, n: u64) {
        if n > 0 {
            *self.counts.entry(counter).or_default() += n;
        }
    }

    /// Sets a count that is kept elsewhere (the kernel's).
    pub fn set(&mut self, counter: Counter, n: u64) {
        if n > 0 {
            self.counts.insert(counter, n);
        } else {
            self.counts.remove(&counter);
        }
    }

    /// The count, 0 if it never moved.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts.get(&counter).copied().unwrap_or(0)
    }

    /// Adds a note once.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// The form printed and sent: every counter by name, zero ones included.
    #[must_use]
    pub fn to_report(&self) -> super::CoverageReport {
        super::CoverageReport {
            counters: Counter::all()
                .map(|c| (c.name().to_owned(), self.get(c)))
                .collect(),
            notes: self.notes.clone(),
        }
    }

    /// Adds all counts and notes of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (&counter, &n) in &other.counts {
            self.add(counter, n);
        }
        for note in &other.notes {
            self.note(note.clone());
        }
    }
}
