//! A thread whose end is reported to its owner, with the reason.

use std::any::Any;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};

use crate::limit::thread_remedy;

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
    thread: JoinHandle<Result<()>>,
}

impl Worker {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(super) fn spawn(
        name: &'static str,
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .with_context(|| format!("failed to start the {name} thread ({})", thread_remedy()))?;
        Ok(Self { name, thread })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It failed or panicked.
    pub(super) fn join(self) -> Result<()> {
        let name = self.name;
        match self.thread.join() {
            Ok(result) => result.with_context(|| format!("the {name} thread failed")),
            Err(payload) => Err(anyhow!("the {name} thread panicked: {}", text(&*payload))),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a failed thread tells its name and the causes.
    #[test]
    fn a_failure_names_the_thread_and_the_cause() {
        let body = || Err(anyhow!("no timer").context("cannot tick"));
        let error = Worker::spawn("capture", body).unwrap().join().unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "the capture thread failed: cannot tick: no timer"
        );
        Worker::spawn("x", || Ok(())).unwrap().join().unwrap();
    }

    /// Check that a panic becomes an error with its text, formatted or not.
    #[test]
    fn a_panic_is_an_error_with_its_text() {
        for (body, expected) in [
            ((|| panic!("boom")) as fn() -> Result<()>, "boom"),
            (|| panic!("boom {}", std::hint::black_box(0)), "boom 0"),
        ] {
            let error = Worker::spawn("resolve", body).unwrap().join().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the resolve thread panicked: {expected}")
            );
        }
    }
}
