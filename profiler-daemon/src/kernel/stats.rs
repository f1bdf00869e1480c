//! What the programs cost: run counts and times (BPF statistics), verified instructions.

use std::os::fd::OwnedFd;

use aya::Ebpf;
use aya::sys::{Stats, enable_stats};

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
}

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
            })
        })
        .collect();
    stats.sort_by(|left, right| left.name.cmp(&right.name));
    stats
}

/// Time in all runs of all loaded programs.
pub(super) fn run_time_ns(ebpf: &Ebpf) -> u64 {
    let infos = ebpf
        .programs()
        .filter_map(|(_, program)| program.info().ok());
    infos.map(|info| info.run_time().as_nanos() as u64).sum()
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
