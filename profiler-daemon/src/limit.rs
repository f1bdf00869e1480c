//! Limits of the process and of the host: which one an error is about, and what to do.
//!
//! In:  errors of system calls, below any context
//! Out: a remedy, if the error is about a limit
//! Lost: nothing

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

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

/// Threads that the daemon has while tasks are live, and some for what may take long.
const THREADS: usize = 12;

/// Starts as many threads as the daemon will need, and ends them. What starts threads later may not be able to say why
/// it cannot: the asynchronous runtime panics.
///
/// # Errors
///
/// The system has not as many; the text says which limit is reached and what to do.
pub(crate) fn check_threads() -> anyhow::Result<()> {
    let started = (0..THREADS).map(|_| {
        let name = "preflight".to_owned();
        thread::Builder::new().name(name).spawn(thread::park)
    });
    // All are there at once, so far as they come.
    let started: Vec<io::Result<thread::JoinHandle<()>>> = started.collect();
    let error = started.iter().find_map(|thread| thread.as_ref().err());
    let error = error.map(|error| {
        let remedy = thread_remedy();
        anyhow::anyhow!("failed to start {THREADS} threads: {error}; {remedy}")
    });
    for thread in started.into_iter().flatten() {
        thread.thread().unpark();
        // It only waits.
        let _ended = thread.join();
    }
    error.map_or(Ok(()), Err)
}

/// What to do when a thread or process cannot be started: about the limit that is reached, if it can be seen.
pub(crate) fn thread_remedy() -> String {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Some((folder, limit)) = pids_folders(&text).iter().find_map(|it| reached(it)) {
        return format!(
            "the control group {} may have {limit} threads and processes, and has them: raise its limit (systemd: \
             TasksMax=; container: --pids-limit)",
            folder.display()
        );
    }
    match getrlimit(Resource::RLIMIT_NPROC) {
        Ok((limit, _)) if !nix::unistd::geteuid().is_root() && limit < u64::from(u32::MAX) => {
            format!("its user may have {limit} threads and processes: raise the limit (ulimit -u)")
        }
        _ => "if the limit of threads is reached, raise that of the unit (systemd: TasksMax=), the container \
              (--pids-limit), the user (ulimit -u) or the host (sysctl kernel.threads-max)"
            .to_owned(),
    }
}

/// The folders of the control groups that limit our threads, ours first, by `/proc/self/cgroup`.
fn pids_folders(text: &str) -> Vec<PathBuf> {
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|name| name == "pids") => "/sys/fs/cgroup/pids",
            _ => return None,
        };
        let folder = Path::new(root).join(path.trim_start_matches('/'));
        let above = folder.ancestors().take_while(|it| it.starts_with(root));
        Some(above.map(Path::to_owned).collect::<Vec<_>>())
    });
    lines.flatten().collect()
}

/// The limit of a control group that has as many threads as it may.
fn reached(folder: &Path) -> Option<(&Path, u64)> {
    let read = |name| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let limit = read("pids.max")?;
    (read("pids.current")? >= limit).then_some((folder, limit))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    /// Check which control groups are looked at, in both versions.
    #[test]
    fn control_groups_are_found() {
        let folders = |text: &str| {
            let folders = pids_folders(text).into_iter();
            let shown = folders.map(|folder| folder.display().to_string());
            shown.collect::<Vec<_>>()
        };
        assert_eq!(
            folders("0::/a.slice/b.service\n"),
            [
                "/sys/fs/cgroup/a.slice/b.service",
                "/sys/fs/cgroup/a.slice",
                "/sys/fs/cgroup"
            ]
        );
        assert_eq!(
            folders("9:name=systemd:/x\n8:cpu,pids:/a\n1:cpu:/y\n"),
            ["/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids"]
        );
        assert!(folders("garbage\n1:\n").is_empty());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(reached(path), None);
        for (max, current, limit) in [("max", "9", None), ("9", "8", None), ("9", "9", Some(9))] {
            fs::write(path.join("pids.max"), format!("{max}\n")).unwrap();
            fs::write(path.join("pids.current"), format!("{current}\n")).unwrap();
            assert_eq!(
                reached(path).map(|(_, limit)| limit),
                limit,
                "{max} {current}"
            );
        }
    }

    /// Check that a user who may start no thread is told the limit, and not by a panic. In a process of its own, which gives
    /// up root.
    #[test]
    fn a_missing_thread_is_told_with_its_limit() {
        const CHILD: &str = "PROFILERD_TEST_OF_THREADS";
        const USER: u32 = 65_533;
        if std::env::var_os(CHILD).is_some() {
            setrlimit(Resource::RLIMIT_NPROC, 1, 1).unwrap();
            // SAFETY: system calls with plain numbers.
            assert_eq!(unsafe { libc::setuid(USER) }, 0);
            println!("{}", check_threads().unwrap_err());
            return;
        }
        check_threads().unwrap();
        if !nix::unistd::geteuid().is_root() {
            profiler_test_support::skip!("needs root");
        }
        let own = thread::current().name().unwrap_or_default().to_owned();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &own, "--nocapture", "--test-threads=1"]);
        let output = child.env(CHILD, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("failed to start 12 threads"), "{output:?}");
        assert!(
            text.contains("may have 1 threads and processes"),
            "{output:?}"
        );
        assert!(text.contains("ulimit -u"), "{output:?}");
    }

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
