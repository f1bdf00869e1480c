//! The kernel side's counts in the terms of the coverage report.

use profiler_common::KernelCounter;

use crate::model::{Counter, Coverage};

/// Adds the counts of a task's slot.
pub(super) fn add_kernel_counts(coverage: &mut Coverage, counts: &[(KernelCounter, u64)]) {
    for &(counter, n) in counts {
        let to = match counter {
            KernelCounter::RequestsSeen => Counter::RequestsSeen,
            KernelCounter::RequestRingFull => Counter::RequestEventsLost,
            KernelCounter::HookBusy => Counter::HooksLeftOut,
            KernelCounter::SampleRingFull => Counter::SamplesRingFull,
            KernelCounter::SamplesTaken => Counter::SamplesOnCpu,
            KernelCounter::TagsFull => Counter::TagsFull,
            KernelCounter::PipelinedHeads => Counter::PipelinedHeads,
            KernelCounter::NotServerSocket => Counter::NotServerSocket,
            KernelCounter::HeadUnreadable => Counter::HeadsUnreadable,
            KernelCounter::StackUnreadable => Counter::SamplesNoStack,
            KernelCounter::HeadAfterShutdown => Counter::HeadsAfterShutdown,
            KernelCounter::PartialHeadDropped => Counter::PartialHeadsDropped,
            KernelCounter::MapUpdateFailed => Counter::MapUpdatesFailed,
            KernelCounter::OtherTask => Counter::RequestsOfOtherTask,
            KernelCounter::CountedOnly => {
                // The task has its requests: heads that pass the prefilter from now on are not compared.
                coverage.add(Counter::RequestsMatched, n);
                Counter::RequestsOverLimit
            }
            // Every one of them came as an event and is counted by what became of it.
            KernelCounter::PrefilterPassed => continue,
        };
        coverage.add(to, n);
    }
}
