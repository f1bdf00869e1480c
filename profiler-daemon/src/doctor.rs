//! Says what works on this machine and what does not, for `profilerd doctor` and before every start.
//!
//! In:  [`crate::kernel::probe`], and what else profiling needs: memory of other processes, symbols
//! Out: [`Finding`]s
//! Lost: nothing; what cannot be found out is a finding
//!
//! Things are tried where that is possible: version tables and settings say what should work, and
//! security modules and container runtimes have the last word.

use std::fs;
use std::os::linux::fs::MetadataExt;

use anyhow::{Result, bail};
use caps::{CapSet, Capability};

use crate::kernel;
use crate::model::Pid;
use crate::process::procfs::Procfs;
use crate::process::{ProcessMemory, ReadMemory};

/// Inode of the first pid namespace (`PROC_PID_INIT_INO`),
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/proc_ns.h#L45>.
const HOST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Name of the check.
    pub name: &'static str,
    /// It works.
    pub ok: bool,
    /// Nothing can be profiled without it.
    pub needed: bool,
    /// Result in words.
    pub detail: String,
    /// What to do about it; empty if it works.
    pub fix: String,
}

impl Finding {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            ok: true,
            needed: false,
            detail: detail.into(),
            fix: String::new(),
        }
    }

    fn bad(name: &'static str, detail: impl Into<String>, fix: &str) -> Self {
        Self {
            name,
            ok: false,
            needed: false,
            detail: detail.into(),
            fix: fix.to_owned(),
        }
    }

    /// Nothing can be profiled because of it.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.needed && !self.ok
    }

    /// The finding and what to do, on one line.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{}: {}; {}", self.name, self.detail, self.fix)
    }

    fn needed(self) -> Self {
        Self {
            needed: true,
            ..self
        }
    }
}

impl From<kernel::Check> for Finding {
    fn from(check: kernel::Check) -> Self {
        Self {
            name: check.name,
            ok: check.ok,
            needed: true,
            detail: check.detail,
            fix: check.fix,
        }
    }
}

/// Looks at everything; loads and attaches the BPF programs for an instant.
#[must_use]
pub fn examine() -> Vec<Finding> {
    let mut findings: Vec<Finding> = kernel::probe().into_iter().map(Finding::from).collect();
    findings.push(foreign_memory());
    findings.push(kernel_symbols());
    findings.push(pid_namespace());
    findings.extend(lockdown());
    findings
}

/// Refuses to start where nothing could be captured. It takes no time: whether the programs load is
/// found out when they are loaded.
///
/// # Errors
///
/// Names all that is missing, each with what to do.
pub fn require() -> Result<()> {
    let missing: Vec<String> = missing()
        .iter()
        .map(|finding| {
            format!(
                "\n  {}: {}\n    {}",
                finding.name, finding.detail, finding.fix
            )
        })
        .collect();
    if !missing.is_empty() {
        bail!(
            "nothing can be profiled on this machine yet:{}",
            missing.concat()
        );
    }
    Ok(())
}

/// What is missing for profiling, as far as that can be found out in no time.
#[must_use]
pub fn missing() -> Vec<Finding> {
    let quick = kernel::probe_quickly().into_iter().map(Finding::from);
    let all = quick.chain([foreign_memory(), pid_namespace()]);
    all.filter(Finding::is_missing).collect()
}

/// Stacks and interpreters are read from other processes. Tried on process 1 or our parent, since Yama
/// and seccomp refuse what capabilities allow.
fn foreign_memory() -> Finding {
    const NAME: &str = "memory of other processes";
    let has_capability =
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap_or(false);
    if !has_capability {
        let fix = "run profilerd as root, or give it CAP_SYS_PTRACE (in a container: \
                   securityContext.capabilities.add)";
        return Finding::bad(NAME, "missing capability CAP_SYS_PTRACE", fix).needed();
    }
    let procfs = Procfs::default();
    let parent = Pid(std::os::unix::process::parent_id());
    let candidates = [Pid(1), parent]
        .into_iter()
        .filter(|pid| pid.0 != std::process::id());
    // A process that may not be read, such as one of an outer user namespace, shows 0.
    let shown = |pid| procfs.stat(pid).map_or(0, |stat| stat.start_stack);
    let Some((pid, stack)) = candidates
        .map(|pid| (pid, shown(pid)))
        .find(|&(_, stack)| stack != 0)
    else {
        return Finding::good(NAME, "CAP_SYS_PTRACE; there is no process to try it on").needed();
    };
    match ProcessMemory::new(pid).read_u64(stack & !7) {
        Ok(_) => {
            Finding::good(NAME, format!("CAP_SYS_PTRACE; reading process {pid} works")).needed()
        }
        Err(error) => {
            let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
            let scope = scope.map_or_else(|_| "absent".to_owned(), |text| text.trim().to_owned());
            Finding::bad(
                NAME,
                format!("process {pid} cannot be read: {error}; kernel.yama.ptrace_scope is {scope}"),
                "set kernel.yama.ptrace_scope below 3, and let the container's seccomp profile allow \
                 process_vm_readv",
            )
            .needed()
        }
    }
}

/// Without them kernel frames have no names.
fn kernel_symbols() -> Finding {
    const NAME: &str = "kernel symbols";
    const PATH: &str = "/proc/kallsyms";
    let fix = "give profilerd CAP_SYSLOG, and set kernel.kptr_restrict to 0 or 1; until then kernel \
               frames have no names";
    let first = fs::File::open(PATH).and_then(|file| {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::with_capacity(256, file), &mut line)?;
        Ok(line)
    });
    // Without the privilege addresses are shown as zeros; a per-CPU symbol may be first, at 0.
    let hidden = || {
        let restrict = fs::read_to_string("/proc/sys/kernel/kptr_restrict");
        let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYSLOG).unwrap_or(false);
        restrict.is_ok_and(|text| text.trim() == "2" || (text.trim() == "1" && !may))
    };
    match first {
        Ok(line) if line.is_empty() => Finding::bad(NAME, format!("{PATH} is empty"), fix),
        Ok(_) if hidden() => Finding::bad(NAME, format!("{PATH} hides addresses"), fix),
        Ok(_) => Finding::good(NAME, PATH),
        Err(error) => Finding::bad(NAME, format!("{PATH} cannot be read: {error}"), fix),
    }
}

/// The kernel reports process ids of the host; in a container's own namespace they name other processes or
/// none, so no request would ever be found to belong to one that is seen there.
fn pid_namespace() -> Finding {
    pid_namespace_of(fs::metadata("/proc/self/ns/pid").map(|metadata| metadata.st_ino()))
}

fn pid_namespace_of(inode: std::io::Result<u64>) -> Finding {
    const NAME: &str = "host's process ids";
    match inode {
        Ok(HOST_PID_NAMESPACE) => Finding::good(NAME, "in the host's pid namespace"),
        Ok(_) => Finding::bad(
            NAME,
            "in a pid namespace of its own: the kernel reports process ids of the host, so no request \
             would be seen",
            "run the container with the host's pid namespace (Kubernetes hostPID: true, docker \
             --pid=host); a host that is itself a container cannot have its processes profiled from inside",
        ),
        Err(error) => Finding::bad(NAME, format!("unknown: {error}"), "mount /proc"),
    }
    .needed()
}

/// Why nothing here can be profiled although the processes are seen, if that is so.
#[must_use]
pub fn foreign_pid_namespace() -> Option<String> {
    let finding = pid_namespace();
    (!finding.ok).then(|| format!("{}; {}", finding.detail, finding.fix))
}

/// `none [integrity] confidentiality`; the file is absent without the security module.
fn lockdown() -> Option<Finding> {
    const NAME: &str = "kernel lockdown";
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let mode = lockdown_mode(&text);
    Some(if mode == "confidentiality" {
        Finding::bad(
            NAME,
            mode,
            "start the kernel with lockdown=integrity or none: confidentiality forbids BPF programs \
             to read memory",
        )
        .needed()
    } else {
        Finding::good(NAME, mode)
    })
}

fn lockdown_mode(text: &str) -> &str {
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or("unknown", |(mode, _)| mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that every bad finding says what to do, and that scripts know its name from the documentation.
    #[test]
    fn what_is_bad_has_a_fix() {
        let page = include_str!("../../docs/operations.md");
        for finding in examine() {
            let row = format!("| `{}` |", finding.name);
            assert!(page.contains(&row), "{finding:?} is not documented");
            assert!(!finding.detail.is_empty(), "{finding:?}");
            assert_eq!(finding.ok, finding.fix.is_empty(), "{finding:?}");
        }
    }

    /// Check that a pid namespace of its own is a reason not to start, and says what to do.
    #[test]
    fn a_pid_namespace_of_its_own_is_fatal() {
        assert!(pid_namespace_of(Ok(HOST_PID_NAMESPACE)).ok);
        let own = pid_namespace_of(Ok(4_026_532_000));
        assert!(own.needed && !own.ok, "{own:?}");
        assert!(own.fix.contains("hostPID: true"), "{own:?}");
        assert!(pid_namespace_of(Err(std::io::Error::other("x"))).needed);
    }

    /// Check that the chosen mode is read.
    #[test]
    fn the_chosen_lockdown_mode_is_read() {
        assert_eq!(
            lockdown_mode("none [integrity] confidentiality\n"),
            "integrity"
        );
        assert_eq!(lockdown_mode("nonsense"), "unknown");
    }
}
