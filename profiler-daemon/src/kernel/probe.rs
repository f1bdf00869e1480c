//! Finds out what works on this machine, for `profilerd doctor`: by trying, not by version tables.

use std::fs;
use std::time::{Duration, Instant};

use super::error::{
    KernelError, MINIMUM_KERNEL, check_capabilities, check_kernel_version, perf_events_remedy,
};
use super::object::{BTF_PATH, LoadOptions};
use super::{Kernel, KernelTypes, try_perf_event};

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name of the check.
    pub name: &'static str,
    /// It works.
    pub ok: bool,
    /// Result in words.
    pub detail: String,
    /// What to do about it; empty if it works.
    pub fix: String,
}

impl Check {
    fn passed(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            ok: true,
            detail: detail.into(),
            fix: String::new(),
        }
    }

    /// A failed check whose error text says what to do after a colon.
    fn failed(name: &'static str, error: &dyn std::error::Error) -> Self {
        let text = error.to_string();
        let (detail, fix) = text.split_once(": ").unwrap_or((&text, ""));
        Self {
            name,
            ok: false,
            detail: detail.to_owned(),
            fix: fix.to_owned(),
        }
    }
}

/// Checks what takes no time: kernel version, privileges, type information, perf events.
#[must_use]
pub fn probe_quickly() -> Vec<Check> {
    vec![
        kernel_version(),
        capabilities(),
        type_information(),
        perf_events(),
    ]
}

/// Does [`probe_quickly`], and finally loads and attaches the programs for an instant. Later checks
/// that depend on a failed one are left out.
#[must_use]
pub fn probe() -> Vec<Check> {
    let mut checks = probe_quickly();
    checks.push(perf_event_paranoid());
    if checks.iter().all(|check| check.ok) {
        let (programs, hooks) = programs();
        checks.push(programs);
        checks.extend(hooks);
    }
    checks
}

fn kernel_version() -> Check {
    const NAME: &str = "kernel version";
    let (major, minor, _) = MINIMUM_KERNEL;
    match check_kernel_version() {
        Ok(version) => Check::passed(NAME, format!("{version}, at least {major}.{minor} needed")),
        Err(error) => Check::failed(NAME, &error),
    }
}

fn capabilities() -> Check {
    const NAME: &str = "privileges";
    match check_capabilities() {
        Ok(()) => Check::passed(NAME, "CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON"),
        Err(error) => Check::failed(NAME, &error),
    }
}

fn type_information() -> Check {
    const NAME: &str = "kernel type information (BTF)";
    let read = fs::read(BTF_PATH).map_err(|source| KernelError::NoBtf {
        path: BTF_PATH.into(),
        source,
    });
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => return Check::failed(NAME, &error),
    };
    let found = KernelTypes::parse(&bytes).and_then(|types| super::offsets::kernel_offsets(&types));
    match found {
        Ok(_) => Check::passed(NAME, format!("{BTF_PATH}, {} KiB", bytes.len() / 1024)),
        Err(source) => Check::failed(
            NAME,
            &KernelError::BadBtf {
                path: BTF_PATH.into(),
                source,
            },
        ),
    }
}

/// Capabilities do not tell: distributions, security modules and seccomp refuse them as well.
fn perf_events() -> Check {
    const NAME: &str = "perf events";
    match try_perf_event() {
        Ok(()) => Check::passed(NAME, "one was opened for an instant"),
        Err(error) => Check {
            name: NAME,
            ok: false,
            detail: format!("the kernel refuses them: {error}"),
            fix: perf_events_remedy(&error),
        },
    }
}

/// Informative: what counts is whether the perf events open, which is tried.
fn perf_event_paranoid() -> Check {
    const NAME: &str = "kernel.perf_event_paranoid";
    const PATH: &str = "/proc/sys/kernel/perf_event_paranoid";
    match fs::read_to_string(PATH) {
        Ok(value) => Check::passed(NAME, value.trim()),
        Err(error) => Check {
            name: NAME,
            ok: false,
            detail: format!("{PATH} cannot be read: {error}"),
            fix: "use a kernel with CONFIG_PERF_EVENTS=y, and mount /proc".to_owned(),
        },
    }
}

fn programs() -> (Check, Option<Check>) {
    const LOAD: &str = "BPF programs and maps";
    const ATTACH: &str = "hooks and perf events";
    let begin = Instant::now();
    let mut kernel = match Kernel::load(&LoadOptions::default()) {
        Ok(kernel) => kernel,
        Err(error) => return (Check::failed(LOAD, &error), None),
    };
    let loaded = Check::passed(
        LOAD,
        format!(
            "{} programs loaded in {} ms; requests are seen at {}",
            kernel.program_stats().len(),
            begin.elapsed().as_millis(),
            kernel.request_hooks()
        ),
    );
    let begin = Instant::now();
    // No process is a target yet, so the programs see nothing that concerns them.
    let attached = match kernel.attach(Duration::from_secs(1)) {
        Ok(_) => Check::passed(
            ATTACH,
            format!("attached in {} ms", begin.elapsed().as_millis()),
        ),
        Err(error) => Check::failed(ATTACH, &error),
    };
    (loaded, Some(attached))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a failed check separates what is wrong from what to do.
    #[test]
    fn a_failed_check_says_what_to_do() {
        let check = Check::failed("x", &KernelError::MissingCapability { name: "CAP_BPF" });
        assert!(!check.ok);
        assert_eq!(check.detail, "missing capability CAP_BPF");
        assert!(check.fix.starts_with("run profilerd as root"));
    }
}
