//! Gives up the privileges that profiling does not need, before any byte of another process is read.
//!
//! In:  the privileges we were started with, commonly all of root's
//! Out: [`NEEDED`] and nothing else, for the calling thread and all it starts, for good
//! Lost: nothing; what cannot be given up is said in the log
//!
//! | capability | without it |
//! |---|---|
//! | `CAP_BPF`, `CAP_PERFMON` | no program is loaded, no perf event opens |
//! | `CAP_SYS_PTRACE` | no memory, mappings or environment of another user's process |
//! | `CAP_DAC_READ_SEARCH` | no binaries or perf maps that only their owner may read |
//! | `CAP_CHECKPOINT_RESTORE` | no `/proc/PID/map_files`, so no symbols of replaced or removed binaries |
//! | `CAP_SYSLOG` | `/proc/kallsyms` hides addresses: kernel frames without names |
//! | `CAP_SYS_NICE`, only where the limits of priorities cannot be raised | ticks come late on a busy host |
//!
//! # What it is worth
//!
//! The user stays root, and root without capabilities still owns root's files. But a mistake in a parser
//! can no longer be talked into writing where only `CAP_DAC_OVERRIDE` leads, into signals, mounts,
//! modules or raw sockets, and neither we nor anything we would execute can get a privilege back
//! (bounding set, `no_new_privs`).
//!
//! # Why `CAP_SYS_ADMIN` is sometimes kept
//!
//! `CAP_CHECKPOINT_RESTORE` is of Linux 5.9; before, `map_files` asks for `CAP_SYS_ADMIN`. Some
//! distributions let perf events ask for it too, at `kernel.perf_event_paranoid` 3 and above. Both are
//! tried, with and without.

use std::fs::File;
use std::io;

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::worker::CAPTURE_NICE;
use crate::kernel::{raise_memory_limit, try_perf_event};
use crate::model::Pid;
use crate::process::{Mappings, patience};

/// What profiling needs, see above.
const NEEDED: [Capability; 6] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_CHECKPOINT_RESTORE,
    Capability::CAP_SYSLOG,
];

/// Keeps [`NEEDED`] and `also` as far as we have them, and gives up the rest. Call it before the first
/// other thread starts: privileges belong to threads, and new ones inherit them.
///
/// Refusals are logged, not returned: a sandbox that forbids to give up privileges is no reason not to
/// profile.
pub(super) fn restrict(also: &[Capability]) {
    if let Err(error) = try_restrict(also) {
        tracing::warn!("privileges that are not needed are kept: {error:#}");
    }
}

/// Runs `work` on a thread of its own, which gives up its privileges and with it all that it starts. The caller's
/// thread keeps its own, and waits.
pub(super) fn restricted<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            restrict(&[]);
            work()
        });
        match working.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn try_restrict(also: &[Capability]) -> Result<()> {
    let had = caps::read(None, CapSet::Permitted).context("failed to read capabilities")?;
    let mut wanted: CapsHashSet = NEEDED.into_iter().chain(also.iter().copied()).collect();
    // Once `CAP_SYS_RESOURCE` is gone it is too late.
    raise_memory_limit();
    if raise_priority_limits().is_err() {
        wanted.insert(Capability::CAP_SYS_NICE);
    }
    let mut kept: CapsHashSet = wanted.intersection(&had).copied().collect();
    if had.contains(&Capability::CAP_SYS_ADMIN) && needs_sys_admin(&kept)? {
        tracing::debug!("CAP_SYS_ADMIN is kept: this kernel asks for it");
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    // It would keep what this thread gives up.
    patience::end_deputy();
    keep(&kept)
}

/// Keeps these and nothing else, for a process that never needs more. Best effort, as above.
pub(super) fn keep_only(capabilities: &[Capability]) {
    if let Err(error) = keep(&capabilities.iter().copied().collect()) {
        tracing::warn!("privileges that are not needed are kept: {error:#}");
    }
}

fn keep(kept: &CapsHashSet) -> Result<()> {
    set_no_new_privs().context("failed to set no_new_privs")?;
    drop_bounding(kept);
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).with_context(|| format!("failed to clear the {set:?} set"))?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, kept).with_context(|| format!("failed to reduce the {set:?} set"))?;
    }
    Ok(())
}

/// Lets the thread that ticks raise its priority, for a moment even to real time, without
/// `CAP_SYS_NICE`.
fn raise_priority_limits() -> nix::Result<()> {
    // A limit of n allows nice values down to 20 - n, see setrlimit(2).
    raise_limit(
        Resource::RLIMIT_NICE,
        u64::from((20 - CAPTURE_NICE).unsigned_abs()),
    )?;
    raise_limit(Resource::RLIMIT_RTPRIO, 1)
}

fn raise_limit(resource: Resource, needed: u64) -> nix::Result<()> {
    let (soft, hard) = getrlimit(resource)?;
    if soft >= needed {
        return Ok(());
    }
    setrlimit(resource, needed, hard.max(needed))
}

/// Whether something that profiling does works with `CAP_SYS_ADMIN` only. Leaves either set effective.
fn needs_sys_admin(kept: &CapsHashSet) -> Result<bool> {
    let mut more = kept.clone();
    more.insert(Capability::CAP_SYS_ADMIN);
    let trials: [fn() -> io::Result<()>; 2] = [try_perf_event, try_map_files];
    for trial in trials {
        let works = |capabilities: &CapsHashSet| -> Result<bool> {
            caps::set(None, CapSet::Effective, capabilities)
                .context("failed to try fewer capabilities")?;
            Ok(trial().is_ok())
        };
        if !works(kept)? && works(&more)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens our own binary by its mapping: what is asked for does not depend on whose mapping it is,
/// <https://github.com/torvalds/linux/blob/v6.12/fs/proc/base.c#L2300>.
fn try_map_files() -> io::Result<()> {
    let pid = Pid(std::process::id());
    let mappings = Mappings::read(pid)?;
    let of_file = mappings.as_slice().iter().find(|mapping| mapping.is_file());
    let mapping = of_file.ok_or(io::ErrorKind::NotFound)?;
    File::open(mapping.file_path(pid)).map(drop)
}

/// What is not in this set cannot come back by executing a file that has it. Without `CAP_SETPCAP`
/// it stays as it is, and `no_new_privs` alone keeps that from happening.
fn drop_bounding(kept: &CapsHashSet) {
    let had = caps::read(None, CapSet::Bounding).unwrap_or_default();
    // The trials may have taken it out of the effective set.
    let may = caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP);
    let dropped = may.and_then(|()| {
        had.difference(kept)
            .try_for_each(|capability| caps::drop(None, CapSet::Bounding, *capability))
    });
    if let Err(error) = dropped {
        tracing::debug!(%error, "the bounding set stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a thread keeps what is needed, of what it had, and cannot get anything back.
    #[test]
    fn only_what_is_needed_is_left() {
        // Privileges belong to threads: this one's end with it.
        let restricted = std::thread::spawn(|| {
            let had = caps::read(None, CapSet::Permitted).unwrap();
            restrict(&[Capability::CAP_NET_BIND_SERVICE]);
            let kept = caps::read(None, CapSet::Permitted).unwrap();
            assert_eq!(kept, caps::read(None, CapSet::Effective).unwrap());
            assert!(kept.is_subset(&had));
            for capability in NEEDED.iter().chain(&[Capability::CAP_NET_BIND_SERVICE]) {
                assert_eq!(kept.contains(capability), had.contains(capability));
            }
            assert!(!kept.contains(&Capability::CAP_DAC_OVERRIDE));
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_MODULE).is_err());
            assert!(caps::read(None, CapSet::Inheritable).unwrap().is_empty());
            assert_eq!(nix::sys::prctl::get_no_new_privs(), Ok(true));
        });
        restricted.join().unwrap();
    }

    /// Check that a second call changes nothing and needs nothing.
    #[test]
    fn restricting_twice_is_restricting_once() {
        let restricted = std::thread::spawn(|| {
            try_restrict(&[]).unwrap();
            let once = caps::read(None, CapSet::Permitted).unwrap();
            try_restrict(&[Capability::CAP_NET_BIND_SERVICE]).unwrap();
            assert_eq!(once, caps::read(None, CapSet::Permitted).unwrap());
        });
        restricted.join().unwrap();
    }
}
