//! The door to the kernel: loads the BPF object, attaches it while a task is live, and turns its
//! maps and rings into the daemon's nouns. Nothing outside this module knows aya.
//!
//! In:  [`EndpointRule`]s and processes to watch; ring buffer bytes from `profiler-ebpf`
//! Out: [`RequestEvent`]s, [`RawSample`]s of running threads, [`ThreadState`]s of blocked ones
//! Lost: counted by the kernel side in [`KernelCounter`]s; undecodable records go to the caller as
//! [`BadRecord`]s
//!
//! # Life
//!
//! ```text
//! load ----> loaded, nothing attached, costs no time
//! attach --> sampling grid begins; events and samples arrive
//! detach --> connections, tags and states are forgotten; rules and targets stay
//! drop ----> everything is gone
//! ```
//!
//! Nothing is pinned and links are held by descriptor only, so a killed daemon leaves nothing.

mod bad_record;
mod btf;
mod decode_request;
mod decode_sample;
mod error;
mod maps;
mod object;
mod offsets;
mod probe;
mod regs;
mod scheduler;
mod stats;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya_log::EbpfLogger;
use nix::time::{ClockId, clock_gettime};
use profiler_common::{
    Conn, ConnKey, EndReason, KernelCounter, LITERAL_MAX_BYTES, MAX_TASKS, PythonProcess, Rule,
    Target, ThreadState, ThreadTag, conn_flag, rule_flag,
};
use tracing_log::log::Log;

pub use bad_record::BadRecord;
pub use btf::{BtfError, KernelTypes};
pub use decode_request::{RequestRecord, decode_request};
pub use decode_sample::decode_sample;
pub use error::{KernelError, MINIMUM_KERNEL};
pub use object::{BTF_PATH, LoadOptions};
pub use probe::{Check, probe};
pub use regs::{FP, IP, SP, instruction_pointer, stack_pointer};
pub use stats::ProgramStats;

use crate::model::{EndpointRule, Pid, RawSample, RequestEvent, RequestId, TaskSlot, Tid};
use maps::Maps;
use object::{HOOKS, Link, SAMPLE_PROGRAM};

/// Most records one call of a drain function hands out, so that a flood cannot hold its caller.
const DRAIN_MAX: usize = 4096;

/// The loaded BPF object.
pub struct Kernel {
    /// In the order of attachment; dropped in reverse.
    links: Vec<Link>,
    maps: Maps,
    requests: RingBuf<MapData>,
    samples: RingBuf<MapData>,
    log: Option<EbpfLogger<&'static dyn Log>>,
    statistics: Option<OwnedFd>,
    /// Where kernel stacks of switched-out threads begin.
    schedule: Option<Range<u64>>,
    ebpf: Ebpf,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("attached", &self.is_attached())
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads programs and maps; attaches nothing.
    ///
    /// # Errors
    ///
    /// The kernel or the process's privileges do not allow it; the text says what to do.
    pub fn load(options: &LoadOptions) -> Result<Self, KernelError> {
        // Reads all kernel symbols, which takes as long as the verifier takes meanwhile.
        let schedule = std::thread::spawn(scheduler::schedule_range);
        let mut ebpf = object::load(options)?;
        let log = if options.log {
            EbpfLogger::init(&mut ebpf)
                .inspect_err(|error| tracing::warn!(%error, "BPF log records are not forwarded"))
                .ok()
        } else {
            None
        };
        Ok(Self {
            links: Vec::new(),
            maps: Maps::take(&mut ebpf)?,
            requests: maps::take_ring(&mut ebpf, "REQUESTS")?,
            samples: maps::take_ring(&mut ebpf, "SAMPLES")?,
            log,
            statistics: None,
            schedule: schedule.join().unwrap_or_default(),
            ebpf,
        })
    }

    /// Attaches every program and starts one clock event per CPU with the given period. What is
    /// attached already is detached first.
    ///
    /// Returns the `CLOCK_MONOTONIC` time at which the sampling grid begins, in nanoseconds.
    ///
    /// # Errors
    ///
    /// A hook is refused; then nothing stays attached.
    pub fn attach(&mut self, period: Duration) -> Result<u64, KernelError> {
        self.detach()?;
        match self.try_attach(period) {
            Ok(start_ktime_ns) => Ok(start_ktime_ns),
            Err(error) => {
                self.drop_links();
                Err(error)
            }
        }
    }

    fn try_attach(&mut self, period: Duration) -> Result<u64, KernelError> {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        if period_ns == 0 {
            return Err(KernelError::Argument(
                "the sampling period must be longer than 0".to_owned(),
            ));
        }
        let (opening, others) = HOOKS.split_last().expect("HOOKS is not empty");
        for hook in others {
            let link = object::attach_hook(&mut self.ebpf, hook)?;
            self.links.push(link);
        }
        let cpus = aya::util::online_cpus()
            .map_err(|(path, source)| KernelError::Cpus { path, source })?;
        let program: &mut PerfEvent = object::program(&mut self.ebpf, SAMPLE_PROGRAM)?;
        let start_ktime_ns = monotonic_ns();
        for cpu in cpus {
            let link = program
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(period_ns),
                    false,
                )
                .and_then(|id| program.take_link(id))
                .map_err(|source| KernelError::PerfEvents { source })?;
            self.links.push(Link::PerfEvent(link));
        }
        // Last: from here on threads get tags, and everything that clears them is in place.
        let link = object::attach_hook(&mut self.ebpf, opening)?;
        self.links.push(link);
        Ok(start_ktime_ns)
    }

    /// Detaches everything and forgets connections, tags and thread states.
    ///
    /// # Errors
    ///
    /// A map cannot be cleared.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        if !self.is_attached() {
            return Ok(());
        }
        self.drop_links();
        self.maps.clear_requests()
    }

    fn drop_links(&mut self) {
        while self.links.pop().is_some() {}
    }

    /// Whether the programs run.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Makes a slot's rule live, counting from zero.
    ///
    /// # Errors
    ///
    /// The slot does not exist, the literal is too long, or the map refuses.
    pub fn set_rule(&mut self, slot: TaskSlot, rule: &EndpointRule) -> Result<(), KernelError> {
        check_slot(slot)?;
        let len = rule.literal.len();
        if len > LITERAL_MAX_BYTES {
            return Err(KernelError::Argument(format!(
                "a rule's literal has {len} bytes; at most {LITERAL_MAX_BYTES} fit"
            )));
        }
        let mut literal = [0; LITERAL_MAX_BYTES];
        literal[..len].copy_from_slice(&rule.literal);
        let exact = if rule.exact { rule_flag::EXACT } else { 0 };
        self.clear_rule(slot)?;
        self.maps.set_rule(
            slot.0,
            &Rule {
                flags: rule_flag::LIVE | exact,
                method_mask: rule.method_mask,
                literal_len: len as u32,
                pad: 0,
                literal,
            },
        )
    }

    /// Switches a slot between tagging and only counting its requests.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn set_count_only(&mut self, slot: TaskSlot, count_only: bool) -> Result<(), KernelError> {
        check_slot(slot)?;
        let mut rule = self.maps.rule(slot.0)?;
        if count_only {
            rule.flags |= rule_flag::COUNT_ONLY;
        } else {
            rule.flags &= !rule_flag::COUNT_ONLY;
        }
        self.maps.set_rule(slot.0, &rule)
    }

    /// Empties a slot: no request passes its rule any more, no process belongs to it, its counters
    /// are zero.
    ///
    /// # Errors
    ///
    /// The slot does not exist or a map refuses.
    pub fn clear_rule(&mut self, slot: TaskSlot) -> Result<(), KernelError> {
        check_slot(slot)?;
        self.maps.set_rule(slot.0, &Rule::EMPTY)?;
        self.maps.reset_counters(slot.0)
    }

    /// Adds a process to a slot's task.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn add_target(&mut self, pid: Pid, slot: TaskSlot) -> Result<(), KernelError> {
        check_slot(slot)?;
        let target = self.maps.targets.get(&pid.0)?.unwrap_or_default();
        let target = Target {
            task_mask: target.task_mask | 1 << slot.0,
            ..target
        };
        self.maps.targets.insert(pid.0, target)
    }

    /// Takes a process out of a slot's task; the last slot takes it out of the target set.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn remove_target(&mut self, pid: Pid, slot: TaskSlot) -> Result<(), KernelError> {
        check_slot(slot)?;
        let Some(target) = self.maps.targets.get(&pid.0)? else {
            return Ok(());
        };
        let task_mask = target.task_mask & !(1 << slot.0);
        if task_mask == 0 {
            self.maps.targets.remove(&pid.0)
        } else {
            let target = Target {
                task_mask,
                ..target
            };
            self.maps.targets.insert(pid.0, target)
        }
    }

    /// Processes in the target set, forked children included.
    #[must_use]
    pub fn targets(&self) -> Vec<(Pid, Target)> {
        let entries = self.maps.targets.entries();
        entries
            .into_iter()
            .map(|(tgid, target)| (Pid(tgid), target))
            .collect()
    }

    /// Tells the sampler how to walk a CPython process, or that it is none.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn set_python(
        &mut self,
        pid: Pid,
        process: Option<&PythonProcess>,
    ) -> Result<(), KernelError> {
        match process {
            Some(process) => self.maps.python.insert(pid.0, process),
            None => self.maps.python.remove(&pid.0),
        }
    }

    /// Removes a thread's tag if it is still that request's. The next write of the response by the
    /// thread sets it again (a stream that was silent for a while).
    ///
    /// # Errors
    ///
    /// A map refuses.
    pub fn untag(&mut self, tid: Tid, request: RequestId) -> Result<(), KernelError> {
        if self
            .thread_tag(tid)?
            .is_some_and(|tag| tag.request_id == request.0)
        {
            self.maps.tags.remove(&tid.0)?;
            self.maps.states.remove(&tid.0)?;
        }
        Ok(())
    }

    /// Stops tracking a request: its thread loses the tag now and for good, and no further event
    /// of it is sent.
    ///
    /// # Errors
    ///
    /// A map refuses.
    pub fn cancel(&mut self, pid: Pid, fd: i32, request: RequestId) -> Result<(), KernelError> {
        let Some(conn) = self.conn(pid, fd)? else {
            return Ok(());
        };
        if conn.request_id != request.0 {
            return Ok(());
        }
        // The programs change a connection at any time, so it is theirs alone to write: they look at
        // this list when they touch the request next.
        self.maps.cancels.insert(request.0, 1)?;
        self.untag(Tid(conn.reader_tid), request)
    }

    /// Last registers of a tagged thread. A reader compares `seq` before and after reading memory.
    /// Kernel frames begin with the scheduler.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn thread_state(&self, tid: Tid) -> Result<Option<ThreadState>, KernelError> {
        let mut state = self.maps.states.get(&tid.0)?;
        if let (Some(state), Some(schedule)) = (&mut state, &self.schedule) {
            scheduler::trim(state, schedule);
        }
        Ok(state)
    }

    /// The request a thread serves.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn thread_tag(&self, tid: Tid) -> Result<Option<ThreadTag>, KernelError> {
        self.maps.tags.get(&tid.0)
    }

    /// A connection that carried a request.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn conn(&self, pid: Pid, fd: i32) -> Result<Option<Conn>, KernelError> {
        self.maps.conns.get(&ConnKey { tgid: pid.0, fd })
    }

    /// All tagged threads.
    #[must_use]
    pub fn tags(&self) -> Vec<(Tid, ThreadTag)> {
        let entries = self.maps.tags.entries();
        entries
            .into_iter()
            .map(|(tid, tag)| (Tid(tid), tag))
            .collect()
    }

    /// Counts of a slot since its rule was set, over all CPUs.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn counters(&self, slot: TaskSlot) -> Result<Vec<(KernelCounter, u64)>, KernelError> {
        check_slot(slot)?;
        let count = |counter| Ok((counter, self.maps.counter(slot.0, counter)?));
        KernelCounter::ALL.into_iter().map(count).collect()
    }

    /// Hands out the request events that have arrived, at most 4096, and returns their number.
    pub fn drain_requests(
        &mut self,
        mut each: impl FnMut(Result<RequestEvent, BadRecord>),
    ) -> usize {
        let mut drained = 0;
        while drained < DRAIN_MAX {
            let Some(record) = self.requests.next() else {
                break;
            };
            drained += 1;
            let decoded = decode_request(&record);
            drop(record);
            match decoded {
                Ok(RequestRecord::Event(event)) => each(Ok(event)),
                Ok(RequestRecord::CloseRange {
                    pid,
                    first,
                    last,
                    ktime_ns,
                }) => self.close_range(pid, first, last, ktime_ns, &mut each),
                Err(bad) => each(Err(bad)),
            }
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
        drained
    }

    /// Ends the requests on a closed range of descriptors, as `sys_exit` does for a single one.
    fn close_range(
        &mut self,
        pid: Pid,
        first: u32,
        last: u32,
        ktime_ns: u64,
        each: &mut impl FnMut(Result<RequestEvent, BadRecord>),
    ) {
        let closed =
            |key: &ConnKey| key.tgid == pid.0 && (first..=last).contains(&key.fd.cast_unsigned());
        for (key, conn) in self.maps.conns.entries() {
            if !closed(&key) {
                continue;
            }
            let id = RequestId(conn.request_id);
            let removed = self
                .untag(Tid(conn.reader_tid), id)
                .and_then(|()| self.maps.conns.remove(&key));
            if let Err(error) = removed {
                tracing::warn!(%error, tgid = pid.0, "a closed connection was not forgotten");
            }
            if conn.flags & conn_flag::TRACKED != 0 {
                each(Ok(RequestEvent::End {
                    id,
                    ktime_ns,
                    last_write_ktime_ns: conn.last_write_ktime_ns,
                    written_bytes: conn.written_bytes,
                    flags: 0,
                    reason: EndReason::Closed,
                }));
            }
        }
    }

    /// Hands out the samples that have arrived, at most 4096, and returns their number.
    pub fn drain_samples(&mut self, mut each: impl FnMut(Result<RawSample, BadRecord>)) -> usize {
        let mut drained = 0;
        while drained < DRAIN_MAX {
            let Some(record) = self.samples.next() else {
                break;
            };
            drained += 1;
            each(decode_sample(&record));
        }
        drained
    }

    /// Readable when a request event waits.
    #[must_use]
    pub fn request_fd(&self) -> BorrowedFd<'_> {
        self.requests.as_fd()
    }

    /// Readable when [`LoadOptions::sample_wakeup_bytes`] of samples wait; drain at every dump
    /// period besides.
    #[must_use]
    pub fn sample_fd(&self) -> BorrowedFd<'_> {
        self.samples.as_fd()
    }

    /// Forgets all connections, tags, thread states and interpreter offsets of a process that has
    /// exited or executed another program. The target set is not touched.
    ///
    /// # Errors
    ///
    /// A map refuses.
    pub fn forget_process(&mut self, pid: Pid) -> Result<(), KernelError> {
        self.maps.tags.remove_if(|_, tag| tag.tgid == pid.0)?;
        self.maps.states.remove_if(|_, state| state.tgid == pid.0)?;
        self.maps.conns.remove_if(|key, _| key.tgid == pid.0)?;
        self.maps
            .partial_heads
            .remove_if(|key, _| key.tgid == pid.0)?;
        self.maps.python.remove(&pid.0)
    }

    /// Number of connections known to the kernel side.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.maps.conns.entries().len()
    }

    /// Starts counting runs and times of programs, until the kernel side is dropped.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn enable_statistics(&mut self) -> std::io::Result<()> {
        if self.statistics.is_none() {
            self.statistics = Some(stats::count_runs()?);
        }
        Ok(())
    }

    /// What the loaded programs cost.
    #[must_use]
    pub fn program_stats(&self) -> Vec<ProgramStats> {
        stats::program_stats(&self.ebpf)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // The other way round than attached: no thread gets a tag that nothing would clear.
        self.drop_links();
    }
}

fn check_slot(slot: TaskSlot) -> Result<(), KernelError> {
    if slot.0 < MAX_TASKS {
        Ok(())
    } else {
        Err(KernelError::Argument(format!(
            "task slot {} does not exist: there are {MAX_TASKS}",
            slot.0
        )))
    }
}

fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
        .expect("every Linux has CLOCK_MONOTONIC")
}
