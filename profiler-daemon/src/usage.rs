//! What this process uses of the host: CPU time, memory, descriptors.
//!
//! In:  `getrusage`, `/proc/self`
//! Out: [`Usage`]; free memory, back to the host

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::unistd::{SysconfVar, sysconf};

/// A reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all threads since the start, in user and kernel mode.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
}

impl Usage {
    /// Reads it: three system calls, and one more for every thousand descriptors.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or not in the form that proc(5) says.
    pub fn now() -> io::Result<Self> {
        let times = getrusage(UsageWho::RUSAGE_SELF)?;
        let statm = fs::read_to_string("/proc/self/statm")?;
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
        Ok(Self {
            cpu: duration(times.user_time()) + duration(times.system_time()),
            rss_bytes: resident_pages(&statm)? * page_bytes.cast_unsigned(),
            // The folder is open itself while it is read.
            open_fds: (fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1),
        })
    }
}

/// Processor time, so far, of this process's threads that have one of these names and have not ended.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn threads_cpu(names: &[&str]) -> io::Result<Duration> {
    let mut cpu_ns = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let folder = thread?.path();
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if names.contains(&name.trim_end()) {
            // Time on a CPU, time waiting for one, turns: Documentation/scheduler/sched-stats.rst of v6.12.
            let times = fs::read_to_string(folder.join("schedstat")).unwrap_or_default();
            let on_cpu = times.split_ascii_whitespace().next();
            cpu_ns += on_cpu.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(cpu_ns))
}

/// Gives the host back what the allocator keeps of freed memory: for when much was used and little will be
/// for long. glibc does so by itself only at the end of each of its arenas.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer is passed, and what is allocated stays where it is.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The second number: `size resident shared text lib data dt`, in pages.
fn resident_pages(statm: &str) -> io::Result<u64> {
    let resident = statm.split_whitespace().nth(1);
    let resident = resident.and_then(|pages| pages.parse().ok());
    resident.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of statm"))
}

fn duration(time: TimeVal) -> Duration {
    Duration::from_micros(time.num_microseconds().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the work of a thread is found by its name, and not that of others.
    #[test]
    fn threads_are_told_apart_by_name() {
        let (done, is_done) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            done.send(()).unwrap();
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("usage-test".to_owned());
        let thread = thread.spawn(work).unwrap();
        is_done.recv().unwrap();
        assert!(threads_cpu(&["usage-test"]).unwrap() > Duration::ZERO);
        assert_eq!(threads_cpu(&["no-such-thread"]).unwrap(), Duration::ZERO);
        drop(end);
        thread.join().unwrap();
    }

    /// Check that work, memory and a descriptor show in the next reading.
    #[test]
    fn what_is_taken_is_seen() {
        let _file = fs::File::open("/proc/self/stat").unwrap();
        // Other tests of this process may give memory back meanwhile, but not each time.
        assert!((0..20).any(|_| is_seen()));
    }

    /// Whether 64 MiB that are taken, and the work for it, show.
    fn is_seen() -> bool {
        let before = Usage::now().unwrap();
        let mut memory = vec![0_u8; 64 << 20];
        let mut sum = 0_u64;
        while Usage::now().unwrap().cpu < before.cpu + Duration::from_millis(20) {
            for byte in memory.iter_mut().step_by(512) {
                *byte = byte.wrapping_add(1);
                sum += u64::from(*byte);
            }
        }
        std::hint::black_box(sum);
        let after = Usage::now().unwrap();
        assert!(after.open_fds > 0);
        after.rss_bytes > before.rss_bytes + (32 << 20)
    }

    /// Check that the host gets back what was freed, though what was allocated last is still there.
    #[test]
    #[cfg(target_env = "gnu")]
    fn freed_memory_goes_back_to_the_host() {
        // Other tests of this process may take memory meanwhile, but not each time.
        assert!((0..20).any(|_| goes_back()));
    }

    #[cfg(target_env = "gnu")]
    fn goes_back() -> bool {
        const BLOCKS: usize = 65_536;
        let mut blocks: Vec<Box<[u8; 1024]>> = (0..BLOCKS).map(|_| Box::new([1; 1024])).collect();
        let last = blocks.pop();
        drop(blocks);
        let kept = Usage::now().unwrap().rss_bytes;
        release_free_memory();
        let released = kept.saturating_sub(Usage::now().unwrap().rss_bytes);
        drop(last);
        released > 32 << 20
    }

    /// Check that a text in another form is refused.
    #[test]
    fn another_form_is_refused() {
        assert_eq!(resident_pages("100 20 3 4 0 5 0").unwrap(), 20);
        assert!(resident_pages("100").is_err());
        assert!(resident_pages("").is_err());
    }
}
