//! Processes that do not let themselves be read: a page of their memory never arrives.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use profiler_tests::{HttpClient, free_port, needs_root, skip, wait_until};
use tempfile::TempDir;

use crate::DEADLINE;
use crate::daemon::Daemon;
use crate::recording::{Recording, count, has_function};
use crate::server::{CServer, sample_service};

/// A service with such a page; ends when dropped.
struct Stuck {
    server: CServer,
    _folder: TempDir,
}

impl Stuck {
    /// By `uffd` or `fuse`, in a `library` or on the `stack` of its requests.
    fn start(name: &str, means: &str, place: &str) -> Self {
        // On tmpfs, whose pages userfaultfd can withhold.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().to_str().unwrap();
        let arguments = [means, place, path];
        Self {
            server: CServer::start_as(name, "stuck_server.c", &arguments),
            _folder: folder,
        }
    }

    fn id(&self) -> u32 {
        self.server.id()
    }

    fn left_out(&self) -> String {
        format!("process {} is left out", self.id())
    }
}

/// What withholds pages here.
fn means() -> io::Result<[&'static str; 2]> {
    Path::new("/dev/fuse").metadata()?;
    Ok(["uffd", "fuse"])
}

fn get_metrics(metrics: SocketAddr) -> String {
    let mut client = HttpClient::connect(metrics, DEADLINE).unwrap();
    let answer = client.request("GET", "/metrics", "").unwrap();
    String::from_utf8(answer.body).unwrap()
}

/// Check that a library whose first page never arrives holds up neither the daemon nor `ps` nor a task of another
/// service, that its process is named as left out everywhere, and that a stop is obeyed.
#[test]
fn a_library_that_never_arrives_holds_nobody_up() {
    needs_root!();
    let means = match means() {
        Ok(means) => means,
        Err(error) => skip!("no FUSE here: {error}"),
    };
    const NAME: &str = "beside-a-stuck-library";
    let stuck = means.map(|means| Stuck::start("stuck-library", means, "library"));
    let service = sample_service(NAME);
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let mut daemon = Daemon::standalone_measured(metrics);
    daemon.wait_for_log("the process does not let itself be read", 2);
    let told = get_metrics(metrics);
    assert!(told.contains("\nprofilerd_processes_left_out 2"), "{told}");

    let task_id = daemon.create_task(NAME, "POST:/");
    let mut client = service.connect().unwrap();
    assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    let report = daemon.wait_for_segments(&task_id, 1);
    assert!(has_function(&report.segments[0], "method1"));

    let ps = daemon.run(&["ps", "--all"]);
    assert_eq!(ps.code, Some(0), "{}", ps.err);
    assert!(ps.out.contains(NAME), "{}", ps.out);
    for stuck in &stuck {
        assert!(ps.out.contains(&stuck.left_out()), "{}", ps.out);
    }
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

/// Check that a task on a service with such a library says why it has nothing, and goes on.
#[test]
fn a_task_on_it_says_why_it_sees_nothing() {
    needs_root!();
    let stuck = Stuck::start("stuck-target", "uffd", "library");
    let daemon = Daemon::standalone();
    let creation = ["create", "--service", "stuck-target", "--endpoint", "*"];
    let answer = daemon.task(&[&creation[..], &["--duration", "1m"]].concat());
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    let task_id = answer.out.trim();
    wait_until("the reason", DEADLINE, || {
        let shown = daemon.show(task_id);
        let is_told = shown["coverage"]["processes_unreadable"] == 1;
        Ok((is_told && shown.to_string().contains(&stuck.left_out())).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", daemon.show(task_id), daemon.log()));
}

/// Check that a page in the middle of a stack stops neither the capture thread nor another task: the process is left
/// out, its request counted, and requests of the other service are profiled.
#[test]
fn a_stack_that_never_arrives_is_left_out() {
    needs_root!();
    let means = match means() {
        Ok(means) => means,
        Err(error) => skip!("no FUSE here: {error}"),
    };
    const NAME: &str = "beside-a-stuck-stack";
    for means in means {
        let stuck = Stuck::start("stuck-stack", means, "stack");
        let service = sample_service(NAME);
        let mut daemon = Daemon::standalone();
        let lost_task = daemon.create_task("stuck-stack", "*");
        let task_id = daemon.create_task(NAME, "POST:/");
        let mut client = stuck.server.connect(DEADLINE).unwrap();
        client.send_raw(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut beside = service.connect().unwrap();
        for _ in 0..2 {
            assert_eq!(beside.request("POST", "/", "{}").unwrap().status, 200);
        }
        let report = daemon.wait_for_segments(&task_id, 2);
        assert!(
            has_function(&report.segments[1], "method1"),
            "{means}: {report:?}\n{}",
            daemon.log()
        );
        wait_until("the count", DEADLINE, || {
            let coverage = daemon.show(&lost_task)["coverage"].clone();
            let counted = ["processes_unreadable", "requests_unreadable"];
            Ok(counted.iter().all(|name| coverage[name] == 1).then_some(()))
        })
        .unwrap_or_else(|error| {
            panic!(
                "{means}: {error}: {}\n{}",
                daemon.show(&lost_task),
                daemon.log()
            )
        });
        let shown = daemon.show(&lost_task).to_string();
        assert!(shown.contains(&stuck.left_out()), "{means}: {shown}");
        let log = daemon.log();
        assert!(log.contains("another one goes on"), "{means}: {log}");
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0), "{means}: {}", daemon.log());
    }
}

/// Check that a recording of another process is not held up, and that one of such a process ends when it is asked to.
#[test]
fn recordings_go_on_beside_it_and_end() {
    needs_root!();
    let stuck = Stuck::start("stuck-recording", "uffd", "stack");
    let service = sample_service("recorded-beside");
    let recording = Recording::start("POST:/", service.id(), &[]);
    let mut client = service.connect().unwrap();
    client.request("POST", "/", "{}").unwrap();
    let report = recording.interrupt().report(0);
    assert_eq!(count(&report, "requests_profiled"), 1);

    let recording = Recording::start("*", stuck.id(), &[]);
    let mut client = stuck.server.connect(DEADLINE).unwrap();
    client.send_raw(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(client.read_response().unwrap().0, 200);
    let recorded = recording.interrupt();
    let report = recorded.report(3);
    assert_eq!(
        count(&report, "processes_unreadable"),
        1,
        "{}",
        recorded.err
    );
    assert!(recorded.err.contains(&stuck.left_out()), "{}", recorded.err);
}

/// Check that a second signal ends the program at once, before it can have obeyed the first.
#[test]
fn a_second_signal_ends_it_at_once() {
    needs_root!();
    let service = sample_service("twice-signalled");
    let mut recording = Recording::start("POST:/", service.id(), &[]);
    recording.signal(libc::SIGSTOP);
    recording.signal(libc::SIGINT);
    recording.signal(libc::SIGTERM);
    recording.signal(libc::SIGCONT);
    // The order in which they come is the kernel's.
    let code = recording.wait().code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    let mut command = Command::new("kill");
    let gone = command.args(["-0", &recording.id().to_string()]).output();
    assert!(!gone.unwrap().status.success());
}
