//! What the BPF programs count, per task slot, in the `COUNTERS` per-CPU array.
//!
//! Index of a counter: `slot * KERNEL_COUNTERS + counter as u32`.

/// A count kept by the BPF programs. The daemon adds the per-CPU values into the task's coverage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum KernelCounter {
    /// Request heads read from server sockets by processes of the task.
    RequestsSeen = 0,
    /// Heads that passed the literal prefilter of the task's rule; the daemon matches exactly.
    PrefilterPassed = 1,
    /// Request events lost because the `REQUESTS` ring was full.
    RequestRingFull = 2,
    /// On-CPU samples lost because the `SAMPLES` ring was full.
    SampleRingFull = 3,
    /// On-CPU samples written to `SAMPLES`.
    SamplesTaken = 4,
    /// Requests not tagged because `THREAD_TAGS` was full.
    TagsFull = 5,
    /// A second head on a connection whose request was still unanswered (pipelining).
    PipelinedHeads = 6,
    /// Heads on a descriptor that is not a server socket: a client connection; seen by `sys_exit`, also a
    /// file or a pipe.
    NotServerSocket = 7,
    /// User memory that could not be read after a system call had filled it.
    HeadUnreadable = 8,
    /// Stack copies that got no byte (page not resident, or no user stack).
    StackUnreadable = 9,
    /// A head arriving after the response was shut down; it is never served.
    HeadAfterShutdown = 10,
    /// Head bytes held for joining that had no room in `PARTIAL_HEADS` or grew past its limit.
    PartialHeadDropped = 11,
    /// A map update refused by the kernel for another reason than those above.
    MapUpdateFailed = 12,
    /// Heads that passed the prefilter while the rule was [`crate::rule_flag::COUNT_ONLY`].
    CountedOnly = 13,
    /// Heads that passed the prefilter but were given to a task in a lower slot.
    OtherTask = 14,
    /// Calls on sockets that were skipped: a thread had been preempted in the middle of another socket hook of
    /// the same CPU (Linux 7.0), or was taking away the record of the descriptor's previous connection.
    HookBusy = 15,
}

/// Number of [`KernelCounter`]s, the stride between two task slots.
pub const KERNEL_COUNTERS: u32 = 16;

impl KernelCounter {
    /// All counters, in index order.
    pub const ALL: [Self; KERNEL_COUNTERS as usize] = [
        Self::RequestsSeen,
        Self::PrefilterPassed,
        Self::RequestRingFull,
        Self::SampleRingFull,
        Self::SamplesTaken,
        Self::TagsFull,
        Self::PipelinedHeads,
        Self::NotServerSocket,
        Self::HeadUnreadable,
        Self::StackUnreadable,
        Self::HeadAfterShutdown,
        Self::PartialHeadDropped,
        Self::MapUpdateFailed,
        Self::CountedOnly,
        Self::OtherTask,
        Self::HookBusy,
    ];
}

const _: () = {
    let mut index = 0;
    while index < KernelCounter::ALL.len() {
        assert!(KernelCounter::ALL[index] as usize == index);
        index += 1;
    }
};
