//! The named counts of a task, one line each: variant, name, subject, whether it is a loss, text.
//!
//! A line here is all that a new counter needs in code: the coverage report, the JSON output, the metrics and
//! `profilerd status` follow. Its line in docs/metrics.md is checked by a test.

/// The heading a counter stands under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What became of requests.
    Requests,
    /// Heads, connections and the events about them.
    Connections,
    /// Observations of threads.
    Samples,
    /// Unwinding and naming.
    Stacks,
    /// What was sent, and below which segment.
    Delivery,
    /// What was left out because something was full, unsupported or too dear.
    Limits,
}

impl Subject {
    /// Text for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Connections => "connections and events",
            Self::Samples => "samples",
            Self::Stacks => "stacks",
            Self::Delivery => "delivery",
            Self::Limits => "limits",
        }
    }
}

struct Row {
    counter: Counter,
    name: &'static str,
    subject: Subject,
    is_loss: bool,
    text: &'static str,
}

macro_rules! counters {
    ($($variant:ident, $name:literal, $subject:ident, loss: $is_loss:literal, $text:literal;)*) => {
        /// A named count of one task. Each has a text for people and a name for JSON and metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Counter {
            $(#[doc = $text] $variant,)*
        }

        /// One row for each counter, at its discriminant, in report order.
        const TABLE: &[Row] = &[$(Row {
            counter: Counter::$variant,
            name: $name,
            subject: Subject::$subject,
            is_loss: $is_loss,
            text: $text,
        },)*];
    };
}

// Counters of one subject stand together.
counters! {
    RequestsSeen, "requests_seen", Requests, loss: false, "request heads read by processes of the task's service";
    RequestsMatched, "requests_matched", Requests, loss: false, "requests whose endpoint matched";
    RequestsOtherEndpoint, "requests_other_endpoint", Requests, loss: false, "request heads that passed the prefilter in the kernel but are for another endpoint";
    RequestsBelowThreshold, "requests_below_threshold", Requests, loss: false, "matched requests that ended before the minimum duration";
    RequestsOverLimit, "requests_over_limit", Requests, loss: false, "matched requests beyond the maximum sampling count";
    RequestsOfOtherTask, "requests_of_other_task", Requests, loss: false, "matched requests that another live task of the process profiles";
    RequestsOverOpenLimit, "requests_over_open_limit", Requests, loss: true, "matched requests not sampled because too many were open at once";
    RequestsProfiled, "requests_profiled", Requests, loss: false, "matched requests that were profiled and reported";
    RequestsUnfinished, "requests_unfinished", Requests, loss: false, "matched requests that were still open when the task ended; they are shown up to that moment";
    RequestsUnanswered, "requests_unanswered", Requests, loss: true, "matched requests that ended without a response";
    RequestsHandedOff, "requests_handed_off", Requests, loss: true, "matched requests answered by a thread other than the one that read them";
    RequestsInterleaved, "requests_interleaved", Requests, loss: true, "matched requests whose thread served another request at the same time";
    RequestsOnLoop, "requests_on_loop", Requests, loss: true, "matched requests served by an event loop: a sample of its thread may belong to another request";
    RequestsTooShort, "requests_too_short", Requests, loss: true, "matched requests that ended before a sample was due";
    RequestsByOtherProgram, "requests_by_other_program", Requests, loss: true, "matched requests answered by a child process or another program (CGI)";
    RequestsUnreadable, "requests_unreadable", Requests, loss: true, "matched requests of processes that did not let themselves be read";
    RequestsDenied, "requests_denied", Requests, loss: true, "matched requests of processes that are not to be profiled any more";
    RequestsProcessGone, "requests_process_gone", Requests, loss: true, "matched requests whose process had ended before their stacks could be read";
    RequestsSamplesLost, "requests_samples_lost", Requests, loss: true, "matched requests whose samples were all lost";
    RequestsWithoutStack, "requests_without_stack", Requests, loss: true, "matched requests that ended with no readable stack";
    RequestsUnknownProcess, "requests_unknown_process", Requests, loss: true, "requests of processes that profilerd does not know";
    HeadsMalformed, "heads_malformed", Connections, loss: true, "request heads that could not be parsed";
    PipelinedHeads, "pipelined_heads", Connections, loss: true, "pipelined heads: read before the previous request of the connection was answered";
    NotServerSocket, "not_server_socket", Connections, loss: false, "heads on descriptors that are not server sockets";
    HeadsAfterShutdown, "heads_after_shutdown", Connections, loss: false, "heads read after the response direction was shut down";
    HeadsUnreadable, "heads_unreadable", Connections, loss: true, "heads whose bytes could not be read";
    PartialHeadsDropped, "partial_heads_dropped", Connections, loss: true, "split request lines that could not be joined";
    RequestEventsLost, "request_events_lost", Connections, loss: true, "request events lost to a full ring buffer";
    HooksLeftOut, "hooks_left_out", Connections, loss: true, "runs of a hook skipped because another run was active on that CPU, for any process of the host, or on that connection: request events may be missing";
    BadRecords, "bad_records", Connections, loss: true, "ring buffer records that could not be decoded";
    PeriodsExpected, "periods_expected", Samples, loss: false, "dump periods inside profiled requests";
    PeriodsSampled, "periods_sampled", Samples, loss: false, "dump periods that have a snapshot";
    SamplesOnCpu, "samples_on_cpu", Samples, loss: false, "on-CPU samples taken";
    SamplesOffCpu, "samples_off_cpu", Samples, loss: false, "off-CPU samples taken";
    SamplesLate, "samples_late", Samples, loss: false, "samples taken one block too late: the thread had woken and blocked again";
    SamplesUnchanged, "samples_unchanged", Samples, loss: false, "dump periods in which a blocked thread had not run since the previous one";
    SamplesRingFull, "samples_ring_full", Samples, loss: true, "on-CPU samples lost to a full ring buffer";
    SamplesRaced, "samples_raced", Samples, loss: true, "samples of threads that were blocked at the tick and ran again before they were read";
    SamplesNoStack, "samples_no_stack", Samples, loss: true, "samples without a readable user stack";
    KernelStacksSkipped, "kernel_stacks_skipped", Samples, loss: true, "samples of blocked threads without their kernel frames: the thread blocks too often";
    SamplesQueueFull, "samples_queue_full", Samples, loss: true, "samples lost because the queue for unwinding was full, by number or by size";
    SamplesThinned, "samples_thinned", Samples, loss: true, "samples left out at even intervals, because a request was long or all samples took too much memory; durations stay correct";
    SamplesHeldUp, "samples_held_up", Samples, loss: true, "samples not taken because reading another process did not end";
    SamplesOrphaned, "samples_orphaned", Samples, loss: true, "samples of processes that had ended before their stacks could be read";
    SamplesTooDear, "samples_too_dear", Samples, loss: true, "samples of processes whose stacks take too much time to unwind and name";
    TicksLate, "ticks_late", Samples, loss: true, "ticks that came more than half a period late";
    StacksCut, "stacks_cut", Stacks, loss: true, "stacks that end before their root: the copied bytes of the stack ran out";
    StacksNoUnwindInfo, "stacks_no_unwind_info", Stacks, loss: true, "stacks that end before their root: no unwind information";
    StacksUnreadable, "stacks_unreadable", Stacks, loss: true, "stacks that end before their root: memory or a register could not be read";
    StacksTooDeep, "stacks_too_deep", Stacks, loss: true, "stacks over the frame limit; the middle is left out";
    PythonMergeMismatch, "python_merge_mismatch", Stacks, loss: true, "stacks whose Python and native frames did not fit each other; the Python frames were put on top";
    PythonPartial, "python_partial", Stacks, loss: true, "Python stacks that could not be read to their end";
    PythonNoThread, "python_no_thread", Stacks, loss: false, "samples of threads without Python frames: the interpreter does not know them";
    PythonNameUnreadable, "python_name_unreadable", Stacks, loss: true, "Python frames whose code object could not be read";
    PythonCodeGone, "python_code_gone", Stacks, loss: true, "Python frames without a name: their code object was freed soon after the sample";
    FramesUnknown, "frames_unknown", Stacks, loss: true, "native frames without a symbol";
    SnapshotsTaken, "snapshots_taken", Delivery, loss: false, "snapshots handed to the reporter";
    SnapshotsSent, "snapshots_sent", Delivery, loss: false, "snapshots accepted by the OAP";
    SnapshotsLost, "snapshots_lost", Delivery, loss: true, "snapshots not delivered to the OAP, or without its confirmation";
    RequestsIncomplete, "requests_incomplete", Delivery, loss: true, "profiled requests not delivered to the OAP as a whole, or without its confirmation";
    SegmentsBoundByCall, "segments_bound_by_call", Delivery, loss: false, "requests shown in their agent's segment, found by the headers of their own outbound calls";
    SegmentsBoundByQuery, "segments_bound_by_query", Delivery, loss: false, "requests shown in their agent's segment, found by a query to the OAP";
    SegmentsSynthetic, "segments_synthetic", Delivery, loss: true, "requests of a process with an agent whose segment was not found: they are shown in a segment of profilerd";
    SegmentQueriesFailed, "segment_queries_failed", Delivery, loss: true, "failed queries to the OAP for segments of agents";
    TagsFull, "tags_full", Limits, loss: true, "matched requests not sampled because the kernel's map of thread tags was full";
    MapUpdatesFailed, "map_updates_failed", Limits, loss: true, "other updates of BPF maps that the kernel refused";
    ProcessesUnreadable, "processes_unreadable", Limits, loss: true, "processes left out because a page or a file of them did not arrive";
    ProcessesUnsupported, "processes_unsupported", Limits, loss: true, "processes of the service that cannot be profiled yet (for example Go)";
    ProcessesDenied, "processes_denied", Limits, loss: true, "processes left out while the task ran, because their pod or the configuration refuses from then on";
    ProcessesLeftToAgent, "processes_left_to_agent", Limits, loss: true, "processes of the service that are left to the profiler of their own SkyWalking agent";
    GuardSteps, "guard_steps", Limits, loss: true, "steps of the overhead guard: each changes the dump period or ends the task";
    TasksNotRun, "tasks_not_run", Limits, loss: true, "instances that refused the task: it did not run there";
}

impl Counter {
    /// All counters, in report order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.counter)
    }

    /// Name in JSON and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The heading it stands under.
    #[must_use]
    pub fn subject(self) -> Subject {
        self.row().subject
    }

    /// Whether a count means that something that was asked for is missing or uncertain.
    #[must_use]
    pub fn is_loss(self) -> bool {
        self.row().is_loss
    }

    /// Text for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.row().text
    }

    /// The counter with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|counter| counter.name() == name)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Check that names are told apart, find their counter, and are what Prometheus and JSON take.
    #[test]
    fn names_are_told_apart() {
        let names: HashSet<&str> = Counter::all().map(Counter::name).collect();
        assert_eq!(names.len(), Counter::all().count());
        for counter in Counter::all() {
            let name = counter.name();
            assert_eq!(Counter::from_name(name), Some(counter));
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(is_plain), "{name}");
        }
        assert_eq!(Counter::from_name("from_the_future"), None);
    }

    /// Check that counters of one subject stand together: the report names each subject once.
    #[test]
    fn subjects_stand_together() {
        let mut subjects: Vec<Subject> = Counter::all().map(Counter::subject).collect();
        subjects.dedup();
        let texts: HashSet<&str> = subjects.iter().map(|subject| subject.text()).collect();
        assert_eq!(texts.len(), subjects.len(), "{subjects:?}");
    }
}
