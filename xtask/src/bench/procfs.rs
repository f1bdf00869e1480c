//! What the kernel knows about a process: CPU time, memory, and the BPF objects it holds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::command::output;

/// Counts program runs and their time while it lives: costs each run two clock reads.
///
/// By descriptor, so that a benchmark that is killed does not leave them on for the next one.
#[derive(Debug)]
#[expect(dead_code, reason = "held to be closed")]
pub(super) struct BpfStats(OwnedFd);

/// `BPF_ENABLE_STATS` of `bpf(2)`, minimum kernel 5.8.
const BPF_ENABLE_STATS: i32 = 32;
/// `BPF_STATS_RUN_TIME`, the only kind there is.
const BPF_STATS_RUN_TIME: u32 = 0;

impl BpfStats {
    /// Switches the statistics on.
    pub(super) fn enable() -> Result<Self> {
        let kind = [BPF_STATS_RUN_TIME];
        // SAFETY: the attribute is read only, and has the size that is given.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_ENABLE_STATS,
                kind.as_ptr(),
                size_of_val(&kind),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error())
                .context("failed to have the kernel count BPF programs");
        }
        // SAFETY: the call has just given us this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }
}

/// One loaded program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) runs: u64,
    pub(super) run_time_ns: u64,
    /// Instructions the verifier has looked at; minimum kernel 5.16.
    pub(super) verified_instructions: u64,
}

/// CPU time used by all threads of the process so far, also by those that have ended.
pub(super) fn cpu_time(tgid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` has room for what is written.
    let error = unsafe { libc::clock_getcpuclockid(tgid.cast_signed(), &raw mut clock) };
    ensure!(error == 0, "process {tgid} has no CPU clock any more");
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` has room for what is written.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(
        result == 0,
        "the CPU clock of process {tgid} cannot be read"
    );
    Ok(Duration::new(
        time.tv_sec.cast_unsigned(),
        u32::try_from(time.tv_nsec)?,
    ))
}

/// A process's CPU time from some instant on.
#[derive(Debug)]
pub(super) struct CpuMeter {
    tgid: u32,
    start: Instant,
    before: Duration,
}

impl CpuMeter {
    /// Begins now.
    pub(super) fn start(tgid: u32) -> Result<Self> {
        Ok(Self {
            tgid,
            start: Instant::now(),
            before: cpu_time(tgid)?,
        })
    }

    /// What was used since then.
    pub(super) fn used(&self) -> Result<Duration> {
        Ok(cpu_time(self.tgid)?.saturating_sub(self.before))
    }

    /// The same, of one core.
    pub(super) fn percent(&self) -> Result<f64> {
        Ok(self.used()?.as_secs_f64() / self.start.elapsed().as_secs_f64() * 100.0)
    }
}

/// Resident memory in megabytes.
pub(super) fn rss_mb(tgid: u32) -> Result<f64> {
    Ok(rss_bytes(tgid)? as f64 / 1e6)
}

fn rss_bytes(tgid: u32) -> Result<u64> {
    let path = format!("/proc/{tgid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let kib = field(&text, "VmRSS").with_context(|| format!("no VmRSS in {path}"))?;
    Ok(kib * 1024)
}

/// How many descriptors the process holds open: the least of several readings, for some are open for a moment
/// only, to read a file.
pub(super) fn open_fds(tgid: u32) -> Result<usize> {
    let folder = format!("/proc/{tgid}/fd");
    let mut least = usize::MAX;
    for _ in 0..5 {
        let names = fs::read_dir(&folder).with_context(|| format!("failed to read {folder}"))?;
        least = least.min(names.count());
        sleep(Duration::from_millis(20));
    }
    Ok(least)
}

/// How many hooks the process holds attached: links of BPF programs and perf events. They live as file
/// descriptors, so that their number is the number of such descriptors.
pub(super) fn attached(tgid: u32) -> Result<usize> {
    let folder = format!("/proc/{tgid}/fd");
    let names = fs::read_dir(&folder)
        .with_context(|| format!("failed to read {folder}"))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(names
        .filter(|name| {
            // kernel/bpf/syscall.c and kernel/events/core.c name their anonymous inodes so.
            let name = name.to_string_lossy();
            ["bpf_link", "bpf-link", "bpf-raw-tracepoint", "perf_event"]
                .iter()
                .any(|kind| name.contains(kind))
        })
        .count())
}

/// The BPF programs the process holds, by id.
pub(super) fn programs(tgid: u32) -> Result<BTreeMap<u64, Program>> {
    let names = program_names()?;
    let folder = format!("/proc/{tgid}/fdinfo");
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("failed to read {folder}"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        // A link shows its program's id too, but no statistics.
        let (Some(id), Some(runs)) = (field(&text, "prog_id"), field(&text, "run_cnt")) else {
            continue;
        };
        let program = Program {
            name: names.get(&id).cloned().unwrap_or_else(|| id.to_string()),
            runs,
            run_time_ns: field(&text, "run_time_ns").unwrap_or(0),
            verified_instructions: field(&text, "verified_insns").unwrap_or(0),
        };
        programs.insert(id, program);
    }
    Ok(programs)
}

fn program_names() -> Result<BTreeMap<u64, String>> {
    let text = output(Command::new("bpftool").args(["--json", "prog", "show"]))?;
    let list: Vec<Value> = serde_json::from_str(&text).context("bpftool's list of programs")?;
    Ok(list
        .iter()
        .filter_map(|program| {
            Some((
                program["id"].as_u64()?,
                program["name"].as_str()?.to_owned(),
            ))
        })
        .collect())
}

/// "name:\t12 kB" of a text with one field a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(first_number)
}

fn first_number(text: &str) -> u64 {
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that fields are found by their whole name.
    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmRSSx:\t1 kB\nVmRSS:\t    5124 kB\nprog_id:\t77\n";
        assert_eq!(field(text, "VmRSS"), Some(5124));
        assert_eq!(field(text, "prog_id"), Some(77));
        assert_eq!(field(text, "run_cnt"), None);
    }

    /// Check that our own CPU time and memory can be read.
    #[test]
    fn a_process_can_be_measured() {
        let tgid = std::process::id();
        assert!(rss_bytes(tgid).unwrap() > 0);
        assert!(cpu_time(tgid).unwrap() > Duration::ZERO);
    }
}
