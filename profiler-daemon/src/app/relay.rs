//! Replaces a thread that does not come back from reading a process.
//!
//! In:  a thread's state, lent while the thread reads a process
//! Out: the state, to the same thread, or to a new one that goes on with it
//! Lost: what the thread was about to find out, which the new one counts ([`Resume::leave_out`])
//!
//! ```text
//!  thread    ──state──┐ lend              ┌──state──┐ lend
//!                     └──reads a process──┘         └──reads a process─ ─ ─ ─ ─ ─▶ ends if it ever returns
//!  watchdog                                             asleep in it for 0.5 s: takes the state
//!  new thread                                                      └──state──▶ the process is left out
//! ```
//!
//! # Why
//!
//! See [`crate::process::patience`]. A thread that reads a hundred times a second would pay two context switches for each
//! read by a deputy; to lend costs two uncontended locks. The watchdog sleeps without a timeout while nobody lends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use crossbeam_channel::Sender;

use crate::limit::thread_remedy;
use crate::model::{Pid, Tid};
use crate::process::patience::{self, Progress};

/// Between two looks of the watchdog.
const LOOK: Duration = Duration::from_millis(50);
/// Looks at which a thread must have slept in the same read to be given up: half a second. Time does not count, for
/// all threads stand still when the machine does.
const LOOKS_AT_READ_MAX: u32 = 10;
/// Looks without anything lent after which the watchdog sleeps until something is.
const IDLE_LOOKS_MAX: u32 = 20;

/// What a thread owns, and another one can go on with.
pub(super) trait Resume: Send + Sized + 'static {
    /// Looks at which the thread must have slept in reads to be given up, even if reads go on, since it lent its state.
    const LOOKS_MAX: u32;

    /// Goes on until everything is done, or another thread has the state.
    ///
    /// # Errors
    ///
    /// It cannot go on.
    fn run(self: Box<Self>, relay: &Relay<Self>) -> Result<Ended>;

    /// Reading a process did not end: what was lent for has no result, and the process is not to be read again.
    fn leave_out(&mut self, process: Pid);
}

/// Why [`Resume::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything is done.
    Done,
    /// Another thread has the state.
    Replaced,
}

/// How a thread ended: its result, or what it panicked with.
pub(super) type Outcome = std::result::Result<Result<()>, Box<dyn Any + Send>>;

/// Which process a thread that has lent its state reads.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pid: AtomicU32,
    progress: Progress,
    /// The process that the thread was given up for, 0 if it was not.
    given_up: AtomicU32,
}

impl Reading {
    /// The thread is about to read this process.
    pub(super) fn begin(&self, process: Pid) {
        self.pid.store(process.0, Ordering::Relaxed);
    }
}

struct Lent<S> {
    number: u64,
    state: Box<S>,
    thread: Tid,
    reading: Arc<Reading>,
    /// Looks of the watchdog that found the thread asleep, in all and in the same read.
    looks: u32,
    looks_at_read: u32,
    reads: u64,
}

/// Where a thread's state is while the thread reads.
pub(super) struct Relay<S> {
    name: &'static str,
    lent: Mutex<Option<Lent<S>>>,
    numbers: AtomicU64,
    watchdog: Arc<Watchdog>,
    outcome: Sender<Outcome>,
}

impl<S: Resume> Relay<S> {
    /// Starts a thread with this state. Its outcome, or that of the thread that replaced it, is sent to `outcome`.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(super) fn start(
        name: &'static str,
        state: Box<S>,
        watchdog: &Arc<Watchdog>,
        outcome: Sender<Outcome>,
    ) -> Result<()> {
        let relay = Arc::new(Self {
            name,
            lent: Mutex::new(None),
            numbers: AtomicU64::new(0),
            watchdog: Arc::clone(watchdog),
            outcome,
        });
        watchdog.add(Arc::clone(&relay) as Arc<dyn Watched>);
        relay.spawn(state)
    }

    fn spawn(self: Arc<Self>, state: Box<S>) -> Result<()> {
        let name = self.name;
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| state.run(&self)));
                let outcome = match outcome {
                    Ok(Ok(Ended::Replaced)) => return,
                    Ok(result) => Ok(result.map(|_| ())),
                    Err(panic) => Err(panic),
                };
                // Fails only when nobody wants to know any more.
                let _gone = self.outcome.send(outcome);
            })
            .with_context(|| format!("failed to start the {name} thread ({})", thread_remedy()))?;
        Ok(())
    }

    /// Runs `read`, which may read processes itself and never return, while the state can be taken over.
    ///
    /// `None` if it has been: the calling thread has to end with [`Ended::Replaced`].
    pub(super) fn lend<T>(
        &self,
        state: Box<S>,
        read: impl FnOnce(&Reading) -> T,
    ) -> Option<(Box<S>, T)> {
        let reading = Arc::new(Reading::default());
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        *self.lent() = Some(Lent {
            number,
            state,
            thread: current_thread(),
            reading: Arc::clone(&reading),
            looks: 0,
            looks_at_read: 0,
            reads: 0,
        });
        self.watchdog.wake();
        let progress = reading.progress.clone();
        let found = patience::on_replaceable_thread(progress, || read(&reading));
        if let Some(lent) = self.lent().take_if(|lent| lent.number == number) {
            return Some((lent.state, found));
        }
        patience::returned(Pid(reading.given_up.load(Ordering::Relaxed)));
        None
    }

    fn lent(&self) -> MutexGuard<'_, Option<Lent<S>>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if its thread does not come back.
    fn take_over(&self) -> Option<(Box<S>, Pid)> {
        let mut slot = self.lent();
        let lent = slot.as_mut()?;
        // One that computes, or waits for a CPU, comes back.
        if is_running(lent.thread) {
            lent.looks_at_read = 0;
            return None;
        }
        lent.looks += 1;
        let reads = lent.reading.progress.reads();
        if std::mem::replace(&mut lent.reads, reads) != reads {
            lent.looks_at_read = 0;
        }
        lent.looks_at_read += 1;
        if lent.looks_at_read < LOOKS_AT_READ_MAX && lent.looks < S::LOOKS_MAX {
            return None;
        }
        let lent = slot.take()?;
        let process = Pid(lent.reading.pid.load(Ordering::Relaxed));
        lent.reading.given_up.store(process.0, Ordering::Relaxed);
        // Under the lock: the thread that was given up lets the process in again when it returns.
        patience::leave_out(process);
        Some((lent.state, process))
    }
}

/// A relay, as the watchdog sees it.
trait Watched: Send + Sync {
    /// Replaces the thread if it does not come back. True while its state is lent.
    fn look(self: Arc<Self>) -> bool;
}

impl<S: Resume> Watched for Relay<S> {
    fn look(self: Arc<Self>) -> bool {
        if let Some((mut state, process)) = self.take_over() {
            state.leave_out(process);
            let (name, outcome) = (self.name, self.outcome.clone());
            tracing::warn!(%process, thread = name, "a thread does not come back from reading a process; another one goes on");
            if let Err(error) = self.spawn(state) {
                let _gone = outcome.send(Ok(Err(error)));
            }
            return true;
        }
        self.lent().is_some()
    }
}

/// Looks after the threads of relays.
#[derive(Default)]
pub(super) struct Watchdog {
    relays: Mutex<Vec<Arc<dyn Watched>>>,
    is_asleep: AtomicBool,
    /// Whether there is something to do, and whether it is over.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog")
            .field("is_asleep", &self.is_asleep)
            .finish_non_exhaustive()
    }
}

impl Watchdog {
    /// Starts it; [`Self::stop`] ends it.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(super) fn start() -> Result<Arc<Self>> {
        let watchdog = Arc::new(Self::default());
        let own = Arc::clone(&watchdog);
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || own.run())
            .with_context(|| {
                format!("failed to start the watchdog thread ({})", thread_remedy())
            })?;
        Ok(watchdog)
    }

    fn add(&self, relay: Arc<dyn Watched>) {
        let relays = self.relays.lock();
        relays.unwrap_or_else(PoisonError::into_inner).push(relay);
    }

    /// Something is lent.
    fn wake(&self) {
        // SeqCst on both sides: either this thread sees that the watchdog sleeps, or that one what was lent.
        if self.is_asleep.load(Ordering::SeqCst) {
            self.state().0 = true;
            self.changed.notify_all();
        }
    }

    /// Ends the thread, and forgets the relays.
    pub(super) fn stop(&self) {
        self.state().1 = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, (bool, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut idle_looks = 0;
        loop {
            let is_idle = idle_looks >= IDLE_LOOKS_MAX;
            if is_idle {
                self.is_asleep.store(true, Ordering::SeqCst);
                idle_looks = 0;
                // What was lent just before found it awake.
                if self.look() {
                    self.is_asleep.store(false, Ordering::SeqCst);
                }
            }
            let state = self.state();
            let is_asleep = self.is_asleep.load(Ordering::SeqCst);
            let mut state = if is_asleep {
                let waits = |&mut (is_woken, is_over): &mut (bool, bool)| !is_woken && !is_over;
                let woken = self.changed.wait_while(state, waits);
                woken.unwrap_or_else(PoisonError::into_inner)
            } else {
                let is_on = |&mut (_, is_over): &mut (bool, bool)| !is_over;
                let woken = self.changed.wait_timeout_while(state, LOOK, is_on);
                woken.unwrap_or_else(PoisonError::into_inner).0
            };
            state.0 = false;
            let is_over = state.1;
            drop(state);
            if is_over {
                break;
            }
            self.is_asleep.store(false, Ordering::SeqCst);
            idle_looks = if self.look() { 0 } else { idle_looks + 1 };
        }
        let relays = self.relays.lock();
        relays.unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn look(&self) -> bool {
        let relays = self.relays.lock();
        let relays = relays.unwrap_or_else(PoisonError::into_inner).clone();
        let mut is_busy = false;
        for relay in relays {
            is_busy |= relay.look();
        }
        is_busy
    }
}

fn current_thread() -> Tid {
    thread_local! {
        static ID: Tid = Tid(nix::unistd::gettid().as_raw().cast_unsigned());
    }
    ID.with(|&id| id)
}

/// Whether one of our threads has a CPU or waits for one.
fn is_running(thread: Tid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    let stat = stat.unwrap_or_default();
    // pid (name) state ...
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_none_or(|state| state.starts_with('R'))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Reads pids from a list; 1 is a process whose memory does not arrive until the test says so.
    struct Reader {
        pids: Vec<u32>,
        release: Option<mpsc::Receiver<()>>,
        read: Sender<(u32, Tid)>,
        left_out: Sender<Pid>,
    }

    impl Resume for Reader {
        const LOOKS_MAX: u32 = 100;

        fn run(mut self: Box<Self>, relay: &Relay<Self>) -> Result<Ended> {
            while let Some(pid) = self.pids.pop() {
                let release = (pid == 1).then(|| self.release.take()).flatten();
                let lent = relay.lend(self, |reading| {
                    reading.begin(Pid(pid));
                    if let Some(release) = release {
                        let _ = release.recv();
                    }
                    pid
                });
                let Some((back, read)) = lent else {
                    return Ok(Ended::Replaced);
                };
                self = back;
                self.read.send((read, current_thread())).unwrap();
            }
            Ok(Ended::Done)
        }

        fn leave_out(&mut self, process: Pid) {
            self.left_out.send(process).unwrap();
        }
    }

    /// Check that a thread that does not come back is replaced by one that goes on behind the read, that the
    /// given-up thread ends when it returns, and that nothing is reported twice.
    #[test]
    fn another_thread_goes_on_behind_a_read_that_does_not_return() {
        let watchdog = Watchdog::start().unwrap();
        let (outcome, outcomes) = crossbeam_channel::unbounded();
        let (read, reads) = crossbeam_channel::unbounded();
        let (left_out, is_left_out) = crossbeam_channel::unbounded();
        let (release, released) = mpsc::channel();
        let reader = Reader {
            pids: vec![5, 4, 1, 3, 2],
            release: Some(released),
            read,
            left_out,
        };
        Relay::start("reader", Box::new(reader), &watchdog, outcome).unwrap();
        assert!(matches!(outcomes.recv(), Ok(Ok(Ok(())))));
        let reads: Vec<(u32, Tid)> = reads.try_iter().collect();
        assert_eq!(
            reads.iter().map(|&(pid, _)| pid).collect::<Vec<_>>(),
            [2, 3, 4, 5]
        );
        assert_eq!(reads[0].1, reads[1].1);
        assert_ne!(reads[1].1, reads[2].1);
        assert_eq!(is_left_out.try_iter().collect::<Vec<_>>(), [Pid(1)]);
        drop(release);
        watchdog.stop();
        // All holders of the sender end: the given-up thread as well.
        assert!(outcomes.recv().is_err());
    }

    /// Check that a thread that computes for long is not replaced, and that a panic is the outcome.
    #[test]
    fn a_thread_that_runs_is_not_replaced() {
        struct Busy;
        impl Resume for Busy {
            const LOOKS_MAX: u32 = 5;

            fn run(self: Box<Self>, relay: &Relay<Self>) -> Result<Ended> {
                let begin = std::time::Instant::now();
                let lent = relay.lend(self, |_| {
                    while begin.elapsed() < (LOOKS_AT_READ_MAX + 4) * LOOK {
                        std::hint::spin_loop();
                    }
                });
                assert!(lent.is_some());
                std::panic::resume_unwind(Box::new("as expected"));
            }

            fn leave_out(&mut self, _: Pid) {
                unreachable!("it computes");
            }
        }
        let watchdog = Watchdog::start().unwrap();
        let (outcome, outcomes) = crossbeam_channel::unbounded();
        Relay::start("busy", Box::new(Busy), &watchdog, outcome).unwrap();
        let panic = outcomes.recv().unwrap().unwrap_err();
        assert_eq!(*panic.downcast::<&str>().unwrap(), "as expected");
        watchdog.stop();
    }
}
