//! One look: programs that see requests are loaded and attached, and what they see is counted.
//!
//! In:  processes, the ring of request events
//! Out: [`Looked`]
//! Lost: counted in [`Unseen`]
//!
//! The look has a BPF object of its own, so a live task and a look do not know of each other: neither takes the other's
//! requests, tags or room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::time::{ClockId, clock_gettime};
use profiler_common::{Conn, KernelCounter};

use super::super::capture::now_ktime_ns;
use crate::discovery::Traffic;
use crate::kernel::{Kernel, LoadOptions};
use crate::model::{Pid, TaskSlot, Unseen, Watched};
use crate::request::{Endpoint, RequestWatch, Templates};

/// The only slot in use.
const SLOT: TaskSlot = TaskSlot(0);
/// How often the ring is read and open requests are looked at, in milliseconds. A response ends at its last write, whenever
/// that is noticed.
const STEP_MS: u8 = 50;
/// No sample ever comes; a ring has at least a page.
const SAMPLE_RING_BYTES: u32 = 64 << 10;
/// Records read in one step.
const DRAINS_MAX: usize = 16;
/// What one call of [`Kernel::drain_requests`] hands out at most; less means that the ring is empty.
const DRAIN_FULL: usize = 4096;

/// What a look has found.
#[derive(Debug, Default)]
pub(in crate::app) struct Looked {
    /// The requests.
    pub(in crate::app) traffic: Traffic,
    /// Those that were not seen.
    pub(in crate::app) unseen: Unseen,
    /// How long it has looked.
    pub(in crate::app) lasted: Duration,
    /// Processor time of the thread that looked.
    pub(in crate::app) cpu: Duration,
    /// Processes that were watched to the end.
    pub(in crate::app) processes: usize,
}

/// A look that is under way.
pub(super) struct Look {
    kernel: Kernel,
    watch: RequestWatch,
    traffic: Traffic,
    bad_records: u64,
    began: Instant,
    cpu_before: Duration,
}

impl Look {
    /// Loads and attaches the programs.
    ///
    /// # Errors
    ///
    /// The kernel or the privileges do not allow it.
    pub(super) fn begin(templates: Arc<Templates>, request_ring_bytes: u32) -> Result<Self> {
        let cpu_before = thread_cpu();
        let options = LoadOptions {
            sees_only: true,
            request_ring_bytes,
            sample_ring_bytes: SAMPLE_RING_BYTES,
            ..LoadOptions::default()
        };
        let mut kernel = Kernel::load(&options)?;
        kernel.set_rule(SLOT, &Endpoint::parse("*")?.rule())?;
        // A wake-up for each event would run in the thread that serves the request.
        kernel.set_request_wakeup(request_ring_bytes / 4)?;
        kernel.attach_sight()?;
        Ok(Self {
            kernel,
            watch: RequestWatch::new(templates),
            traffic: Traffic::default(),
            bad_records: 0,
            began: Instant::now(),
            cpu_before,
        })
    }

    /// Watches a process as well.
    pub(super) fn add(&mut self, watched: Watched) {
        let pid = watched.process.pid;
        if self.watch.add(watched)
            && let Err(error) = self.kernel.add_target(pid, SLOT)
        {
            tracing::debug!(tgid = pid.0, %error, "a process is not looked at");
        }
    }

    /// Waits for at most 50 ms, then counts what has come.
    pub(super) fn step(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(self.kernel.request_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, STEP_MS) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.read();
        Ok(())
    }

    fn read(&mut self) {
        for _ in 0..DRAINS_MAX {
            let mut events = Vec::new();
            let mut bad = 0;
            let drained = self.kernel.drain_requests(|event| match event {
                Ok(event) => events.push(event),
                Err(_) => bad += 1,
            });
            self.bad_records += bad;
            let kernel = &self.kernel;
            let conns = |pid, fd| conn(kernel, pid, fd);
            for event in events {
                self.watch.on_event(event, &conns);
            }
            if drained < DRAIN_FULL {
                break;
            }
        }
        let kernel = &self.kernel;
        self.watch
            .on_tick(now_ktime_ns(), &|pid, fd| conn(kernel, pid, fd));
        for seen in self.watch.take_seen() {
            self.traffic.add(&seen);
        }
    }

    /// What has been seen so far.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// How long it has looked.
    pub(super) fn lasted(&self) -> Duration {
        self.began.elapsed()
    }

    /// Detaches the programs, and yields what they have seen.
    pub(super) fn end(mut self) -> Looked {
        self.read();
        let lasted = self.lasted();
        let Self {
            mut kernel,
            mut watch,
            ..
        } = self;
        watch.end(now_ktime_ns(), &|pid, fd| conn(&kernel, pid, fd));
        for seen in watch.take_seen() {
            self.traffic.add(&seen);
        }
        let mut unseen = watch.take_unseen();
        unseen.events_lost = self.bad_records;
        for (counter, count) in kernel.counters(SLOT).unwrap_or_default() {
            match counter {
                KernelCounter::RequestRingFull
                | KernelCounter::TagsFull
                | KernelCounter::MapUpdateFailed
                | KernelCounter::HookBusy => unseen.events_lost += count,
                KernelCounter::HeadUnreadable | KernelCounter::PartialHeadDropped => {
                    unseen.malformed += count;
                }
                KernelCounter::PipelinedHeads => unseen.pipelined += count,
                _ => {}
            }
        }
        if let Err(error) = kernel.detach() {
            tracing::debug!(%error, "connections were not forgotten");
        }
        let processes = watch.processes().count();
        drop(kernel);
        Looked {
            traffic: self.traffic,
            unseen,
            lasted,
            cpu: thread_cpu().saturating_sub(self.cpu_before),
            processes,
        }
    }
}

fn conn(kernel: &Kernel, pid: Pid, fd: i32) -> Option<Conn> {
    kernel.conn(pid, fd).ok().flatten()
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
