//! The door to the kernel: loads the BPF object, attaches it while a task is live, and turns its
//! maps and rings into the daemon's nouns. Nothing outside this module knows aya.
//!
//! In:  [`crate::model::EndpointRule`]s and processes to watch; ring buffer bytes from `profiler-ebpf`
//! Out: [`crate::model::RequestEvent`]s, [`crate::model::SampleRecord`]s of running threads and of those that have just
//! left their CPU, [`profiler_common::ThreadState`]s of blocked ones
//! Lost: counted by the kernel side in [`profiler_common::KernelCounter`]s; undecodable records go
//! to the caller as [`BadRecord`]s
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
mod control;
mod decode_request;
mod decode_sample;
mod drain;
mod error;
mod maps;
mod memory_limit;
mod object;
mod observe;
mod offsets;
mod perf_event;
mod priority;
mod probe;
mod regs;
mod scheduler;
mod stats;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya_log::EbpfLogger;
use nix::time::{ClockId, clock_gettime};
use profiler_common::Ticks;
use tracing_log::log::Log;

pub use bad_record::BadRecord;
pub use btf::{BtfError, KernelTypes};
pub use decode_request::decode_request;
pub use decode_sample::decode_sample;
pub use drain::Drained;
pub use error::{KernelError, MINIMUM_KERNEL};
pub(crate) use memory_limit::raise_memory_limit;
pub use object::{BTF_PATH, LoadOptions, RequestHooks};
pub use observe::ThreadStateReader;
pub use perf_event::try_perf_event;
pub use probe::{Check, probe, probe_quickly};
pub use regs::{FP, IP, SP, instruction_pointer, stack_pointer, system_call};
pub use stats::{ProgramStats, count_runs};

use crate::guard::RunTime;
use maps::{Maps, Table};
use object::{Link, SAMPLE_PROGRAM};

/// When the clock events of the CPUs began. Each ticks one period after its beginning, and then every
/// period without drift, somewhere between these two instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockTicks {
    /// Before the first CPU's event, `CLOCK_MONOTONIC`.
    pub first_ktime_ns: u64,
    /// After the last CPU's event, `CLOCK_MONOTONIC`.
    pub last_ktime_ns: u64,
}

/// The loaded BPF object.
pub struct Kernel {
    /// In the order of attachment; dropped in reverse.
    links: Vec<Link>,
    maps: Maps,
    requests: RingBuf<MapData>,
    samples: RingBuf<MapData>,
    drained: Drained,
    /// As the programs know it.
    request_wakeup_bytes: u32,
    hooks: RequestHooks,
    /// See [`LoadOptions::sees_only`].
    sees_only: bool,
    log: Option<EbpfLogger<&'static dyn Log>>,
    statistics: Option<OwnedFd>,
    states: Arc<ThreadStateReader>,
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
        let schedule = || std::thread::Builder::new().spawn(scheduler::schedule_range);
        let schedule = (!options.sees_only).then(schedule);
        let (mut ebpf, hooks) = object::load(options)?;
        let log = if options.log {
            EbpfLogger::init(&mut ebpf)
                .inspect_err(|error| tracing::warn!(%error, "log records of the BPF programs are not forwarded"))
                .ok()
        } else {
            None
        };
        let schedule = match schedule {
            Some(Ok(thread)) => thread.join().unwrap_or_default(),
            Some(Err(_)) => scheduler::schedule_range(), // no thread is left
            None => None,                                // no stack is looked at
        };
        let states = Table::second(&ebpf, maps::THREAD_STATES)?;
        let states = ThreadStateReader::new(states, schedule);
        Ok(Self {
            links: Vec::new(),
            maps: Maps::take(&mut ebpf)?,
            requests: maps::take_ring(&mut ebpf, "REQUESTS")?,
            samples: maps::take_ring(&mut ebpf, "SAMPLES")?,
            drained: Drained::default(),
            request_wakeup_bytes: 0,
            hooks,
            sees_only: options.sees_only,
            log,
            statistics: None,
            states: Arc::new(states),
            ebpf,
        })
    }

    /// Attaches what sees requests. Of an object that was loaded with [`LoadOptions::sees_only`] there is nothing else.
    ///
    /// # Errors
    ///
    /// A hook is refused; then nothing stays attached.
    pub fn attach_sight(&mut self) -> Result<(), KernelError> {
        self.detach()?;
        let (others, opening) = self.hooks.in_order(true);
        for hook in others.chain([opening]) {
            match object::attach_hook(&mut self.ebpf, hook) {
                Ok(link) => self.links.push(link),
                Err(error) => {
                    self.drop_links();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Attaches every program and starts one clock event per CPU with the given period. What is
    /// attached already is detached first.
    ///
    /// # Errors
    ///
    /// A hook is refused; then nothing stays attached.
    pub fn attach(&mut self, period: Duration) -> Result<ClockTicks, KernelError> {
        self.detach()?;
        match self.try_attach(period) {
            Ok(ticks) => Ok(ticks),
            Err(error) => {
                self.drop_links();
                Err(error)
            }
        }
    }

    fn try_attach(&mut self, period: Duration) -> Result<ClockTicks, KernelError> {
        let (others, opening) = self.hooks.in_order(self.sees_only);
        for hook in others {
            let link = object::attach_hook(&mut self.ebpf, hook)?;
            self.links.push(link);
        }
        let ticks = self.open_clocks(period)?;
        let link = object::attach_hook(&mut self.ebpf, opening)?;
        self.links.push(link);
        Ok(ticks)
    }

    /// Changes the period of the clock events and leaves everything else attached.
    ///
    /// # Errors
    ///
    /// The kernel refuses; then threads are no longer sampled while they run.
    pub fn set_period(&mut self, period: Duration) -> Result<ClockTicks, KernelError> {
        self.links
            .retain(|link| !matches!(link, Link::PerfEvent(_)));
        self.open_clocks(period)
    }

    /// Opens one clock event per CPU.
    fn open_clocks(&mut self, period: Duration) -> Result<ClockTicks, KernelError> {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        if period_ns == 0 {
            return Err(KernelError::Argument(
                "the sampling period must be longer than 0".to_owned(),
            ));
        }
        let cpus = aya::util::online_cpus()
            .map_err(|(path, source)| KernelError::Cpus { path, source })?;
        let program: &mut PerfEvent = object::program(&mut self.ebpf, SAMPLE_PROGRAM)?;
        let _undisturbed = priority::Undisturbed::begin();
        let first_ktime_ns = monotonic_ns();
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
        let ticks = ClockTicks {
            first_ktime_ns,
            last_ktime_ns: monotonic_ns(),
        };
        self.maps.set_ticks(Ticks {
            origin_ktime_ns: ticks.last_ktime_ns,
            period_ns,
        })?;
        Ok(ticks)
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

    /// Where requests are seen.
    #[must_use]
    pub fn request_hooks(&self) -> RequestHooks {
        self.hooks
    }

    /// Whether the programs run.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
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

    /// Time in all runs of the programs while the kernel counted them.
    #[must_use]
    pub fn program_time(&self) -> RunTime {
        stats::run_time(&self.ebpf)
    }

    /// Runs of hooks that the kernel has left out since the object was loaded, because one was under way on the same
    /// CPU; for any process of the host.
    #[must_use]
    pub fn left_out_runs(&self) -> u64 {
        stats::left_out_runs(&self.ebpf)
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

fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
        .expect("every Linux has CLOCK_MONOTONIC")
}
