//! Looks at processes on threads that can be given up.
//!
//! In:  a process, and what to find out about it
//! Out: what was found, or an error of the kind [`io::ErrorKind::TimedOut`]
//! Lost: all of a process that does not let itself be read: it is left out until the read returns
//!
//! A page of another process may never arrive. Its owner has mapped it from a file system that does not answer (FUSE,
//! a network file system whose server is gone), or handles it with `userfaultfd`. Whoever reads it sleeps in the
//! kernel, where only SIGKILL ends the sleep; so does whoever needs a lock that the process's own threads hold meanwhile, for
//! `maps` and `environ` too. Nothing tells beforehand, so no thread that others need may read a process itself:
//!
//! ```text
//!  caller         ──job──┐                ┌──found──▶
//!                        │                │
//!  its deputy            └──reads─────────┘               idle until the next job
//!
//!  caller         ──job──┐        1 s │ timed out: the process is left out; the next job gets a new deputy
//!  its deputy            └──a read────┼───────────── ─ ─ ─ ▶ may return one day, and ends then
//! ```
//!
//! [`look`] is what readers of a process call ([`super::memory`], [`super::procfs`], [`super::foreign_file`], ...). A
//! thread that can be replaced itself reads on its own, without a deputy: [`on_replaceable_thread`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::procfs::Procfs;
use crate::model::{Pid, ProcessKey};

/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long all reads of a look may take together. Those of a large process take some tens of milliseconds, seconds on a slow
/// disk.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Threads that may sleep in reads of one user's processes at a time. Further processes of the user are not looked at
/// until one of them returns.
const THREADS_OF_USER_MAX: usize = 8;
/// The same of all users.
const THREADS_MAX: usize = 64;
/// A process that has kept so many threads waiting is not looked at again, even if they have returned.
const TIMES_MAX: u32 = 3;

/// A process that has kept a reader waiting for too long.
#[derive(Debug)]
struct Slow {
    key: ProcessKey,
    /// Effective user, if it could be told.
    uid: Option<u32>,
    /// Threads that sleep in a read of it.
    waiting: usize,
    /// How often a thread was given up.
    times: u32,
}

impl Slow {
    fn is_left_out(&self) -> bool {
        self.waiting > 0 || self.times >= TIMES_MAX
    }
}

/// Whether there is any, so that nobody else pays for the lookup.
static HAS_SLOW: AtomicBool = AtomicBool::new(false);
static SLOW: LazyLock<Mutex<HashMap<Pid, Slow>>> = LazyLock::new(Mutex::default);

fn slow() -> MutexGuard<'static, HashMap<Pid, Slow>> {
    SLOW.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static DEPUTY: RefCell<Option<Deputy>> = const { RefCell::new(None) };
    static PROGRESS: RefCell<Option<Progress>> = const { RefCell::new(None) };
}

/// Counts the reads of a thread that somebody else may give up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Reads that were begun so far.
    pub(crate) fn reads(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that looks for the calling one; it ends without the sender.
struct Deputy {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

/// Finds something out about a process. The calling thread waits for five seconds at most, and a second at most for
/// one read.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`]: the process does not let itself be read, now or the times before. Any other kind: no thread could be
/// started for it, or `find` panicked.
pub(crate) fn look<T: Send + 'static>(
    pid: Pid,
    find: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    look_for(pid, PATIENCE, find)
}

/// The same with another limit.
pub(crate) fn look_for<T: Send + 'static>(
    pid: Pid,
    patience: Duration,
    find: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    admit(pid)?;
    if is_on_replaceable_thread() {
        return Ok(find());
    }
    let (end, progress) = (Arc::new(End::default()), Progress::default());
    let (give, take) = bounded(1);
    let (at_end, own) = (Arc::clone(&end), progress.clone());
    give_to_deputy(Box::new(move || {
        let _given_up = give.send(on_replaceable_thread(own, find));
        if at_end.is_given_up_when(End::RETURNED) {
            returned(pid);
        }
    }))?;
    let begin = Instant::now();
    let mut reads = 0;
    loop {
        match take.recv_timeout(patience) {
            Ok(found) => return Ok(found),
            Err(RecvTimeoutError::Timeout) => {
                let read_on = std::mem::replace(&mut reads, progress.reads()) != reads;
                if read_on && begin.elapsed() < LOOK_MAX {
                    continue;
                }
                // Before the deputy learns that it was given up: it lets the process in again when it returns.
                leave_out(pid);
                DEPUTY.set(None);
                if end.has_returned_when(End::GIVEN_UP) {
                    returned(pid);
                }
                return Err(left_out_error(pid));
            }
            Err(RecvTimeoutError::Disconnected) => {
                DEPUTY.set(None);
                return Err(io::Error::other(format!("looking at process {pid} failed")));
            }
        }
    }
}

/// Which of two threads is the last to know that a job is over: the one that does it, or the one that waits for it.
#[derive(Debug, Default)]
struct End(AtomicU8);

impl End {
    const RETURNED: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn is_given_up_when(&self, mine: u8) -> bool {
        self.0.swap(mine, Ordering::AcqRel) == Self::GIVEN_UP
    }

    fn has_returned_when(&self, mine: u8) -> bool {
        self.0.swap(mine, Ordering::AcqRel) == Self::RETURNED
    }
}

fn give_to_deputy(job: Job) -> io::Result<()> {
    DEPUTY.with_borrow_mut(|deputy| {
        let job = match deputy.take() {
            Some(idle) => match idle.jobs.send(job) {
                Ok(()) => {
                    *deputy = Some(idle);
                    return Ok(());
                }
                // It has panicked.
                Err(unsent) => unsent.into_inner(),
            },
            None => job,
        };
        let (jobs, received) = bounded::<Job>(1);
        let thread = thread::Builder::new()
            .name("look".to_owned())
            .spawn(move || received.into_iter().for_each(|job| job()))?;
        // Never fails: the thread has just been started and takes it.
        let _sent = jobs.send(job);
        *deputy = Some(Deputy { jobs, thread });
        Ok(())
    })
}

/// Ends the thread that looks for the calling one, which is idle: privileges belong to threads, and it has those that the
/// calling one had when it began. The next look starts another.
pub(crate) fn end_deputy() {
    if let Some(Deputy { jobs, thread }) = DEPUTY.take() {
        drop(jobs);
        // It has panicked, or just ends.
        let _ended = thread.join();
    }
}

/// Runs `work` on the calling thread, which may read processes itself: somebody else notices by `progress` when it does not
/// return, and calls [`leave_out`].
pub(crate) fn on_replaceable_thread<T>(progress: Progress, work: impl FnOnce() -> T) -> T {
    let before = PROGRESS.replace(Some(progress));
    let result = work();
    PROGRESS.set(before);
    result
}

/// The calling thread is about to read something that may never arrive.
pub(crate) fn note_read() {
    PROGRESS.with_borrow(|progress| {
        if let Some(Progress(reads)) = progress {
            reads.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Whether the calling thread may read processes itself.
pub(crate) fn is_on_replaceable_thread() -> bool {
    PROGRESS.with_borrow(Option::is_some)
}

/// How many processes are not looked at, because they do not let themselves be read.
pub(crate) fn left_out() -> usize {
    if !HAS_SLOW.load(Ordering::Relaxed) {
        return 0;
    }
    slow().values().filter(|slow| slow.is_left_out()).count()
}

/// A thread is given up that sleeps in a read of a process.
pub(crate) fn leave_out(pid: Pid) {
    let procfs = Procfs::default();
    let Ok(key) = procfs.key(pid) else {
        return; // killed, which ends the read as well
    };
    let uid = procfs.effective_uid(pid);
    let mut slow = slow();
    let found = slow.entry(pid).or_insert(Slow {
        key,
        uid,
        waiting: 0,
        times: 0,
    });
    if found.key != key {
        *found = Slow {
            key,
            uid,
            waiting: 0,
            times: 0,
        };
    }
    found.waiting += 1;
    found.times += 1;
    HAS_SLOW.store(true, Ordering::Relaxed);
    let (times, user) = (found.times, uid);
    drop(slow);
    tracing::warn!(
        %pid, user, times,
        "the process does not let itself be read: a page or a file of it does not arrive; it is left out"
    );
}

/// The read of a process that a thread was given up for is over.
pub(crate) fn returned(pid: Pid) {
    let mut slow = slow();
    if let Some(found) = slow.get_mut(&pid) {
        found.waiting = found.waiting.saturating_sub(1);
    }
}

/// Forgets the processes that have ended.
pub(crate) fn refresh(procfs: &Procfs) {
    if HAS_SLOW.load(Ordering::Relaxed) {
        let mut slow = slow();
        slow.retain(|_, slow| procfs.has(slow.key));
        HAS_SLOW.store(!slow.is_empty(), Ordering::Relaxed);
    }
}

/// Whether a process may be looked at.
///
/// # Errors
///
/// The process is left out, or its user has too many processes that are.
pub(crate) fn admit(pid: Pid) -> io::Result<()> {
    note_read();
    if !HAS_SLOW.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut slow = slow();
    if slow_now(&mut slow, pid).is_some_and(Slow::is_left_out) {
        return Err(left_out_error(pid));
    }
    let waiting: usize = slow.values().map(|slow| slow.waiting).sum();
    if waiting == 0 {
        return Ok(());
    }
    let uid = Procfs::default().effective_uid(pid);
    let of_user = slow.values().filter(|slow| slow.uid == uid);
    let of_user: usize = of_user.map(|slow| slow.waiting).sum();
    if waiting >= THREADS_MAX || of_user >= THREADS_OF_USER_MAX {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "process {pid} is not looked at: other processes of its user do not let themselves be read"
            ),
        ));
    }
    Ok(())
}

/// What is known of the process that has an id now.
fn slow_now(slow: &mut HashMap<Pid, Slow>, pid: Pid) -> Option<&Slow> {
    let known = slow.get(&pid)?.key;
    if Procfs::default().key(pid).is_ok_and(|now| now != known) {
        slow.remove(&pid);
        return None;
    }
    slow.get(&pid)
}

fn left_out_error(pid: Pid) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, left_out_text(pid))
}

/// Why nothing is known about a process that is left out.
pub(crate) fn left_out_text(pid: Pid) -> String {
    format!(
        "process {pid} is left out: a page or a file of it does not arrive (a file system that does not answer, or userfaultfd)"
    )
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::mpsc;

    use super::*;

    /// A process that ends with the test.
    struct Sleep(Child);

    impl Sleep {
        fn start() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid(self.0.id())
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Check that a look yields what it found, many times by one thread, and that looks within it stay on that.
    #[test]
    fn a_look_is_done_by_one_other_thread() {
        let pid = Pid(std::process::id());
        let id = || thread::current().id();
        let first = look(pid, id).unwrap();
        assert_ne!(first, id());
        for _ in 0..100 {
            assert_eq!(look(pid, move || look(pid, id).unwrap()).unwrap(), first);
        }
        let own = id();
        on_replaceable_thread(Progress::default(), || {
            assert_eq!(look(pid, id).unwrap(), own)
        });
        assert_ne!(look(pid, id).unwrap(), own);
    }

    /// Check that a look that does not return is given up and its process left out, that others are looked at, and
    /// that the process is back once the read has returned, until it has been given up too often.
    #[test]
    fn what_does_not_return_is_left_out_until_it_does() {
        let (slow, other) = (Sleep::start(), Sleep::start());
        for times in 1..=TIMES_MAX {
            let (release, released) = mpsc::channel::<()>();
            let (done, is_done) = mpsc::channel();
            let stuck = look_for(slow.pid(), Duration::from_millis(50), move || {
                let _ = released.recv();
                done.send(()).unwrap();
            });
            assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(left_out() >= 1);
            assert!(look(slow.pid(), || ()).is_err());
            assert_eq!(look(other.pid(), || 7).unwrap(), 7);
            drop(release);
            is_done.recv().unwrap();
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while slow_waits(slow.pid()) && std::time::Instant::now() < deadline {
                thread::yield_now();
            }
            assert_eq!(look(slow.pid(), || ()).is_ok(), times < TIMES_MAX);
        }
        let pid = slow.pid();
        drop(slow);
        refresh(&Procfs::default());
        assert!(!super::slow().contains_key(&pid));
    }

    fn slow_waits(pid: Pid) -> bool {
        slow().get(&pid).is_some_and(|slow| slow.waiting > 0)
    }

    /// Check that a look is not given up while its reads go on, as long as there are not too many.
    #[test]
    fn slow_reads_are_waited_for() {
        let pid = Pid(std::process::id());
        let patience = Duration::from_millis(200);
        let begin = Instant::now();
        let found = look_for(pid, patience, move || {
            while begin.elapsed() < 4 * patience {
                note_read();
                thread::sleep(patience / 20);
            }
            5
        });
        assert_eq!(found.unwrap(), 5);
    }

    /// Check that a look that panics is an error, and that the next one works.
    #[test]
    fn a_panic_is_an_error() {
        let pid = Pid(std::process::id());
        let failed: io::Result<()> = look(pid, || std::panic::resume_unwind(Box::new("test")));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(look(pid, || 3).unwrap(), 3);
    }
}
