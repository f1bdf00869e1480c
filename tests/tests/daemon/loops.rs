//! Event loops, which this version does not follow, and servers that only look like one.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_tests::{
    ChildGuard, HttpClient, LocalServer, free_port, loops_folder, needs_root, wait_until,
    workspace_root,
};

use crate::DEADLINE;
use crate::recording::{Recorded, Recording, count, has_function};
use crate::server::CServer;

fn folder() -> PathBuf {
    workspace_root().join("tests/tests/daemon")
}

fn server(python: &Path, mode: &str) -> LocalServer {
    let script = folder().join("loop_server.py");
    let mut command = Command::new(python);
    LocalServer::start("the server", command.arg(script).arg(mode)).unwrap()
}

/// Three requests to a server, one after the other on one connection.
fn record(server: &LocalServer, path: &str) -> Recorded {
    let recording = Recording::start("*", server.id(), &[]);
    let mut client = server.connect(DEADLINE).unwrap();
    for _ in 0..3 {
        assert_eq!(client.request("GET", path, "").unwrap().status, 200);
    }
    drop(client);
    recording.interrupt()
}

/// Checks that requests of a server are left out, counted and explained.
#[track_caller]
fn check_loop(name: &str, server: &LocalServer) {
    let recorded = record(server, "/");
    let report = recorded.report(3);
    assert_eq!(count(&report, "requests_matched"), 3, "{name}");
    assert_eq!(count(&report, "requests_on_loop"), 3, "{name}");
    assert_eq!(count(&report, "processes_unsupported"), 1, "{name}");
    let reason = "3 were served by an event loop";
    assert!(recorded.err.contains(reason), "{name}: {}", recorded.err);
    let note = "waits for other clients as well";
    assert!(recorded.err.contains(note), "{name}: {}", recorded.err);
}

/// Check that requests of an event loop are left out, though each is alone: what the loop does in the meantime is not
/// theirs. However it waits.
#[test]
fn an_event_loop_is_told_and_left_out() {
    needs_root!();
    for mode in ["asyncio", "asyncio-poll", "asyncio-select"] {
        check_loop(mode, &server(Path::new("python3"), mode));
    }
    check_loop(
        "gevent",
        &server(&loops_folder().join("bin/python"), "gevent"),
    );
    for wait in ["poll", "select"] {
        check_loop(wait, &CServer::start("loop_server.c", &[wait]));
    }
}

/// Check that a thread that waits for what is its request's own is not taken for an event loop: a loop that the
/// request runs itself, its client's socket, another server's.
#[test]
fn a_request_that_waits_for_itself_is_profiled() {
    needs_root!();
    for path in ["/asyncio", "/poll", "/polls", "/select", "/epoll"] {
        let recorded = record(&server(Path::new("python3"), "threads"), path);
        let report = recorded.report(0);
        assert_eq!(report.segments.len(), 3, "{path}: {}", recorded.err);
        assert_eq!(count(&report, "requests_on_loop"), 0, "{path}");
        for segment in &report.segments {
            assert!(
                segment.duration_ms >= 140,
                "{path}: {} ms",
                segment.duration_ms
            );
        }
    }
}

/// uWSGI with a master, and a worker that runs `uwsgi_service.py`; ends when dropped.
struct Uwsgi {
    master: ChildGuard,
    address: SocketAddr,
}

impl Uwsgi {
    /// `option` says who listens: `--http` a router, `--http-socket` the worker.
    fn start(option: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = Command::new(loops_folder().join("bin/uwsgi"));
        command
            .args(["--master", "--no-orphans", "--die-on-term"])
            .arg("--disable-logging")
            .args([option, &address.to_string()])
            .args(["--wsgi-file", "uwsgi_service.py"])
            .current_dir(folder());
        let mut master = ChildGuard::spawn("uwsgi", &mut command).unwrap();
        wait_until("uwsgi to answer", DEADLINE, || {
            master.still_running()?;
            let client = HttpClient::connect(address, DEADLINE);
            let answer = client.and_then(|mut client| client.request("GET", "/", ""));
            Ok(answer.ok().filter(|answer| answer.status == 200))
        })
        .unwrap();
        Self { master, address }
    }

    /// Three requests while the master and its children are recorded.
    fn record(&self, processes: usize) -> Recorded {
        let mut recording = Recording::start("*", self.master.id(), &[]);
        recording.wait_until_watched(processes);
        for _ in 0..3 {
            let mut client = HttpClient::connect(self.address, DEADLINE).unwrap();
            assert_eq!(client.request("GET", "/", "").unwrap().status, 200);
        }
        recording.interrupt()
    }
}

/// Check that a process that forwards requests to another one of its program is called what it is.
#[test]
fn a_proxy_is_told_from_the_service() {
    needs_root!();
    let recorded = record(&server(Path::new("python3"), "proxy"), "/");
    let report = recorded.report(3);
    assert_eq!(count(&report, "requests_on_loop"), 3);
    let note = "forwards requests to other processes of its program";
    assert!(recorded.err.contains(note), "{}", recorded.err);
}

/// Check that requests which uWSGI's router forwards to the workers are not taken for the service's own.
#[test]
fn the_router_of_uwsgi_is_left_out() {
    needs_root!();
    let recorded = Uwsgi::start("--http").record(3);
    let report = recorded.report(3);
    assert_eq!(count(&report, "requests_matched"), 3, "{}", recorded.err);
    assert_eq!(count(&report, "requests_on_loop"), 3, "{}", recorded.err);
    let note = "forwards requests to other processes of its program";
    assert!(recorded.err.contains(note), "{}", recorded.err);
}

/// Check that a worker of uWSGI that reads HTTP itself is profiled, with its Python frames though its master has
/// forked it in C, without telling the interpreter.
#[test]
fn a_worker_of_uwsgi_is_profiled() {
    needs_root!();
    let recorded = Uwsgi::start("--http-socket").record(2);
    let report = recorded.report(0);
    assert_eq!(report.segments.len(), 3, "{}", recorded.err);
    for segment in &report.segments {
        assert!(has_function(segment, "nap"), "{segment:?}");
    }
}
