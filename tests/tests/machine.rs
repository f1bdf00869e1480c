//! What every other privileged test takes for granted, on this machine and in the virtual ones: a test
//! that fails here explains the failures of the others.

use std::fs;
use std::net::{TcpListener, TcpStream};

use profiler_tests::needs_root;

/// Check that the kernel describes its types: all offsets of the BPF programs come from there.
#[test]
fn the_kernel_has_btf() {
    let btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    // Magic of a BTF header, little endian: include/uapi/linux/btf.h.
    assert_eq!(btf[..2], [0x9f, 0xeb]);
}

/// Check that a cpu-clock perf event opens on this thread, as on-CPU sampling needs.
#[test]
fn a_software_perf_event_opens() {
    needs_root!();
    // struct perf_event_attr of include/uapi/linux/perf_event.h, its first published size of 64 bytes:
    // type, size, config, sample_period; the rest zero.
    let mut attr = [0_u8; 64];
    attr[0..4].copy_from_slice(&1_u32.to_ne_bytes()); // PERF_TYPE_SOFTWARE
    attr[4..8].copy_from_slice(&64_u32.to_ne_bytes());
    attr[8..16].copy_from_slice(&0_u64.to_ne_bytes()); // PERF_COUNT_SW_CPU_CLOCK
    attr[16..24].copy_from_slice(&10_000_000_u64.to_ne_bytes()); // 10 ms
    // SAFETY: the kernel reads `size` bytes of `attr`, which it has.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: `fd` is ours and nobody else closes it.
    unsafe { libc::close(fd as i32) };
}

/// Check that servers of tests can be reached.
#[test]
fn loopback_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
}

/// Check that there is a CPython to profile.
#[test]
fn python_runs() {
    let output = std::process::Command::new("python3")
        .args(["-c", "import http.server, json, threading; print('ok')"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"ok\n", "{output:?}");
}
