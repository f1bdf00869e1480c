//! What a thread is in while it is in the kernel, as one frame: the system call, a page fault, a wait
//! for a CPU or for a signal.
//!
//! In:  names of the kernel's frames; the number of the system call from the thread's registers
//! Out: [`Activity`]
//! Lost: where the kernel hides its symbols, a page fault and a wait for a CPU look alike on a thread
//!       that is off its CPU: `[kernel]`
//!
//! # Which source
//! The registers with which a thread entered the kernel hold the number of the system call on x86_64. It is
//! known without symbols, and where the compiler has turned the call of `__x64_sys_read` into a jump.
//! aarch64 keeps no such word, so the names have to tell.

use std::fmt;

use super::call_name::name_of;

/// Prefixes of a system call's entry function, on both architectures.
/// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/include/asm/syscall_wrapper.h#L52>
const CALL_PREFIXES: &[&str] = &[
    "__x64_sys_",
    "__arm64_sys_",
    "__ia32_sys_",
    "__ia32_compat_sys_",
    "__arm64_compat_sys_",
    "__se_sys_",
    "__do_sys_",
];
/// Functions of the page fault's way into the kernel, x86_64 (5.10 and later) and aarch64.
const FAULTS: &[&str] = &[
    "asm_exc_page_fault",
    "exc_page_fault",
    "do_user_addr_fault",
    "handle_mm_fault",
    "do_page_fault",
    "do_mem_abort",
    "el0_da",
    "el0_ia",
];
/// Functions in which a signal or a debugger holds a thread.
const STOPS: &[&str] = &[
    "do_signal_stop",
    "ptrace_stop",
    "do_jobctl_trap",
    "do_freezer_trap",
];
/// Functions in which a thread leaves its CPU.
const SWITCHES: &[&str] = &["schedule", "__schedule", "preempt_schedule_irq"];

/// What a thread does in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A system call, by name or number.
    SystemCall(String),
    /// A page is being brought in.
    PageFault,
    /// A signal or a debugger holds it.
    Stopped,
    /// It could run, and another thread does.
    WaitingForCpu,
    /// In the kernel, for a reason that is not known.
    Kernel,
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SystemCall(name) => write!(f, "{CALL}{name}]"),
            Self::PageFault => f.write_str(PAGE_FAULT),
            Self::Stopped => f.write_str(STOPPED),
            Self::WaitingForCpu => f.write_str(WAITING),
            Self::Kernel => f.write_str(KERNEL),
        }
    }
}

const CALL: &str = "[system call ";
const PAGE_FAULT: &str = "[page fault]";
const STOPPED: &str = "[stopped by a signal]";
const WAITING: &str = "[waiting for a CPU]";
const KERNEL: &str = "[in the kernel]";

/// Whether a signature is one of [`Activity`].
#[must_use]
pub fn is_activity(signature: &str) -> bool {
    is_system_call(signature) || [PAGE_FAULT, STOPPED, WAITING, KERNEL].contains(&signature)
}

/// Whether a signature is that of a system call.
#[must_use]
pub fn is_system_call(signature: &str) -> bool {
    signature.starts_with(CALL)
}

/// What a thread is in by its kernel frames, `name [kernel]` or `name [module]`, innermost first; `None`
/// if it is not in the kernel.
#[must_use]
pub fn of_kernel_frames(frames: &[&str]) -> Option<Activity> {
    of_thread(frames, None, false)
}

/// What a thread is in by all that is known: its kernel frames, the number of its system call, and whether
/// it is off its CPU.
#[must_use]
pub fn of_thread(frames: &[&str], call: Option<u32>, is_off_cpu: bool) -> Option<Activity> {
    if frames.is_empty() && !is_off_cpu {
        return None;
    }
    let names: Vec<&str> = frames
        .iter()
        .map(|frame| frame.split(' ').next().unwrap_or_default())
        .collect();
    // From the root: a page fault inside a system call is the system call's.
    let call_name = names.iter().rev().find_map(|name| {
        let prefixes = CALL_PREFIXES.iter();
        prefixes
            .clone()
            .find_map(|prefix| name.strip_prefix(prefix))
    });
    if let Some(name) = call_name {
        return Some(Activity::SystemCall(name.to_owned()));
    }
    if let Some(number) = call {
        let name = name_of(number).map_or_else(|| number.to_string(), str::to_owned);
        return Some(Activity::SystemCall(name));
    }
    let has = |known: &[&str]| names.iter().any(|name| known.contains(name));
    Some(if has(FAULTS) {
        Activity::PageFault
    } else if has(STOPS) {
        Activity::Stopped
    } else if has(SWITCHES) {
        // It was in neither, so it did not ask to sleep.
        Activity::WaitingForCpu
    } else {
        Activity::Kernel
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(frames: &[&str], call: Option<u32>, is_off_cpu: bool) -> String {
        let frames: Vec<String> = frames.iter().map(|f| format!("{f} [kernel]")).collect();
        let frames: Vec<&str> = frames.iter().map(String::as_str).collect();
        of_thread(&frames, call, is_off_cpu).map_or_else(String::new, |a| a.to_string())
    }

    /// Check what kernel stacks of both architectures say, the outermost reason winning.
    #[test]
    fn kernel_frames_tell_what_a_thread_is_in() {
        for (frames, expected) in [
            (
                &[
                    "__schedule",
                    "schedule",
                    "do_nanosleep",
                    "__x64_sys_clock_nanosleep",
                    "do_syscall_64",
                ][..],
                "[system call clock_nanosleep]",
            ),
            (
                &[
                    "futex_wait",
                    "do_futex",
                    "__arm64_sys_futex",
                    "invoke_syscall",
                    "el0_svc",
                ],
                "[system call futex]",
            ),
            (
                &[
                    "do_user_addr_fault",
                    "asm_exc_page_fault",
                    "_copy_to_iter",
                    "__x64_sys_recvfrom",
                ],
                "[system call recvfrom]",
            ),
            (
                &[
                    "clear_page_erms",
                    "handle_mm_fault",
                    "exc_page_fault",
                    "asm_exc_page_fault",
                ],
                "[page fault]",
            ),
            (
                &[
                    "__schedule",
                    "handle_mm_fault",
                    "do_page_fault",
                    "do_mem_abort",
                    "el0_da",
                ],
                "[page fault]",
            ),
            (
                &[
                    "__schedule",
                    "schedule",
                    "irqentry_exit_to_user_mode",
                    "asm_sysvec_apic_timer_interrupt",
                ],
                "[waiting for a CPU]",
            ),
            (
                &["__schedule", "do_signal_stop", "get_signal"],
                "[stopped by a signal]",
            ),
            (
                &["task_work_run", "exit_to_user_mode_loop"],
                "[in the kernel]",
            ),
        ] {
            assert_eq!(told(frames, None, true), expected);
        }
        assert_eq!(told(&[], None, false), "", "in user code");
    }

    /// Check that without names the number of the call tells, and an unknown number is shown as it is.
    #[test]
    fn the_number_tells_where_names_are_hidden() {
        let read = Some(libc::SYS_read as u32);
        let hidden = ["[kernel]", "[kernel]"];
        let told = |call, is_off_cpu| of_thread(&hidden, call, is_off_cpu).unwrap().to_string();
        assert_eq!(told(read, true), "[system call read]");
        assert_eq!(told(Some(100_000), false), "[system call 100000]");
        assert_eq!(told(None, true), "[in the kernel]");
        // Kernel stacks of threads that switch all the time are not stored.
        assert_eq!(
            of_thread(&[], read, true).unwrap().to_string(),
            "[system call read]"
        );
        assert_eq!(
            of_thread(&["ksys_read [kernel]"], read, false)
                .unwrap()
                .to_string(),
            "[system call read]"
        );
    }
}
