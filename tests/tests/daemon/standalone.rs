//! `profilerd standalone` and `daemon` over the life of tasks.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use profiler_daemon::embedded::EmbeddedOap;
use profiler_tests::{ChildGuard, HttpClient, free_port, needs_root, profilerd, wait_until};

use crate::attached::{Attached, pinned};
use crate::daemon::{Answer, Daemon, creation};
use crate::recording::has_function;
use crate::server::sample_service;
use crate::{DEADLINE, TASK_DEADLINE};

/// Check the whole life of a task: nothing is attached before, one task at a time, its result, its
/// coverage and its end are shown, nothing is attached afterwards, and the next one runs.
#[test]
fn a_task_runs_and_ends_and_leaves_nothing() {
    needs_root!();
    const NAME: &str = "task-sample";
    let pinned_before = pinned();
    let service = sample_service(NAME);
    let mut daemon = Daemon::standalone();
    assert_eq!(Attached::of(daemon.id()), Attached::default());

    let task_id = daemon.create_task(NAME, "POST:/");
    let attached = Attached::of_live(daemon.id());
    let refused = daemon.task(&creation(NAME, "GET:/busy"));
    assert_eq!(refused.code, Some(1));
    let reason = "already has monitor task";
    assert!(refused.err.contains(reason), "{}", refused.err);

    let mut client = service.connect().unwrap();
    for _ in 0..2 {
        client.request("GET", "/fast", "").unwrap();
        client.request("POST", "/", "{}").unwrap();
    }
    let report = daemon.wait_for_segments(&task_id, 2);
    for segment in &report.segments {
        assert_eq!(
            (segment.endpoint.as_str(), segment.status),
            ("POST:/", Some(200))
        );
        assert!(has_function(segment, "method1") && !has_function(segment, "answer_fast"));
    }
    let list = daemon.task(&["list"]);
    assert!(
        list.out.contains(&task_id) && list.out.contains("running"),
        "{}",
        list.out
    );

    wait_until("the task's end", TASK_DEADLINE, || {
        let is_over = daemon
            .show(&task_id)
            .to_string()
            .contains("EXECUTION_FINISHED");
        Ok(is_over.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    let shown = daemon.show(&task_id);
    assert_eq!(shown["task"]["state"], "finished", "{shown}");
    assert_eq!(shown["coverage"]["requests_seen"], 4, "{shown}");
    assert_eq!(shown["coverage"]["requests_profiled"], 2, "{shown}");
    let text = daemon.task(&["show", &task_id]).out;
    assert!(text.contains("finished it"), "{text}");
    assert!(
        text.contains("4  request heads read by processes"),
        "{text}"
    );
    wait_until("the daemon to detach", DEADLINE, || {
        Ok((Attached::of(daemon.id()) == Attached::default()).then_some(()))
    })
    .unwrap();
    attached.wait_until_gone();
    assert_eq!(pinned(), pinned_before);

    let second = daemon.create_task(NAME, "GET:/busy");
    client.request("GET", "/busy", "").unwrap();
    let report = daemon.wait_for_segments(&second, 1);
    assert!(has_function(&report.segments[0], "inner"));
    let attached = Attached::of_live(daemon.id());
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    attached.wait_until_gone();
}

/// Check that a cancelled task ends within seconds and not after its duration, keeps what it has profiled, says why it ended,
/// leaves nothing attached, and makes room for another one.
#[test]
fn a_cancelled_task_ends_and_makes_room() {
    needs_root!();
    const NAME: &str = "cancelled-sample";
    let service = sample_service(NAME);
    let mut daemon = Daemon::standalone();
    let task_id = daemon.create_task(NAME, "POST:/");
    let attached = Attached::of_live(daemon.id());
    let mut client = service.connect().unwrap();
    client.request("POST", "/", "{}").unwrap();
    daemon.wait_for_segments(&task_id, 1);

    let cancelled = daemon.task(&["cancel", &task_id]);
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.err);
    assert!(cancelled.out.contains(&task_id), "{}", cancelled.out);
    wait_until("the task's end", DEADLINE, || {
        let shown = daemon.show(&task_id).to_string();
        Ok(shown.contains("EXECUTION_FINISHED").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    attached.wait_until_gone();
    let shown = daemon.show(&task_id);
    assert_eq!(shown["task"]["state"], "cancelled", "{shown}");
    assert!(
        shown.to_string().contains("the task was cancelled"),
        "{shown}"
    );
    assert_eq!(daemon.wait_for_segments(&task_id, 1).segments.len(), 1);
    let again = daemon.task(&["cancel", &task_id]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("is over already"), "{}", again.err);

    let next = daemon.create_task(NAME, "GET:/busy");
    client.request("GET", "/busy", "").unwrap();
    daemon.wait_for_segments(&next, 1);
}

/// Check that a daemon killed in the middle of a profiled request leaves nothing in the kernel and the
/// service unharmed.
#[test]
fn a_killed_daemon_leaves_nothing_and_harms_nobody() {
    needs_root!();
    let pinned_before = pinned();
    let service = sample_service("orphaned-sample");
    let mut daemon = Daemon::standalone();
    daemon.create_task("orphaned-sample", "POST:/");
    let attached = Attached::of_live(daemon.id());
    let mut client = service.connect().unwrap();
    client.send_raw(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    daemon.signal(libc::SIGKILL);
    daemon.wait();
    assert_eq!(client.read_response().unwrap().0, 200);
    assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    attached.wait_until_gone();
    assert_eq!(pinned(), pinned_before);
}

/// Check that a request that is open when the daemon is stopped is reported up to there, and kept.
#[test]
fn an_open_request_is_kept_when_the_daemon_stops() {
    needs_root!();
    const NAME: &str = "stopped-sample";
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let service = sample_service(NAME);
    let mut daemon = Daemon::standalone_in(data_dir.to_str().unwrap());
    let task_id = daemon.create_task(NAME, "POST:/");
    let mut client = service.connect().unwrap();
    client.send_raw(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(250)); // of 560
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    let daemon = Daemon::standalone_in(data_dir.to_str().unwrap());
    let report = daemon.wait_for_segments(&task_id, 1);
    let segment = &report.segments[0];
    assert!(has_function(segment, "do_POST"));
    assert!(
        (150..550).contains(&segment.duration_ms),
        "{} ms",
        segment.duration_ms
    );
    assert_eq!(report.coverage.counters["requests_unfinished"], 1);
    assert_eq!(segment.cut.as_deref(), Some("the task ended first"));
    let result = ["result", task_id.as_str(), "--format", "tree"];
    let why = "it lasted longer: the task ended first";
    for more in [&[][..], &["--each"]] {
        let text = daemon.task(&[&result[..], more].concat()).out;
        assert!(text.contains(why), "{text}");
    }
}

/// Check that a task goes on over a kill and over a stop, with the places and the counts it had, runs once, and
/// is as it was at its end after one more start.
#[test]
fn a_task_outlives_restarts() {
    needs_root!();
    const NAME: &str = "restarted-sample";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let service = sample_service(NAME);
    let mut client = service.connect().unwrap();
    let mut post = |times| {
        for _ in 0..times {
            client.request("POST", "/", "{}").unwrap();
        }
    };
    let mut daemon = Daemon::standalone_in(dir);
    let wanted = [&creation(NAME, "POST:/")[..], &["--max-requests", "4"]].concat();
    let created = daemon.task(&wanted);
    assert_eq!(created.code, Some(0), "{}", created.err);
    let task_id = created.out.trim().to_owned();
    daemon.wait_for_log("process watched", 1);
    post(2);
    wait_until("the counts of both requests", DEADLINE, || {
        Ok((daemon.show(&task_id)["coverage"]["requests_profiled"] == 2).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    daemon.signal(libc::SIGKILL);
    daemon.wait();

    let mut daemon = Daemon::standalone_in(dir);
    daemon.wait_for_log("process watched", 1);
    post(1);
    daemon.wait_for_log("request profiled", 1);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());

    let mut daemon = Daemon::standalone_in(dir);
    daemon.wait_for_log("process watched", 1);
    assert_eq!(daemon.show(&task_id)["task"]["state"], "running");
    post(2);
    wait_until("the task's end", TASK_DEADLINE, || {
        Ok((daemon.show(&task_id)["task"]["state"] == "finished").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    let ended = daemon.show(&task_id);
    let coverage = &ended["coverage"];
    for (name, count) in [
        ("requests_seen", 5),
        ("requests_profiled", 4),
        ("requests_over_limit", 1),
    ] {
        assert_eq!(coverage[name], count, "{ended}");
    }
    let count = |name: &str| coverage[name].as_u64().unwrap();
    assert!(
        count("snapshots_sent") <= count("snapshots_taken"),
        "{ended}"
    );
    assert!(count("snapshots_lost") == 0, "{ended}");
    let text = daemon.task(&["show", &task_id]).out;
    for note in [
        "profilerd was killed or crashed, and was started",
        "profilerd was stopped and started",
    ] {
        assert!(text.contains(note), "{note}: {text}");
    }
    assert!(!text.contains("cut short"), "{text}");
    assert_eq!(daemon.result(&task_id).unwrap().segments.len(), 4);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());

    let mut daemon = Daemon::standalone_in(dir);
    daemon.wait_for_log("Connected", 1);
    post(1);
    let log = daemon.show(&task_id).to_string();
    assert_eq!(log.matches("NOTIFIED").count(), 1, "{log}");
    assert_eq!(log.matches("EXECUTION_FINISHED").count(), 1, "{log}");
    assert_eq!(daemon.show(&task_id)["coverage"], ended["coverage"]);
    assert!(!daemon.log().contains("task refused"), "{}", daemon.log());
}

/// Check that neither door lets a caller in without the token, that the file with it is for its owner alone,
/// that `profilerd task` finds it there and says what is missing when it may not, and that health needs none.
#[test]
fn callers_without_the_token_are_turned_away() {
    needs_root!();
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let http_listen = http.to_string();
    let variables = [("PROFILERD_HTTP_LISTEN", http_listen.as_str())];
    let mut daemon = Daemon::standalone_with(":memory:", &variables);
    daemon.wait_for_log("answers GraphQL", 1);
    let file = daemon.token_file();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (oap, url) = (daemon.oap().to_string(), format!("http://{http}/graphql"));
    let doors = [["--oap", &oap], ["--graphql", &url]];
    for door in doors {
        let found = daemon.run(&[&["task", "list"], &door[..]].concat());
        assert_eq!(found.code, Some(0), "{}", found.err);
        let guess = tempfile::NamedTempFile::new().unwrap();
        fs::write(guess.path(), "guessed").unwrap();
        let guess = guess.path().to_str().unwrap();
        let wrong = [&["task", "list", "--token-file", guess], &door[..]].concat();
        let wrong = daemon.run(&wrong);
        assert_eq!(wrong.code, Some(1), "{}", wrong.out);
        let reason = format!("the token in {guess} is not the one it asks for");
        assert!(wrong.err.contains(&reason), "{}", wrong.err);
    }

    // The build folder may be closed to others.
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = shared.path().join("profilerd");
    fs::copy(profilerd(), &binary).unwrap();
    for door in doors {
        let mut command = Command::new(&binary);
        command.args(["task", "list"]).args(door).current_dir("/");
        command
            .env("PROFILERD_STANDALONE_TOKEN_FILE", &file)
            .uid(65_534)
            .gid(65_534);
        let refused = Answer::of(&mut command);
        assert_eq!(refused.code, Some(1), "{}", refused.out);
        for part in [
            file.to_str().unwrap(),
            "Permission denied",
            "as root",
            "--token-file",
        ] {
            assert!(refused.err.contains(part), "{part}: {}", refused.err);
        }
    }

    let mut client = HttpClient::connect(http, DEADLINE).unwrap();
    assert_eq!(
        client.request("GET", "/healthcheck", "").unwrap().status,
        200
    );
    let mut client = HttpClient::connect(http, DEADLINE).unwrap();
    let query = r#"{"query":"{ version }"}"#;
    assert_eq!(
        client.request("POST", "/graphql", query).unwrap().status,
        401
    );
    let turned_away = daemon.log().matches("a caller was refused").count();
    assert_eq!(turned_away, 2, "{}", daemon.log()); // one without a token, one with a wrong one
}

/// Check that `--no-token` lets every caller in and says so.
#[test]
fn no_token_is_said_to_let_everybody_in() {
    needs_root!();
    let mut daemon = Daemon::standalone_without_token(":memory:");
    daemon.wait_for_log("asks for no token: everybody who reaches its ports", 1);
    assert!(!daemon.token_file().exists());
    assert_eq!(daemon.task(&["list"]).code, Some(0));
}

/// Check that an address that is taken ends `standalone`, and that the address is named.
#[test]
fn a_taken_port_is_named() {
    needs_root!();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["standalone", "--listen", &address, "--data-dir", ":memory:"];
    let args = [&args[..], &["--no-token"]].concat();
    let output = crate::recording::command(&args).output();
    let output = output.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains(&format!("failed to listen on {address}")),
        "{err}"
    );
}

/// Check that the second daemon for one OAP says so and what to do, also beside a `standalone` that is that OAP,
/// and that one for another OAP, or after a kill, does not.
#[test]
fn a_second_daemon_for_one_oap_is_told() {
    needs_root!();
    const TOLD: &str =
        "every request is profiled twice, and takes two of its task's places. Stop one";
    let standalone = Daemon::standalone();
    let mut beside = Daemon::reporting_to(standalone.oap());
    beside.wait_for_log(TOLD, 1);
    let pid = format!("pid={}", standalone.id());
    assert!(beside.log().contains(&pid), "{}", beside.log());
    drop((standalone, beside));

    let absent = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let (oap, other) = (absent(), absent());
    let mut first = Daemon::reporting_to(oap);
    first.wait_for_log("Disconnected", 1);
    let mut elsewhere = Daemon::reporting_to(other);
    elsewhere.wait_for_log("Disconnected", 1);
    first.signal(libc::SIGKILL);
    first.wait();
    let mut next = Daemon::reporting_to(oap);
    next.wait_for_log("Disconnected", 1);
    for daemon in [&first, &elsewhere, &next] {
        assert!(!daemon.log().contains(TOLD), "{}", daemon.log());
    }
}

/// Check that a daemon without its OAP says so and stays, and runs tasks once there is one.
#[test]
fn a_daemon_waits_for_its_oap() {
    needs_root!();
    let service = sample_service("waiting-sample");
    let oap = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let mut daemon = Daemon::reporting_to(oap);
    daemon.wait_for_log("Disconnected", 1);
    assert!(daemon.log().contains(&oap.to_string()), "{}", daemon.log());
    assert_eq!(Attached::of(daemon.id()), Attached::default());

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _embedded = runtime.block_on(EmbeddedOap::start(oap)).unwrap();
    daemon.wait_for_log("Connected", 1);
    let task_id = daemon.create_task("waiting-sample", "POST:/");
    service
        .connect()
        .unwrap()
        .request("POST", "/", "{}")
        .unwrap();
    let report = daemon.wait_for_segments(&task_id, 1);
    assert!(has_function(&report.segments[0], "do_POST"));
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

/// Check that a daemon may use all descriptors that the system allows it, from its start on: connections take one each.
#[test]
fn all_descriptors_may_be_used_from_the_start() {
    needs_root!();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 300 && exec \"$@\"", "sh"])
        .arg(profilerd())
        .args(["standalone", "--listen", &listen.to_string()])
        .args([
            "--http-listen",
            "off",
            "--data-dir",
            ":memory:",
            "--no-token",
        ])
        .env("PROFILERD_STATE_DIR", "none");
    let mut daemon = ChildGuard::spawn("profilerd", &mut command).unwrap();
    wait_until("the built-in OAP", DEADLINE, || {
        daemon.still_running()?;
        Ok(TcpStream::connect(listen).ok())
    })
    .unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_ascii_whitespace().collect();
    assert_eq!(words[3], words[4], "{line:?}");
    assert_ne!(words[3], "300");
}
