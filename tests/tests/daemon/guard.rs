//! The overhead guard: what it does when a task costs more than it may, and that its reader learns of it.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use profiler_tests::{ChildGuard, HttpClient, SampleService, children, needs_root, wait_until};
use serde_json::Value;

use crate::daemon::{Daemon, creation};
use crate::server::sample_service;
use crate::{DEADLINE, TASK_DEADLINE};

/// Threads that compute at the same time: the interpreter runs one of them, so the few requests that a task
/// profiles last for some twenty seconds.
const CLIENTS: usize = 64;
/// Processes that keep programs busy: as many as there are CPUs, and as there may be other work.
const TALKERS: usize = 4;

/// Keeps requests of `GET /busy` open until told to stop.
fn ask_until(service: &SampleService, stop: &AtomicBool) {
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = HttpClient::connect(service.address(), TASK_DEADLINE).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    client.request("GET", "/busy", "").unwrap();
                }
            });
        }
    });
}

/// Check that requests of a task over the budget are looked at less often, and that coverage, log and the
/// task's result tell the real period.
#[test]
fn a_task_over_its_budget_is_looked_at_less_often() {
    needs_root!();
    const NAME: &str = "costly-sample";
    let service = sample_service(NAME);
    let mut daemon =
        Daemon::standalone_with(":memory:", &[("PROFILERD_LIMITS_MAX_CPU_PERCENT", "1")]);
    let creation = [&creation(NAME, "GET:/busy")[..], &["--max-requests", "9"]].concat();
    let task_id = daemon.task(&creation).out.trim().to_owned();
    daemon.wait_for_log("process watched", 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| ask_until(&service, &stop));
        let stretched = wait_until("a step of the guard", TASK_DEADLINE, || {
            daemon.still_running()?;
            Ok(daemon
                .log()
                .contains("dump periods are multiplied")
                .then_some(()))
        });
        stop.store(true, Ordering::Relaxed);
        stretched.unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    });
    let shown = finished(&daemon, &task_id);
    let notes = shown["coverage"]["notes"].to_string();
    for part in [
        "one snapshot every 20 ms, the task asks for 10",
        "limits.max_cpu_percent is 1",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert!(
        shown["coverage"]["guard_steps"].as_u64() >= Some(1),
        "{shown}"
    );
    let text = daemon.task(&["show", &task_id]).out;
    assert!(text.contains("steps of the overhead guard"), "{text}");
    let result = daemon.task(&["result", &task_id]);
    let told = [result.out, result.err].concat();
    assert!(told.contains("one snapshot every 20 ms"), "{told}");
}

/// Check that with nothing left to stretch the task that began last is ended, that the other one goes on for
/// a while, and that a third one is refused, each with what was used. What is used here are hooks, by calls
/// of a process that is nobody's business, and to end tasks for that is asked for.
#[test]
fn tasks_over_the_budget_are_ended_and_refused() {
    needs_root!();
    let services: Vec<_> = ["first-sample", "second-sample", "third-sample"]
        .into_iter()
        .map(|name| (name, sample_service(name)))
        .collect();
    let budget = [
        ("PROFILERD_LIMITS_MAX_CPU_PERCENT", "1"),
        ("PROFILERD_LIMITS_END_TASKS_FOR_HOOKS", "true"),
    ];
    let mut daemon = Daemon::standalone_with(":memory:", &budget);
    let seldom = |name| [&creation(name, "POST:/")[..], &["--period", "1s"]].concat();
    let create = |daemon: &Daemon, name| {
        let answer = daemon.task(&seldom(name));
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        answer.out.trim().to_owned()
    };
    let first = create(&daemon, services[0].0);
    daemon.wait_for_log("process watched", 1);
    let second = create(&daemon, services[1].0);
    daemon.wait_for_log("process watched", 2);
    let calls: Vec<_> = (0..TALKERS).map(|_| talker()).collect();
    wait_until("a task to be ended", TASK_DEADLINE, || {
        daemon.still_running()?;
        Ok(daemon
            .log()
            .contains("the task that began last is ended")
            .then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    drop(calls);
    let third = create(&daemon, services[2].0);
    let refused = finished(&daemon, &third);
    let ended = finished(&daemon, &second);
    let notes = |shown: &Value| shown["coverage"]["notes"].to_string();
    assert!(
        notes(&refused).contains("not run: the overhead guard refuses new tasks"),
        "{refused}"
    );
    assert!(
        notes(&ended).contains("cut short by the overhead guard"),
        "{ended}"
    );
    assert!(
        notes(&ended).contains("limits.max_cpu_percent is 1"),
        "{ended}"
    );
    assert_eq!(ended["coverage"]["guard_steps"], 1, "{ended}");
    assert_eq!(
        daemon.show(&first)["task"]["state"],
        "running",
        "{}",
        daemon.log()
    );
}

/// Check that hooks that any process can make expensive change neither the period nor the task of somebody else: that is
/// told, in the log and in the coverage, with the process that does it.
#[test]
fn expensive_hooks_are_told_and_change_no_task() {
    needs_root!();
    const NAME: &str = "beside-a-talker";
    let _service = sample_service(NAME);
    let mut daemon =
        Daemon::standalone_with(":memory:", &[("PROFILERD_LIMITS_MAX_CPU_PERCENT", "1")]);
    let task_id = daemon.create_task(NAME, "POST:/");
    let talkers: Vec<_> = (0..TALKERS).map(|_| talker()).collect();
    let told = wait_until("a word about hooks", TASK_DEADLINE, || {
        daemon.still_running()?;
        let shown = daemon.show(&task_id);
        let notes = shown["coverage"]["notes"].to_string();
        Ok(notes.contains("made the hooks take").then_some(notes))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    let is_named =
        |talker: &ChildGuard| told.contains(&format!("system calls is {} (", talker.id()));
    assert!(talkers.iter().any(is_named), "{told}");
    let log = daemon.log();
    assert!(log.contains("hooks are expensive"), "{log}");
    assert!(!log.contains("dump periods are multiplied"), "{log}");
    assert_eq!(daemon.show(&task_id)["task"]["state"], "running", "{log}");
}

/// Talks to itself: socket calls, system calls and nothing else.
fn talker() -> ChildGuard {
    let script = "import socket; a, b = socket.socketpair()\nwhile True: a.send(b'.'); b.recv(1)";
    let mut command = Command::new("python3");
    ChildGuard::spawn("the talker", command.args(["-c", script])).unwrap()
}

/// Waits for a task's end.
#[track_caller]
fn finished(daemon: &Daemon, task_id: &str) -> Value {
    wait_until("the task's end", TASK_DEADLINE, || {
        let shown = daemon.show(task_id);
        Ok((shown["task"]["state"] == "finished").then_some(shown))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()))
}

/// Check that the process that has programs measured may do that and nothing else, and that it is gone
/// with the daemon, however that ends.
#[test]
fn the_keeper_of_statistics_can_do_nothing_else() {
    needs_root!();
    let budget = [("PROFILERD_LIMITS_MAX_CPU_PERCENT", "2")];
    let mut daemon = Daemon::standalone_with(":memory:", &budget);
    let keeper = wait_until("the keeper of statistics", DEADLINE, || {
        daemon.still_running()?;
        Ok(keeper_of(daemon.id()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    let status = || fs::read_to_string(format!("/proc/{keeper}/status"));
    let sys_admin = format!("CapEff:\t{:016x}", 1_u64 << 21);
    wait_until("its privileges to go", DEADLINE, || {
        Ok(status()?.contains(&sys_admin).then_some(()))
    })
    .unwrap();
    let open = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count();
    assert_eq!(open, 1, "its end of the socket");
    daemon.signal(libc::SIGKILL);
    daemon.wait();
    wait_until("the keeper's end", DEADLINE, || {
        // An orphan may stay as a zombie where nobody reaps.
        let is_over = status().is_err() || status()?.contains("State:\tZ");
        Ok(is_over.then_some(()))
    })
    .unwrap();
}

/// The child of a process that is named `profilerd-stats`.
fn keeper_of(tgid: u32) -> Option<u32> {
    let is_keeper = |child: &u32| {
        let name = fs::read_to_string(format!("/proc/{child}/comm"));
        name.is_ok_and(|name| name.trim() == "profilerd-stats")
    };
    children(tgid).ok()?.into_iter().find(is_keeper)
}
