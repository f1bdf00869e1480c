//! Limits of the process and of the host: which one an error is about, and what to do.
//!
//! In:  errors of system calls, below any context
//! Out: a remedy, if the error is about a limit
//! Lost: nothing

use std::error::Error;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the daemon needs while tasks are live, with room for the connections of an OAP of its own.
const OPEN_FILES: u64 = 1024;

/// Uses the whole of what the process may open. The lower limit that a shell sets is for programs that use
/// `select`, which cannot count higher.
pub(crate) fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _stays = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// What to do about the first error below this one that says which limit is reached.
#[must_use]
pub fn remedy(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(remedy) = errno(error).and_then(remedy_of) {
            return Some(remedy);
        }
        next = error.source();
    }
    None
}

fn errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    let io = error.downcast_ref::<io::Error>();
    let raw = io.and_then(io::Error::raw_os_error).map(Errno::from_raw);
    raw.or_else(|| error.downcast_ref::<Errno>().copied())
}

fn remedy_of(errno: Errno) -> Option<String> {
    let text = match errno {
        Errno::EMFILE => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
            return Some(format!(
                "this process has reached its limit of {limit} open files: raise it to \
                 {OPEN_FILES} (systemd: LimitNOFILE={OPEN_FILES}; container: --ulimit \
                 nofile={OPEN_FILES}; shell: ulimit -n {OPEN_FILES})"
            ));
        }
        Errno::ENFILE => {
            "the host has reached its limit of open files: raise `sysctl fs.file-max`, or end \
             programs that hold many files"
        }
        Errno::ENOMEM => {
            "memory is exhausted: raise the memory limit of the container or unit (systemd: \
             MemoryMax=), or free memory of the host"
        }
        Errno::ENOSPC => {
            "there is no space left: free space on the disk or, if the error is not about a file, end other \
             programs that trace (`bpftool prog list`)"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

/// What to do when a thread or process cannot be started.
pub(crate) const THREAD_REMEDY: &str = "if the limit of threads is reached, raise that of the unit (systemd: TasksMax=), the container \
     (--pids-limit), the user (ulimit -u) or the host (sysctl kernel.threads-max)";

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    /// Check that the limit is found below any context, and that other errors have no remedy.
    #[test]
    fn a_limit_is_found_below_its_context() {
        let of = |errno: Errno| {
            let error = io::Error::from_raw_os_error(errno as i32);
            let error = Err::<(), _>(error)
                .context("failed to do this")
                .unwrap_err();
            remedy(error.as_ref())
        };
        for (errno, part) in [
            (Errno::EMFILE, "LimitNOFILE=1024"),
            (Errno::ENFILE, "fs.file-max"),
            (Errno::ENOMEM, "memory limit"),
            (Errno::ENOSPC, "no space left"),
        ] {
            let remedy = of(errno).unwrap();
            assert!(remedy.contains(part), "{errno}: {remedy}");
            assert!(!remedy.contains("locked"), "{remedy}");
        }
        assert_eq!(of(Errno::EPERM), None);
        assert_eq!(remedy(&Errno::EMFILE), of(Errno::EMFILE));
    }
}
