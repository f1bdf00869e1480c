//! What the running daemon is still allowed to do, and that profiling needs no more than that.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use profiler_tests::{
    ChildGuard, LocalServer, free_port, needs_root, profilerd, read_json, wait_until,
    workspace_root,
};

const DEADLINE: Duration = Duration::from_secs(30);
/// A user who owns nothing of root's: `nobody`.
const OTHER_USER: u32 = 65534;
/// Bits of include/uapi/linux/capability.h: `DAC_READ_SEARCH`, `SYS_PTRACE`, `SYSLOG`, `PERFMON`, `BPF`,
/// `CHECKPOINT_RESTORE`.
const NEEDED: u64 = 1 << 2 | 1 << 19 | 1 << 34 | 1 << 38 | 1 << 39 | 1 << 40;
/// `SYS_ADMIN`, which some kernels ask for, and `SYS_NICE`, which some containers do.
const POSSIBLE: u64 = 1 << 21 | 1 << 23;

/// Check that every thread of the daemon has the needed capabilities and none besides, can get nothing
/// back, and that the thread that ticks comes before ordinary ones.
#[test]
fn the_daemon_keeps_only_what_it_needs() {
    needs_root!();
    let port = free_port().unwrap();
    let mut command = Command::new(profilerd());
    let listen = format!("127.0.0.1:{port}");
    command.args(["standalone", "--listen", &listen, "--http-listen", "off"]);
    command.args(["--data-dir", ":memory:", "--no-token"]);
    let mut daemon = ChildGuard::spawn("profilerd", &mut command).unwrap();
    let tasks = format!("/proc/{}/task", daemon.id());
    let threads = wait_until(
        "the daemon's threads, capture at nice -10",
        DEADLINE,
        || {
            daemon.still_running()?;
            let threads = threads(Path::new(&tasks));
            let nice = |name: &str| {
                let thread = threads.iter().find(|thread| thread.name() == name);
                thread.map(|thread| thread.nice)
            };
            // A thread has its name before it raises its priority. The others are as everything else that we start.
            let is_raised = nice("capture") == Some(-10);
            let is_ordinary = nice("resolve").is_some_and(|nice| nice >= 0);
            Ok((is_raised && is_ordinary).then_some(threads))
        },
    )
    .unwrap();
    for thread in &threads {
        let name = thread.name();
        let status = |key: &str| thread.status[key].as_str();
        assert_eq!(status("NoNewPrivs"), "1", "{name}");
        let mask = |key: &str| u64::from_str_radix(status(key), 16).unwrap();
        assert_eq!(mask("CapEff") & !POSSIBLE, NEEDED, "{name}");
        assert_eq!(mask("CapPrm"), mask("CapEff"), "{name}");
        assert_eq!(mask("CapBnd"), mask("CapEff"), "{name}");
        assert_eq!(mask("CapInh"), 0, "{name}");
        assert_eq!(mask("CapAmb"), 0, "{name}");
    }
}

/// Check that a process of another user is recorded with Python, native and kernel frames, and that the
/// result goes to a folder that is closed to root without privileges.
#[test]
fn a_foreign_process_is_recorded_into_a_foreign_folder() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    chown(folder.path(), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let result = folder.path().join("result.json");
    let service = foreign_service(folder.path()).unwrap();
    let mut command = Command::new(profilerd());
    command
        .args(["record", "--endpoint", "POST:/", "--max-requests", "1"])
        .args(["--pid", &service.id().to_string()])
        .args(["--frames", "all", "--format", "json", "-o"])
        .arg(&result)
        .stdout(Stdio::null());
    let mut recording = ChildGuard::spawn("profilerd record", &mut command).unwrap();
    let status = wait_until("the recording", 2 * DEADLINE, || {
        let mut client = service.connect(DEADLINE)?;
        client.request("POST", "/", "{}")?;
        Ok(recording.process().try_wait()?)
    })
    .unwrap();
    assert!(status.success(), "{status}");
    let result: serde_json::Value = read_json(&fs::read_to_string(&result).unwrap()).unwrap();
    let frames: Vec<&str> = result["segments"][0]["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|snapshot| snapshot["stack"].as_array().unwrap())
        .filter_map(|frame| frame.as_str())
        .collect();
    for part in ["do_POST", "(libc.so", "[kernel]"] {
        assert!(
            frames.iter().any(|f| f.contains(part)),
            "{part}: {frames:?}"
        );
    }
    assert!(!frames.contains(&"[unknown] [kernel]"), "{frames:?}");
}

/// Starts a sample service of another user, which only that user may look at.
fn foreign_service(folder: &Path) -> Result<LocalServer> {
    // The source tree may be closed to other users.
    let script = folder.join("sample_service.py");
    fs::copy(
        workspace_root().join("tests/services/sample_service.py"),
        &script,
    )?;
    chown(&script, Some(OTHER_USER), Some(OTHER_USER))?;
    let mut command = Command::new("python3");
    command.arg(&script).uid(OTHER_USER).gid(OTHER_USER);
    LocalServer::start("the service", &mut command)
}

struct Thread {
    status: BTreeMap<String, String>,
    nice: i32,
}

impl Thread {
    fn name(&self) -> &str {
        &self.status["Name"]
    }
}

/// All threads of a process; several may have one name.
fn threads(tasks: &Path) -> Vec<Thread> {
    let read = |folder: &Path| -> Option<Thread> {
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let status: BTreeMap<String, String> = status
            .lines()
            .filter_map(|line| line.split_once(":\t"))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        // `tid (name) state ppid ...`: nice is the 19th field, the 17th behind the name.
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let nice = stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse().ok()?;
        status
            .contains_key("Name")
            .then_some(Thread { status, nice })
    };
    let folders = fs::read_dir(tasks).into_iter().flatten().flatten();
    folders.filter_map(|folder| read(&folder.path())).collect()
}
