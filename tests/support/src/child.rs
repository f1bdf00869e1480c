//! Child processes that end with their owner, and waiting with a deadline.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often [`wait_until`] looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The process id that was given last; the next process gets the next free one.
const LAST_ID: &str = "/proc/sys/kernel/ns_last_pid";
/// How often an id may go to another program of the machine that starts at the same moment.
const ID_TRIES: u32 = 50;

/// A child process that is killed and reaped when this value is dropped, and by the kernel when the
/// thread that spawned it dies without dropping it (`PR_SET_PDEATHSIG`: Ctrl-C, panic = abort, `kill -9`).
///
/// Spawn from a thread that lives as long as the child should: the main thread or a test's own.
#[derive(Debug)]
pub struct ChildGuard {
    name: String,
    child: Child,
}

impl ChildGuard {
    /// Starts `command`; `name` is what errors call it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let parent = std::process::id();
        let before_exec = move || {
            // SAFETY: two system calls without memory arguments; both are async-signal-safe.
            let parent_now = unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::getppid()
            };
            if parent_now.cast_unsigned() == parent {
                Ok(())
            } else {
                Err(std::io::Error::other("the parent has died meanwhile"))
            }
        };
        // SAFETY: `before_exec` neither allocates on its way to success nor takes a lock.
        unsafe { command.pre_exec(before_exec) };
        let child = command
            .spawn()
            .with_context(|| format!("failed to start {name}: {:?}", command.get_program()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process, for its pipes.
    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Fails when the process has ended already, for example to stop waiting for its answer.
    ///
    /// # Errors
    /// It has ended; the text says how.
    pub fn still_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {}", self.name, describe(status)),
        }
    }

    /// Sends a signal, for example `libc::SIGTERM`.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a system call without memory arguments. The child is not reaped before `self` is
        // dropped or `wait` has returned, so that the id is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// It still runs after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        wait_until(&what, deadline, || Ok(child.try_wait()?))
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // Both fail only when the process has been reaped, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Calls `condition` until it yields a value.
///
/// # Errors
/// `condition` failed, or nothing came within `deadline`; `what` names it in the error.
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {} s in vain for {what}", deadline.as_secs_f32());
        }
        sleep(POLL_INTERVAL);
    }
}

/// The processes that a process has started, by whichever of its threads.
///
/// # Errors
/// The process is gone.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        pids.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Ok(pids)
}

/// Starts something whose process gets an id that is free now, as if all ids had gone round since. Needs root.
///
/// # Errors
/// The kernel does not let the next id be chosen, `start` failed, or others took the id each time.
pub fn start_as<T>(
    id: u32,
    id_of: impl Fn(&T) -> u32,
    mut start: impl FnMut() -> Result<T>,
) -> Result<T> {
    for _ in 0..ID_TRIES {
        let last = (id - 1).to_string();
        fs::write(LAST_ID, last).with_context(|| format!("failed to write {LAST_ID}"))?;
        let started = start()?;
        if id_of(&started) == id {
            return Ok(started);
        }
    }
    bail!("no process got the id {id} in {ID_TRIES} tries")
}

/// A TCP port on 127.0.0.1 that was free a moment ago. The kernel hands such ports out in turn, so
/// that another process is unlikely to get the same one before it is used.
///
/// # Errors
/// No port can be bound.
pub fn free_port() -> Result<u16> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(any).context("failed to bind a port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a dropped guard leaves no process behind.
    #[test]
    fn a_dropped_guard_kills_and_reaps_its_child() {
        let guard = ChildGuard::spawn("sleep", Command::new("sleep").arg("1000")).unwrap();
        let proc = format!("/proc/{}", guard.id());
        assert!(std::fs::exists(&proc).unwrap());
        drop(guard);
        assert!(!std::fs::exists(&proc).unwrap());
    }

    /// Check that a child that ended early is noticed, with its status.
    #[test]
    fn an_early_end_is_an_error_that_tells_the_status() {
        let mut guard = ChildGuard::spawn("false", &mut Command::new("false")).unwrap();
        guard.wait(Duration::from_secs(10)).unwrap();
        let error = guard.still_running().unwrap_err();
        assert_eq!(error.to_string(), "false has ended: exit status 1");
    }

    /// Check that the wait ends with the name of what did not come.
    #[test]
    fn a_wait_in_vain_names_what_was_awaited() {
        let error = wait_until("rain", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s in vain for rain");
    }
}
