//! What can keep the kernel side from working, each with what to do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::{EbpfError, util::KernelVersion};
use thiserror::Error;

use super::btf::BtfError;
use crate::limit::remedy;

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
        "the kernel refuses perf events ({source}): {}",
        remedy_or(source, PERF_EVENTS_REMEDY)
    )]
    PerfEvents {
        /// The cause.
        source: ProgramError,
    },
    /// The kernel refused to create a map.
    #[error(
        "the kernel refuses to create the BPF map {name} ({source}): {}",
        remedy_or(source, refusal_remedy(source))
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
    /// The kernel refused a program before its verifier had looked at it.
    #[error(
        "the kernel refuses to load the BPF program {name} ({source}): {}",
        remedy_or(source, refusal_remedy(source))
    )]
    ProgramRefused {
        /// Name of the program.
        name: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be loaded for another reason.
    #[error(
        "the BPF program {name} cannot be loaded: {source}{}",
        remedy_behind(source)
    )]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The cause.
        source: ProgramError,
    },
    /// A loaded program could not be attached.
    #[error(
        "the BPF program {name} cannot be attached to its hook: {source}{}",
        remedy_behind(source)
    )]
    Attach {
        /// Name of the program.
        name: &'static str,
        /// The cause.
        source: ProgramError,
    },
    /// The embedded object could not be loaded for another reason.
    #[error("the embedded BPF object cannot be loaded: {}{}", .0, remedy_behind(.0))]
    Object(#[source] EbpfError),
    /// The embedded object lacks a program or map; daemon and object do not fit each other.
    #[error("the embedded BPF object has no {0}")]
    Absent(&'static str),
    /// A map could not be read or written.
    #[error(
        "the BPF map {name} cannot be accessed: {source}{}",
        remedy_behind(source)
    )]
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

/// If it is no limit that keeps a perf event from being opened.
const PERF_EVENTS_REMEDY: &str = "give the process CAP_PERFMON; where `sysctl kernel.perf_event_paranoid` is 3 or 4, as \
    on Debian and Ubuntu, give it CAP_SYS_ADMIN or set that to 2; in a container its seccomp profile must allow \
    perf_event_open";

/// First kernel that counts maps and programs as memory of the control group, not as locked memory.
/// <https://github.com/torvalds/linux/commit/80ee81e0403c48f4eb342f7c8d40477c89b8836a>
const NO_LOCKED_MEMORY: KernelVersion = KernelVersion::new(5, 11, 0);

/// What to do when the kernel refuses maps and programs, but for a limit that the error names.
fn refusal_remedy(error: &io::Error) -> &'static str {
    let counts_locked = KernelVersion::current().is_ok_and(|version| version < NO_LOCKED_MEMORY);
    if counts_locked && error.raw_os_error() == Some(libc::EPERM) {
        "raise the limit of locked memory (systemd: LimitMEMLOCK=infinity; container: --ulimit memlock=-1; \
         shell: ulimit -l unlimited), which Linux before 5.11 counts them against; if that is high, check \
         capabilities and the container's seccomp profile, which must allow bpf"
    } else {
        "check capabilities, `sysctl kernel.unprivileged_bpf_disabled` and the container's seccomp profile, \
         which must allow bpf"
    }
}

/// What to do when the kernel refuses a perf event.
pub(super) fn perf_events_remedy(error: &io::Error) -> String {
    remedy_or(error, PERF_EVENTS_REMEDY)
}

fn remedy_or(error: &(dyn Error + 'static), otherwise: &str) -> String {
    remedy(error).unwrap_or_else(|| otherwise.to_owned())
}

fn remedy_behind(error: &(dyn Error + 'static)) -> String {
    remedy(error).map_or_else(String::new, |remedy| format!(": {remedy}"))
}

impl KernelError {
    /// A limit is reached, which another way of doing the same would meet as well.
    pub(super) fn is_limit(&self) -> bool {
        remedy(self).is_some()
    }

    /// Turns the error of loading one program into ours. A verifier's log can be megabytes long; what
    /// it stumbled over stands at the end.
    pub(super) fn from_program(name: &'static str, error: ProgramError) -> Self {
        const LOG_LINES: usize = 24;
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } if verifier_log.to_string().trim().is_empty() || remedy(&io_error).is_some() => {
                Self::ProgramRefused {
                    name,
                    source: io_error,
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a limit is blamed for what it causes and for nothing else, wherever it is met.
    #[test]
    fn the_limit_that_is_reached_is_named() {
        let io = io::Error::from_raw_os_error;
        let map = |errno| KernelError::MapCreation {
            name: "TAGS".to_owned(),
            source: io(errno),
        };
        let text = map(libc::EMFILE).to_string();
        assert!(
            text.contains("TAGS") && text.contains("LimitNOFILE"),
            "{text}"
        );
        assert!(
            !text.contains("locked") && !text.contains("seccomp"),
            "{text}"
        );
        assert!(map(libc::ENOMEM).to_string().contains("memory limit"));
        let text = map(libc::EPERM).to_string();
        assert!(
            text.contains("capabilities") && !text.contains("LimitNOFILE"),
            "{text}"
        );
        assert!(map(libc::ENFILE).is_limit() && !map(libc::EPERM).is_limit());

        let syscall = |errno| {
            ProgramError::SyscallError(aya::sys::SyscallError {
                call: "perf_event_open",
                io_error: io(errno),
            })
        };
        let perf = |errno| {
            KernelError::PerfEvents {
                source: syscall(errno),
            }
            .to_string()
        };
        assert!(
            perf(libc::EMFILE).contains("LimitNOFILE"),
            "{}",
            perf(libc::EMFILE)
        );
        assert!(perf(libc::EACCES).contains("perf_event_paranoid"));
        let attach = |errno| {
            KernelError::Attach {
                name: "x",
                source: syscall(errno),
            }
            .to_string()
        };
        assert!(attach(libc::EMFILE).contains("LimitNOFILE"));
        assert!(!attach(libc::EINVAL).contains("Limit"));
    }
}
