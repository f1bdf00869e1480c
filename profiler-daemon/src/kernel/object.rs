//! The embedded BPF object: loading it with what the running kernel needs, and its programs.
//!
//! In:  the object built by `build.rs`, the kernel's BTF
//! Out: an [`Ebpf`] with all maps created and one program loaded per hook, and which hooks see requests
//!
//! # Why two programs per tracepoint
//!
//! `tp_btf` programs read kernel arguments directly, `raw_tp` programs through a helper. Both are
//! in the object; the second is loaded only where the kernel refuses the first.

use std::fs;
use std::path::PathBuf;

use aya::programs::{
    BtfTracePoint, PerfEvent, Program, ProgramError, RawTracePoint, perf_event::PerfEventLink,
    raw_trace_point::RawTracePointLink, tp_btf::BtfTracePointLink,
};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use profiler_common::{KernelOffsets, Settings, setting_flag};

use super::btf::KernelTypes;
use super::error::{KernelError, check_capabilities, check_kernel_version};
use super::memory_limit::raise_memory_limit;
use super::offsets::kernel_offsets;
use crate::limit::raise_open_files;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/profiler-ebpf"));

/// The kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The program of the perf events.
pub(super) const SAMPLE_PROGRAM: &str = "sample_on_cpu";

/// Where threads leave and enter their CPUs.
const SWITCH_TRACEPOINT: &str = "sched_switch";

/// A tracepoint and its two programs.
pub(super) struct Hook {
    /// The `tp_btf` program.
    program: &'static str,
    /// The `raw_tp` program.
    raw_program: &'static str,
    /// Name of the tracepoint.
    tracepoint: &'static str,
}

/// What watches processes and threads, and cleans up. Attached in this order.
const PROCESS_HOOKS: &[Hook] = &[
    Hook {
        program: "process_exit",
        raw_program: "raw_exit",
        tracepoint: "sched_process_exit",
    },
    Hook {
        program: "process_exec",
        raw_program: "raw_exec",
        tracepoint: "sched_process_exec",
    },
    Hook {
        program: "process_fork",
        raw_program: "raw_fork",
        tracepoint: "sched_process_fork",
    },
    Hook {
        program: "sched_switch",
        raw_program: "raw_switch",
        tracepoint: SWITCH_TRACEPOINT,
    },
];

/// Those that are wanted: threads are followed to be sampled.
fn process_hooks(sees_only: bool) -> impl Iterator<Item = &'static Hook> {
    let hooks = PROCESS_HOOKS.iter();
    hooks.filter(move |hook| !sees_only || hook.tracepoint != SWITCH_TRACEPOINT)
}

/// What sees requests where the kernel tells of each use of a socket (Linux 6.4).
const SOCKET_HOOKS: &[Hook] = &[
    Hook {
        program: "sock_state",
        raw_program: "raw_sock_state",
        tracepoint: "inet_sock_set_state",
    },
    Hook {
        program: "sock_send",
        raw_program: "raw_sock_send",
        tracepoint: "sock_send_length",
    },
    Hook {
        program: "sock_recv",
        raw_program: "raw_sock_recv",
        tracepoint: "sock_recv_length",
    },
];

/// What sees requests elsewhere, at the price of a slower path for every system call of the machine.
const SYSTEM_CALL_HOOKS: &[Hook] = &[Hook {
    program: "sys_exit",
    raw_program: "raw_sys_exit",
    tracepoint: "sys_exit",
}];

/// Where requests are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestHooks {
    /// At tracepoints on sockets (Linux 6.4).
    Sockets,
    /// At the end of every system call.
    SystemCalls,
}

impl RequestHooks {
    /// In the order they are attached; the last one opens requests.
    const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Sockets => SOCKET_HOOKS,
            Self::SystemCalls => SYSTEM_CALL_HOOKS,
        }
    }

    /// All hooks but the last, which is attached when everything else is: from then on threads get tags,
    /// and what clears them must be in place.
    pub(super) fn in_order(
        self,
        sees_only: bool,
    ) -> (impl Iterator<Item = &'static Hook>, &'static Hook) {
        let (opening, others) = self.hooks().split_last().expect("no list is empty");
        (process_hooks(sees_only).chain(others), opening)
    }
}

impl std::fmt::Display for RequestHooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sockets => "sockets",
            Self::SystemCalls => "system calls",
        })
    }
}

/// How the kernel side is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The kernel's type information, by default [`BTF_PATH`].
    pub btf_path: PathBuf,
    /// Size of the `REQUESTS` ring in bytes, a power of two of at least a page. 1 MiB holds the
    /// starts of 250 requests with heads of 4 KiB.
    pub request_ring_bytes: u32,
    /// Size of the `SAMPLES` ring in bytes, a power of two of at least a page. 4 MiB holds 200
    /// samples of the largest size, 2 s of one thread at 100 Hz.
    pub sample_ring_bytes: u32,
    /// Unread bytes in `SAMPLES` that wake a sleeping reader. Below it the ring's descriptor stays
    /// silent and the reader is expected to drain at every dump period; 0 wakes for every sample.
    pub sample_wakeup_bytes: u32,
    /// See requests, and sample nothing: neither the clocks nor the hook on `sched_switch` are loaded, and no thread is
    /// tagged. A request that is not answered when its thread ends goes on until its connection is closed.
    pub sees_only: bool,
    /// Forward the programs' log records; costs a ring and is for developers.
    pub log: bool,
    /// Load the `raw_tp` programs even where `tp_btf` works; for tests.
    pub prefer_raw: bool,
    /// See requests at the end of system calls even where sockets can be hooked; for tests.
    pub prefer_sys_exit: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            btf_path: PathBuf::from(BTF_PATH),
            request_ring_bytes: 1 << 20,
            sample_ring_bytes: 4 << 20,
            sample_wakeup_bytes: 1 << 20,
            sees_only: false,
            log: false,
            prefer_raw: false,
            prefer_sys_exit: false,
        }
    }
}

/// Creates the maps and loads the programs; attaches nothing.
///
/// Requests are seen at sockets where the kernel has the tracepoints and takes the programs.
///
/// # Errors
///
/// Any of [`KernelError`] about privileges, kernel version, BTF, maps and programs.
pub(super) fn load(options: &LoadOptions) -> Result<(Ebpf, RequestHooks), KernelError> {
    check_kernel_version()?;
    check_capabilities()?;
    raise_memory_limit();
    raise_open_files();

    let path = &options.btf_path;
    let bytes = fs::read(path).map_err(|source| KernelError::NoBtf {
        path: path.clone(),
        source,
    })?;
    let (offsets, flags) = KernelTypes::parse(&bytes)
        .and_then(|types| kernel_offsets(&types))
        .map_err(|source| KernelError::BadBtf {
            path: path.clone(),
            source,
        })?;
    let btf = Btf::parse(&bytes, Endianness::default())
        .map_err(|error| KernelError::Object(error.into()))?;
    drop(bytes);

    if flags & setting_flag::SOCKET_HOOKS != 0 && !options.prefer_sys_exit {
        let hooks = RequestHooks::Sockets;
        match load_programs(options, &btf, &offsets, flags, hooks) {
            Ok(ebpf) => return Ok((ebpf, hooks)),
            Err(error) if error.is_limit() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "sockets cannot be hooked, so requests are detected at every system call of the host (hook sys_exit)")
            }
        }
    }
    let hooks = RequestHooks::SystemCalls;
    let flags = flags & !setting_flag::SOCKET_HOOKS;
    let ebpf = load_programs(options, &btf, &offsets, flags, hooks)?;
    Ok((ebpf, hooks))
}

fn load_programs(
    options: &LoadOptions,
    btf: &Btf,
    offsets: &KernelOffsets,
    flags: u32,
    request_hooks: RequestHooks,
) -> Result<Ebpf, KernelError> {
    let tags = if options.sees_only {
        setting_flag::NO_TAGS
    } else {
        0
    };
    let settings = Settings {
        flags: flags | tags,
        sample_wakeup_bytes: options.sample_wakeup_bytes,
    };
    let log_level: u8 = if options.log { u8::MAX } else { 0 };
    let mut ebpf = EbpfLoader::new()
        .btf(Some(btf))
        .override_global("OFFSETS", offsets, true)
        .override_global("SETTINGS", &settings, true)
        .override_global(aya_log::LEVEL, &log_level, false)
        .map_max_entries("REQUESTS", options.request_ring_bytes)
        .map_max_entries("SAMPLES", options.sample_ring_bytes)
        .load(OBJECT)
        .map_err(KernelError::from_load)?;
    for hook in process_hooks(options.sees_only).chain(request_hooks.hooks()) {
        load_hook(&mut ebpf, hook, btf, options.prefer_raw)?;
    }
    if !options.sees_only {
        let program: &mut PerfEvent = program(&mut ebpf, SAMPLE_PROGRAM)?;
        program
            .load()
            .map_err(|error| KernelError::from_program(SAMPLE_PROGRAM, error))?;
    }
    Ok(ebpf)
}

fn load_hook(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf, prefer_raw: bool) -> Result<(), KernelError> {
    let mut refusal = None;
    if !prefer_raw {
        let program: &mut BtfTracePoint = program(ebpf, hook.program)?;
        match program.load(hook.tracepoint, btf) {
            Ok(()) => return Ok(()),
            Err(error) => refusal = Some(error),
        }
    }
    let program: &mut RawTracePoint = program(ebpf, hook.raw_program)?;
    program
        .load()
        .map_err(|error| KernelError::from_program(hook.program, refusal.unwrap_or(error)))
}

/// An attached program; detached when dropped. Held by file descriptor only: nothing is pinned,
/// so the kernel detaches everything when the process dies.
#[expect(dead_code, reason = "held to be dropped")]
pub(super) enum Link {
    Btf(BtfTracePointLink),
    Raw(RawTracePointLink),
    PerfEvent(PerfEventLink),
}

/// Attaches whichever program of a hook is loaded.
///
/// # Errors
///
/// [`KernelError::Attach`].
pub(super) fn attach_hook(ebpf: &mut Ebpf, hook: &Hook) -> Result<Link, KernelError> {
    let failed = |source| KernelError::Attach {
        name: hook.program,
        source,
    };
    let tracing: &mut BtfTracePoint = program(ebpf, hook.program)?;
    if tracing.fd().is_ok() {
        let id = tracing.attach().map_err(failed)?;
        return tracing.take_link(id).map(Link::Btf).map_err(failed);
    }
    let raw: &mut RawTracePoint = program(ebpf, hook.raw_program)?;
    let id = raw.attach(hook.tracepoint).map_err(failed)?;
    raw.take_link(id).map(Link::Raw).map_err(failed)
}

/// A program by name and type.
pub(super) fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(KernelError::Absent(name))?
        .try_into()
        .map_err(|source| KernelError::Program { name, source })
}
