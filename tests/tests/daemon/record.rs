//! `profilerd record` on the sample service.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;

use profiler_daemon::frames::kind_of;
use profiler_daemon::model::{FrameKind, SegmentReport};
use profiler_tests::{needs_root, read_json};
use serde_json::Value;

use crate::daemon::Answer;
use crate::recording::{Recording, command, count, has_function, is_of, total_ms};
use crate::server::{Server, sample_service};

/// Two dump periods.
const TOLERANCE_MS: i64 = 20;
/// Name of the service.
const SERVICE: &str = "recorded-sample";

/// Check that the trees of `POST:/` tell the time of its functions, that other endpoints leave nothing,
/// and that the object has the names that programs rely on.
#[test]
fn a_recording_tells_where_the_time_went() {
    needs_root!();
    let service = sample_service(SERVICE);
    let recording = Recording::start("POST:/", service.id(), &["--max-requests", "5"]);
    let mut client = service.connect().unwrap();
    let mut other = service.connect().unwrap();
    for _ in 0..5 {
        assert_eq!(other.request("GET", "/fast", "").unwrap().status, 200);
        assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    }
    let recorded = recording.finish();
    let report = recorded.report(0);
    assert_eq!(report.segments.len(), 5);
    for segment in &report.segments {
        assert_eq!(segment.endpoint, "POST:/");
        assert_eq!(segment.status, Some(200));
        assert!(has_function(segment, "do_POST") && has_function(segment, "method1"));
        assert!(!has_function(segment, "answer_fast"));
        let sequences = segment.snapshots.iter().map(|s| s.sequence);
        assert!(sequences.eq(0..segment.snapshots.len() as i32));
    }
    let expect = |what: &str, expected_ms: i64, of: &dyn Fn(&SegmentReport) -> i64| {
        let mut times: Vec<i64> = report.segments.iter().map(of).collect();
        times.sort_unstable();
        let median = times[times.len() / 2];
        assert!(
            (median - expected_ms).abs() <= TOLERANCE_MS,
            "{what}: {times:?} ms, expected about {expected_ms}"
        );
    };
    let handler_ms = |s: &SegmentReport| total_ms(&s.trees, "do_POST");
    let own_ms = |s: &SegmentReport| handler_ms(s) - total_ms(&s.trees, "method3");
    expect("do_POST", 560, &handler_ms);
    expect("do_POST itself", 500, &own_ms);
    for (function, expected_ms) in [("method3", 60), ("method2", 40), ("method1", 20)] {
        expect(function, expected_ms, &|s| total_ms(&s.trees, function));
    }
    assert_eq!(count(&report, "requests_profiled"), 5);
    assert_eq!(count(&report, "requests_matched"), 5);
    assert_eq!(count(&report, "requests_seen"), 10);
    check_names(&recorded.json());
}

/// Check that too low a limit of open files is named wherever it is met, with what to do, and nothing else blamed.
#[test]
fn too_few_descriptors_are_named() {
    needs_root!();
    let service = sample_service(SERVICE);
    let pid = service.id().to_string();
    for limit in [16, 24, 32, 40, 48] {
        let args = [
            "record",
            "--endpoint",
            "/",
            "--duration",
            "1s",
            "--pid",
            &pid,
        ];
        let mut command = command(&args);
        let lower = move || {
            let limit = libc::rlimit {
                rlim_cur: limit,
                rlim_max: limit,
            };
            // SAFETY: the limit outlives the call.
            match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe { command.pre_exec(lower) };
        let answer = Answer::of(&mut command);
        assert_eq!(answer.code, Some(1), "{limit}: {}", answer.err);
        let expected = format!("has reached its limit of {limit} open files");
        assert!(answer.err.contains(&expected), "{limit}: {}", answer.err);
        for wrong in ["locked", "seccomp", "report it", "every system call"] {
            assert!(!answer.err.contains(wrong), "{limit}: {}", answer.err);
        }
    }
}

/// The names of the form, in order of their nesting.
#[track_caller]
fn check_names(report: &Value) {
    let has = |object: &Value, names: &[&str]| {
        for name in names {
            assert!(object.get(name).is_some(), "{name} is not in {object}");
        }
    };
    has(report, &["task", "coverage", "segments"]);
    let segment = &report["segments"][0];
    has(
        segment,
        &["segment_id", "endpoint", "start_ms", "duration_ms"],
    );
    has(segment, &["status", "snapshots", "trees"]);
    has(&segment["snapshots"][0], &["sequence", "time_ms", "stack"]);
    let tree = &segment["trees"][0];
    has(tree, &["code_signature", "duration_ms", "self_ms", "count"]);
    has(tree, &["children"]);
}

/// Check that a recording shows the Python functions, the builtin they are in and what that waits for, and
/// with all frames the insides of interpreter, C library and kernel as well; the times are the same.
#[test]
fn a_recording_shows_the_frames_that_are_wanted() {
    needs_root!();
    let service = sample_service(SERVICE);
    let record = |more: &[&str]| -> SegmentReport {
        let options = [&["--max-requests", "1"], more].concat();
        let recording = Recording::start("POST:/", service.id(), &options);
        let mut client = service.connect().unwrap();
        client.request("POST", "/", "{}").unwrap();
        let recorded = recording.finish();
        for part in [
            "profiled 1 of 1 matching requests; ",
            "% of their time was seen\nnext: profilerd record",
        ] {
            assert!(recorded.err.contains(part), "{}", recorded.err);
        }
        recorded.report(0).segments.remove(0)
    };
    let stack_of = |segment: &SegmentReport, function: &str| -> Vec<String> {
        let mut stacks = segment.snapshots.iter().map(|snapshot| &snapshot.stack);
        let is_in = |stack: &&Vec<String>| stack.iter().any(|frame| is_of(frame, function));
        let stack = stacks.find(|stack| is_in(stack) && stack.iter().any(|f| f.contains("sleep")));
        stack.unwrap().clone()
    };

    let application = record(&[]);
    let stack = stack_of(&application, "method1");
    let (root, waits) = stack.split_at(stack.len() - 2);
    assert_eq!(waits, ["time.sleep", "[system call clock_nanosleep]"]);
    assert!(
        root.iter().all(|frame| kind_of(frame) == FrameKind::Python),
        "{stack:#?}"
    );
    assert!(is_of(root.last().unwrap(), "method1"), "{stack:#?}");

    let all = record(&["--frames", "all"]);
    let stack = stack_of(&all, "method1");
    for part in [
        "(libc.so",
        "_sys_clock_nanosleep [kernel]",
        "schedule [kernel]",
    ] {
        assert!(
            stack.iter().any(|frame| frame.contains(part)),
            "{part}: {stack:#?}"
        );
    }
    assert!(
        !stack.iter().any(|frame| frame.starts_with("[system call")),
        "{stack:#?}"
    );
    for function in ["do_POST", "method3", "method1"] {
        let [some, every] = [&application, &all].map(|s| total_ms(&s.trees, function));
        assert!(
            (some - every).abs() <= TOLERANCE_MS,
            "{function}: {some} and {every} ms"
        );
    }
}

/// Check that requests to other endpoints give exit code 3, and that what was seen and why it is not
/// there is told.
#[test]
fn without_a_matching_request_the_reason_is_told() {
    needs_root!();
    let service = sample_service(SERVICE);
    let recording = Recording::start("GET:/slow", service.id(), &[]);
    let mut client = service.connect().unwrap();
    for _ in 0..3 {
        client.request("GET", "/fast", "").unwrap();
    }
    let recorded = recording.interrupt();
    let report = recorded.report(3);
    assert!(report.segments.is_empty());
    assert_eq!(count(&report, "requests_seen"), 3);
    assert_eq!(count(&report, "requests_matched"), 0);
    let reason = "3 requests were seen, none of them to GET:/slow";
    assert!(recorded.err.contains(reason), "{}", recorded.err);
    let counted = "3  request heads read by processes of the task's service";
    assert!(recorded.err.contains(counted), "{}", recorded.err);
}

/// Check that requests shorter than the minimum duration are counted and not reported.
#[test]
fn requests_below_the_minimum_duration_are_left_out() {
    needs_root!();
    let service = sample_service(SERVICE);
    let recording = Recording::start("*", service.id(), &["--min-duration", "400ms"]);
    let mut client = service.connect().unwrap();
    client.request("GET", "/fast", "").unwrap();
    client.request("POST", "/", "{}").unwrap();
    client.request("GET", "/fast", "").unwrap();
    let report = recording.interrupt().report(0);
    assert_eq!(report.segments.len(), 1);
    assert!(has_function(&report.segments[0], "do_POST"));
    assert_eq!(count(&report, "requests_below_threshold"), 2);
}

/// Check that a request that is open when the time is over, or when the recording is told to end, is shown up to
/// there and marked.
#[test]
fn an_open_request_is_cut_where_the_recording_ends() {
    needs_root!();
    for signal in [None, Some(libc::SIGINT), Some(libc::SIGTERM)] {
        let server = Server::with_threads();
        let duration = if signal.is_none() { "1s" } else { "60s" };
        let recording = Recording::start("GET:/forever", server.id(), &["--duration", duration]);
        let mut client = server.connect();
        client.send_raw(b"GET /forever HTTP/1.1\r\n\r\n").unwrap();
        if let Some(signal) = signal {
            std::thread::sleep(std::time::Duration::from_millis(500));
            recording.signal(signal);
        }
        let recorded = recording.finish();
        let report = recorded.report(0);
        assert_eq!(report.segments.len(), 1, "{signal:?}");
        let segment = &report.segments[0];
        assert_eq!(segment.cut.as_deref(), Some("the task ended first"));
        assert_eq!(segment.status, None);
        assert!(segment.duration_ms > 1000, "{} ms", segment.duration_ms);
        let shown_ms = total_ms(&segment.trees, "forever");
        assert!(
            segment.duration_ms - shown_ms <= 3 * TOLERANCE_MS,
            "{shown_ms} ms"
        );
        assert_eq!(count(&report, "requests_unfinished"), 1);
        assert_eq!(count(&report, "requests_profiled"), 1);
        drop(client);
    }
}

/// Check that a file appears when the result is complete, and that a recording killed before leaves
/// none.
#[test]
fn a_file_is_complete_or_not_there() {
    needs_root!();
    let service = sample_service(SERVICE);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let output = ["--max-requests", "1", "-o", file.to_str().unwrap()];
    let mut client = service.connect().unwrap();

    let mut killed = Recording::start("POST:/", service.id(), &output);
    client.send_raw(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    killed.kill();
    assert_eq!(client.read_response().unwrap().0, 200);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    let recording = Recording::start("POST:/", service.id(), &output);
    client.request("POST", "/", "{}").unwrap();
    let recorded = recording.finish();
    assert_eq!(
        (recorded.status.code(), recorded.out.as_str()),
        (Some(0), "")
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let report: Value = read_json(&fs::read_to_string(&file).unwrap()).unwrap();
    check_names(&report);
}
