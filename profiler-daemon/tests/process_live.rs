//! Processes of unusual shape are found and can be read.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod native_process;

use std::fs;

use native_process::{Program, wait_for};
use profiler_daemon::process::procfs::Procfs;
use profiler_daemon::process::{Mappings, ProcessMemory, ProcessTable, ReadMemory, Runtime};

/// Check that a process whose main thread has left by `pthread_exit` is listed with its program, ports and
/// runtime, that its memory and mappings can be read, and that it is gone when its last thread is.
#[test]
fn a_process_without_its_main_thread_is_there() {
    let program = Program::build("leaderless.c", &[]);
    let mut running = program.start(&[]);
    let pid = running.pid();
    let procfs = Procfs::default();
    wait_for("the main thread has left", || {
        procfs.stat(pid).unwrap().is_dead
    });
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/maps")).unwrap(), "");

    let mut table = ProcessTable::new(Vec::new());
    wait_for("the thread listens", || {
        table.scan().unwrap();
        table
            .get(pid)
            .is_some_and(|found| !found.listen_ports.is_empty())
    });
    let found = table.get(pid).unwrap();
    assert_eq!(found.exe.as_deref(), Some(&*program.path()));
    assert_eq!(found.runtime, Some(Runtime::Native));
    assert_eq!(found.identity.service.name, "leaderless");

    let mappings = Mappings::read(pid).unwrap();
    let code = mappings
        .as_slice()
        .iter()
        .find(|m| m.file_name() == "leaderless")
        .unwrap();
    let mut bytes = [0; 16];
    ProcessMemory::new(pid)
        .read_exact(code.start, &mut bytes)
        .unwrap();
    assert!(running.process().mappings.find(code.start).is_some());

    running.write_byte();
    wait_for("the process is gone", || {
        // Its parent, this program, has not asked for its end: all of its threads are dead now.
        (0..7).for_each(|_| drop(table.scan().unwrap()));
        table.get(pid).is_none()
    });
}
