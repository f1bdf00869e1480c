//! What the programs cost: run counts and times (BPF statistics), verified instructions.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::Ebpf;
use aya::programs::Program;
use aya::sys::{Stats, enable_stats};

use crate::guard::RunTime;

/// Cost of one loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    /// Name of the program.
    pub name: String,
    /// Instructions the verifier walked, the measure it limits; `None` before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// Size of the translated program in bytes, if the kernel tells.
    pub translated_bytes: Option<u32>,
    /// Runs while statistics were on.
    pub run_count: u64,
    /// Time in those runs.
    pub run_time_ns: u64,
    /// Runs that the kernel left out because one was under way on the CPU, whether statistics are on or not.
    pub left_out: u64,
}

/// The hook whose left-out runs lose nothing. State changes come in interrupts as well, also in the middle of another
/// one; those it is hooked for are closes, which the daemon finds in another way, too.
const STATE_HOOKS: [&str; 2] = ["sock_state", "raw_sock_state"];

/// Statistics of all loaded programs, by name.
pub(super) fn program_stats(ebpf: &Ebpf) -> Vec<ProgramStats> {
    let mut stats: Vec<_> = ebpf
        .programs()
        .filter_map(|(name, program)| {
            // Only the loaded variant of each program has an info.
            let info = program.info().ok()?;
            Some(ProgramStats {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count(),
                translated_bytes: info.size_translated(),
                run_count: info.run_count(),
                run_time_ns: info.run_time().as_nanos() as u64,
                left_out: left_out(program).unwrap_or(0),
            })
        })
        .collect();
    stats.sort_by(|left, right| left.name.cmp(&right.name));
    stats
}

/// Programs that do nothing for threads without a tag, but for a look whether they have one.
const SAMPLING: [&str; 3] = ["sample_on_cpu", "sched_switch", "raw_sched_switch"];

/// Time in all runs of all loaded programs.
pub(super) fn run_time(ebpf: &Ebpf) -> RunTime {
    let mut run_time = RunTime::default();
    for (name, program) in ebpf.programs() {
        let Ok(info) = program.info() else {
            continue;
        };
        let ns = info.run_time().as_nanos() as u64;
        if SAMPLING.contains(&name) {
            run_time.sampling_ns += ns;
        } else {
            run_time.hooks_ns += ns;
        }
    }
    run_time
}

/// Runs of hooks that the kernel left out because one was under way on the CPU, for any process of the host.
pub(super) fn left_out_runs(ebpf: &Ebpf) -> u64 {
    let missed = ebpf
        .programs()
        .filter(|(name, _)| !STATE_HOOKS.contains(name))
        .filter_map(|(_, program)| left_out(program));
    missed.sum()
}

/// `recursion_misses` of a loaded program; `None` before Linux 5.12.
fn left_out(program: &Program) -> Option<u64> {
    let fd = program.fd().ok()?.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    parse_left_out(&info)
}

fn parse_left_out(info: &str) -> Option<u64> {
    let count = info
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))?;
    count.trim().parse().ok()
}

/// Counts runs and times of all BPF programs of the machine while the descriptor is open. Costs
/// about 20 ns per run: for measurements only.
///
/// # Errors
///
/// The kernel is older than 5.8, or we do not have `CAP_SYS_ADMIN`.
pub fn count_runs() -> std::io::Result<OwnedFd> {
    enable_stats(Stats::RunTime).map_err(|error| error.io_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the count is found among what the kernel tells of a program, and that old kernels tell none.
    #[test]
    fn runs_left_out_are_read_from_the_descriptor() {
        let info = "pos:\t0\nrun_cnt:\t0\nrecursion_misses:\t42\nverified_insns:\t7\n";
        assert_eq!(parse_left_out(info), Some(42));
        assert_eq!(parse_left_out("pos:\t0\nprog_type:\t26\n"), None);
    }
}
