//! A thread whose end is reported to its owner, with the reason.

use std::any::Any;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use crossbeam_channel::{Receiver, bounded};

use super::relay::{Outcome, Relay, Resume, Watchdog};

/// Nice value of the thread that samples blocked threads: its tick must not wait behind the load it
/// measures. It sleeps nearly always, so what this takes from others is small; real-time scheduling
/// would take precedence over everything else on the host.
pub(super) const CAPTURE_NICE: i32 = -10;

/// How long that thread runs before the scheduler looks for another, 0.1 ms, the shortest there is. From Linux 6.12
/// on a thread that wakes with a shorter slice than the running one's takes its CPU at once:
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/sched/features.h#L21>. Older kernels ignore it.
const CAPTURE_SLICE_NS: u64 = 100_000;

/// A running thread.
#[derive(Debug)]
pub(super) struct Worker {
    name: &'static str,
    outcome: Receiver<Outcome>,
}

impl Worker {
    /// Starts it. The watchdog replaces it if it does not come back from reading a process.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(super) fn spawn<S: Resume>(
        name: &'static str,
        state: S,
        watchdog: &Arc<Watchdog>,
    ) -> Result<Self> {
        let (send, outcome) = bounded(1);
        Relay::start(name, Box::new(state), watchdog, send)?;
        Ok(Self { name, outcome })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It failed or panicked.
    pub(super) fn join(self) -> Result<()> {
        let name = self.name;
        match self.outcome.recv() {
            Ok(Ok(result)) => result.with_context(|| format!("the {name} thread failed")),
            Ok(Err(payload)) => Err(anyhow!("the {name} thread panicked: {}", text(&*payload))),
            Err(_) => Err(anyhow!("the {name} thread ended without a word")),
        }
    }
}

/// What `panic!` was given: a literal, or a formatted text.
fn text(payload: &(dyn Any + Send)) -> &str {
    let literal = payload.downcast_ref::<&str>().copied();
    literal
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Lets the calling thread run before ordinary ones. Best effort: without the privilege, or the limit
/// that [`super::privilege`] sets, ticks may come late, which is counted.
pub(super) fn raise_priority() {
    let attributes = |nice| libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: CAPTURE_SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    if let Err(error) = set_scheduling(&attributes(CAPTURE_NICE)) {
        tracing::debug!(%error, "the capture thread keeps its ordinary priority");
        // A shorter slice needs no privilege.
        // SAFETY: a system call without memory arguments.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        if let Err(error) = set_scheduling(&attributes(nice)) {
            tracing::debug!(%error, "the capture thread keeps its ordinary slice");
        }
    }
}

fn set_scheduling(attributes: &libc::sched_attr) -> std::io::Result<()> {
    // SAFETY: 0 names the calling thread; the structure lives through the call and tells its size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A thread that does only this, in tests.
#[cfg(test)]
pub(super) struct Body<F>(pub(super) F);

#[cfg(test)]
impl<F: FnOnce() -> Result<()> + Send + 'static> Resume for Body<F> {
    const LOOKS_MAX: u32 = 1;

    fn run(self: Box<Self>, _: &Relay<Self>) -> Result<super::relay::Ended> {
        (self.0)().map(|()| super::relay::Ended::Done)
    }

    fn leave_out(&mut self, _: crate::model::Pid) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(
        name: &'static str,
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let watchdog = Watchdog::start()?;
        let result = Worker::spawn(name, Body(body), &watchdog)?.join();
        watchdog.stop();
        result
    }

    /// Check that a failed thread tells its name and the causes.
    #[test]
    fn a_failure_names_the_thread_and_the_cause() {
        let error = outcome(
            "capture",
            || Err(anyhow!("no timer").context("cannot tick")),
        );
        assert_eq!(
            format!("{:#}", error.unwrap_err()),
            "the capture thread failed: cannot tick: no timer"
        );
        outcome("x", || Ok(())).unwrap();
    }

    /// Check that a panic becomes an error with its text, formatted or not.
    #[test]
    fn a_panic_is_an_error_with_its_text() {
        for (body, expected) in [
            ((|| panic!("boom")) as fn() -> Result<()>, "boom"),
            (|| panic!("boom {}", std::hint::black_box(0)), "boom 0"),
        ] {
            assert_eq!(
                outcome("resolve", body).unwrap_err().to_string(),
                format!("the resolve thread panicked: {expected}")
            );
        }
    }
}
