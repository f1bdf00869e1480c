//! Processes that tests leave behind. They would disturb the tests after them, and keep the pipe of a runner open,
//! which is read to its end.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use profiler_test_support::children;

/// For processes that are on their way out when the runner is.
const GRACE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// From now on a process whose parent ends is a child of this one.
pub(super) fn adopt() -> Result<()> {
    // SAFETY: a system call without memory arguments.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if done != 0 {
        return Err(io::Error::last_os_error()).context("failed to become the parent of orphans");
    }
    Ok(())
}

/// Ends all children of this process, with theirs; what each was that did not end by itself.
pub(super) fn end() -> Result<Vec<String>> {
    let begin = Instant::now();
    let mut ended = Vec::new();
    loop {
        reap();
        let children = children(std::process::id())?;
        if children.is_empty() {
            return Ok(ended);
        }
        if begin.elapsed() > GRACE {
            for pid in children {
                ended.push(describe(pid));
                // SAFETY: a system call without memory arguments; a child's id is its own until it is reaped, which
                // only this thread does.
                unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
            }
        }
        sleep(POLL_INTERVAL);
    }
}

fn reap() {
    // SAFETY: no status is written.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

fn describe(pid: u32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    format!("process {pid} was left behind: {}", arguments.trim_end())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use profiler_test_support::wait_until;

    use super::*;

    /// Check that the children of a thread are found and described.
    #[test]
    fn a_child_is_seen() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id();
        assert!(children(std::process::id()).unwrap().contains(&pid));
        // A process that has just begun its program has no arguments yet.
        wait_until("its arguments", GRACE, || {
            Ok(describe(pid)
                .ends_with("left behind: sleep 100")
                .then_some(()))
        })
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
