//! The limit of locked memory, which old kernels count BPF maps and programs against.

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// Lifts the limit for this process, which takes `CAP_SYS_RESOURCE` once; again later it takes nothing.
///
/// Before Linux 5.11 maps and programs count as locked memory. Later kernels need no limit, and some
/// containers refuse to raise it: not an error.
pub(crate) fn raise_memory_limit() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}
