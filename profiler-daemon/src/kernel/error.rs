//! What can keep the kernel side from working, each with what to do about it.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::{EbpfError, util::KernelVersion};
use thiserror::Error;

use super::btf::BtfError;

/// Oldest kernel that can work: the BPF ring buffer is of 5.8.
pub const MINIMUM_KERNEL: (u8, u8, u16) = (5, 8, 0);

/// Why the BPF programs cannot be loaded, attached or talked to.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The process lacks a capability.
    #[error(
        "missing capability {name}: run profilerd as root, or give it CAP_BPF, CAP_PERFMON and \
         CAP_SYS_PTRACE (in a container: securityContext.capabilities.add, or privileged)"
    )]
    MissingCapability {
        /// Name of the capability.
        name: &'static str,
    },
    /// The kernel does not describe its types.
    #[error(
        "the kernel offers no type information at {path} ({source}): use a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y, as distributions have been doing since 2020; in a container, mount \
         /sys from the host"
    )]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel's type information lacks something.
    #[error("the kernel's type information in {path} cannot be used: {source}")]
    BadBtf {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: BtfError,
    },
    /// The kernel is older than the oldest that can work.
    #[error("Linux {found} is too old: profilerd needs 5.8 or later (5.10 or later is tested)")]
    TooOld {
        /// Version of the running kernel.
        found: String,
    },
    /// The kernel or a security policy refuses perf events.
    #[error(
        "the kernel refuses perf events ({source}): give the process CAP_PERFMON or CAP_SYS_ADMIN, \
         check `sysctl kernel.perf_event_paranoid` (4 on some distributions refuses even root in \
         containers) and the container's seccomp profile, which must allow perf_event_open"
    )]
    PerfEvents {
        /// The cause.
        source: ProgramError,
    },
    /// The kernel refused to create a map.
    #[error(
        "the kernel refuses to create the BPF map {name} ({source}): before Linux 5.11, raise the \
         locked-memory limit (ulimit -l unlimited); otherwise check capabilities, \
         `sysctl kernel.unprivileged_bpf_disabled` and the container's seccomp profile, which must \
         allow bpf"
    )]
    MapCreation {
        /// Name of the map.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel refuses the BPF program {name} ({source}): please report it with the output of \
         `uname -a` and the end of the verifier's log:\n{log_tail}"
    )]
    Verifier {
        /// Name of the program.
        name: &'static str,
        /// The cause.
        source: io::Error,
        /// Last lines of the verifier's log.
        log_tail: String,
    },
    /// A program could not be loaded for another reason.
    #[error("the BPF program {name} cannot be loaded: {source}")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The cause.
        source: ProgramError,
    },
    /// A loaded program could not be attached.
    #[error("the BPF program {name} cannot be attached to its hook: {source}")]
    Attach {
        /// Name of the program.
        name: &'static str,
        /// The cause.
        source: ProgramError,
    },
    /// The embedded object could not be loaded for another reason.
    #[error("the embedded BPF object cannot be loaded: {0}")]
    Object(#[source] EbpfError),
    /// The embedded object lacks a program or map; daemon and object do not fit each other.
    #[error("the embedded BPF object has no {0}")]
    Absent(&'static str),
    /// A map could not be read or written.
    #[error("the BPF map {name} cannot be accessed: {source}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
    /// The number of CPUs is not known.
    #[error("the list of CPUs cannot be read from {path}: {source}")]
    Cpus {
        /// The file.
        path: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A task slot or period outside what the maps hold.
    #[error("{0}")]
    Argument(String),
}

impl KernelError {
    /// Turns the error of loading one program into ours. A verifier's log can be megabytes long; what
    /// it stumbled over stands at the end.
    pub(super) fn from_program(name: &'static str, error: ProgramError) -> Self {
        const LOG_LINES: usize = 24;
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let log = verifier_log.to_string();
                let mut tail: Vec<_> = log.lines().rev().take(LOG_LINES).collect();
                tail.reverse();
                Self::Verifier {
                    name,
                    source: io_error,
                    log_tail: tail.join("\n"),
                }
            }
            source => Self::Program { name, source },
        }
    }

    /// Turns aya's loading error into ours.
    pub(super) fn from_load(error: EbpfError) -> Self {
        match error {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => Self::MapCreation {
                name,
                source: io_error,
            },
            other => Self::Object(other),
        }
    }
}

/// Refuses kernels that cannot work.
///
/// # Errors
///
/// [`KernelError::TooOld`].
pub(super) fn check_kernel_version() -> Result<KernelVersion, KernelError> {
    let (major, minor, patch) = MINIMUM_KERNEL;
    let found = KernelVersion::current().map_err(|_| KernelError::TooOld {
        found: "of unknown version".to_owned(),
    })?;
    if found < KernelVersion::new(major, minor, patch) {
        return Err(KernelError::TooOld {
            found: found.to_string(),
        });
    }
    Ok(found)
}

/// Refuses a process that may not load BPF programs or open perf events.
///
/// # Errors
///
/// [`KernelError::MissingCapability`].
pub(super) fn check_capabilities() -> Result<(), KernelError> {
    use caps::{CapSet, Capability, has_cap};
    let has = |capability| has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if has(Capability::CAP_SYS_ADMIN) {
        return Ok(());
    }
    for (capability, name) in [
        (Capability::CAP_BPF, "CAP_BPF"),
        (Capability::CAP_PERFMON, "CAP_PERFMON"),
    ] {
        if !has(capability) {
            return Err(KernelError::MissingCapability { name });
        }
    }
    Ok(())
}
