//! The capture thread's own state, without a kernel side: processes that come and go, and what a full queue costs.

use std::process::{Child, Command as Program};

use nix::sys::eventfd::EfdFlags;
use profiler_common::EndReason;

use super::targets::Changed;
use super::*;
use crate::model::{
    ProfileTask, RawSample, RequestEvent, RequestId, SampleKind, Service, WallClock,
};
use crate::request::{Action, Endpoint};

const SLOT: TaskSlot = TaskSlot(3);

fn service() -> Service {
    Service {
        name: "shop".to_owned(),
        instance: "one".to_owned(),
    }
}

fn capture(queue: usize) -> (Capture, Receiver<Work>) {
    let (_, commands) = crossbeam_channel::unbounded();
    let (work, received) = crossbeam_channel::bounded(queue);
    let mut capture = Capture::new(
        commands,
        Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap()),
        work,
        Arc::default(),
        LoadOptions::default(),
        RequestTracker::default(),
        Arc::new(CaptureState::new(0, 0, 0)),
    )
    .unwrap();
    let task = ProfileTask {
        task_id: TaskId("t".to_owned()),
        service: service(),
        endpoint: "*".to_owned(),
        duration: Duration::from_secs(60),
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 9,
        start_unix_ms: 0,
        create_unix_ms: 0,
    };
    let live = Live {
        task_id: task.task_id.clone(),
        period: Duration::from_millis(10),
        ends_ktime_ns: None,
        targets: HashSet::new(),
        left_out_before: 0,
    };
    capture.live.insert(SLOT, live);
    let endpoint = Endpoint::parse("*").unwrap();
    capture.tracker.add_task(SLOT, task, endpoint);
    (capture, received)
}

/// A process that ends with the test.
struct Sleep(Child);

impl Sleep {
    fn start() -> Self {
        Self(Program::new("sleep").arg("1000").spawn().unwrap())
    }

    fn key(&self) -> ProcessKey {
        Procfs::default().key(Pid(self.0.id())).unwrap()
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Capture {
    fn add(&mut self, process: ProcessKey) {
        let target = NewTarget {
            slot: SLOT,
            process,
            service: service(),
            program: Procfs::default().stat(process.pid).unwrap(),
            python: None,
            python_threads: Vec::new(),
            has_agent: false,
        };
        self.add_target(target.clone());
        self.watch(target);
    }

    fn take(&mut self, event: &RequestEvent) -> Option<Changed> {
        self.on_process_event(event, &mut Vec::new())
    }

    fn targets(&self) -> &HashSet<ProcessKey> {
        &self.live[&SLOT].targets
    }

    /// Starts a request of a process and ends it; what became of both.
    fn serve(&mut self, pid: Pid) -> (Counter, Vec<Action>) {
        let mut actions = Vec::new();
        let clock = WallClock::from_readings(0, 0);
        let start = RequestEvent::Start {
            id: RequestId(7),
            slot: SLOT,
            pid,
            tid: Tid(pid.0),
            fd: 5,
            start_ktime_ns: 1_000,
            flags: 0,
            head: b"GET /a HTTP/1.1\r\n\r\n".to_vec(),
        };
        self.tracker.on_event(start, clock, &mut actions);
        let end = RequestEvent::End {
            id: RequestId(7),
            ktime_ns: 3_000,
            last_write_ktime_ns: 2_000,
            written_bytes: 10,
            flags: 0,
            reason: EndReason::Closed,
        };
        self.tracker.on_event(end, clock, &mut actions);
        let coverage = self.tracker.coverage_mut(SLOT).unwrap();
        let is_unknown = coverage.get(Counter::RequestsUnknownProcess) > 0;
        let counter = if is_unknown {
            Counter::RequestsUnknownProcess
        } else {
            Counter::RequestsMatched
        };
        (counter, actions)
    }
}

/// Check that the exit of the process that had an id before, read after the next one with the id is watched, does not
/// take that one away, and that its own exit does.
#[test]
fn an_id_means_the_process_that_has_it() {
    let (mut capture, _work) = capture(100);
    let sleep = Sleep::start();
    let key = sleep.key();
    let before = ProcessKey {
        start_ticks: key.start_ticks - 1,
        ..key
    };
    let early = now_ktime_ns();
    capture.add(before); // another process has its id by now
    assert!(capture.targets().is_empty() && capture.processes.is_empty());
    capture.add(key);
    assert_eq!(capture.targets().len(), 1);
    let exit = |ktime_ns| RequestEvent::Exit {
        pid: key.pid,
        ktime_ns,
    };
    assert!(capture.take(&exit(early)).is_none());
    assert_eq!(capture.targets().len(), 1);
    assert_eq!(capture.serve(key.pid).0, Counter::RequestsMatched);
    assert!(capture.take(&exit(now_ktime_ns())).is_some());
    assert!(capture.targets().is_empty() && capture.processes.is_empty());
}

/// Check that a server that forks for each request leaves nothing of its children behind, neither those that were
/// asked for their start nor those that had ended by then.
#[test]
fn children_that_are_gone_leave_nothing() {
    let (mut capture, work) = capture(10_000);
    let parent = Sleep::start();
    capture.add(parent.key());
    let living = Sleep::start();
    for round in 0..1_000_u32 {
        let child = if round % 2 == 0 {
            Pid(u32::MAX - round)
        } else {
            living.key().pid
        };
        let fork = RequestEvent::Fork {
            parent: parent.key().pid,
            tid: Tid(parent.key().pid.0),
            child,
            ktime_ns: now_ktime_ns(),
        };
        assert!(capture.take(&fork).is_none());
        assert_eq!(capture.targets().len(), 2);
        let exit = RequestEvent::Exit {
            pid: child,
            ktime_ns: now_ktime_ns(),
        };
        let changed = capture.take(&exit);
        capture.forget(changed);
        assert_eq!(capture.targets().len(), 1);
        assert_eq!(capture.processes.len(), 1);
    }
    let forgotten = work.try_iter();
    let forgotten = forgotten.filter(|work| matches!(work, Work::ForgetProcess(_, false)));
    assert_eq!(forgotten.count(), 1_000);
    assert_eq!(
        capture.serve(living.key().pid).0,
        Counter::RequestsUnknownProcess
    );
}

/// Check that processes whose exit was lost are found to be gone.
#[test]
fn lost_exits_are_made_up_for() {
    let (mut capture, _work) = capture(100);
    let (lives, ends) = (Sleep::start(), Sleep::start());
    let (lives_key, ends_key) = (lives.key(), ends.key());
    capture.add(lives_key);
    capture.add(ends_key);
    drop(ends);
    assert_eq!(capture.targets().len(), 2);
    capture.recheck_processes();
    assert_eq!(*capture.targets(), HashSet::from([lives_key]));
    assert_eq!(capture.processes.len(), 1);
}

/// Check that a sample for which the queue has no room is counted where its request is: in the task while the request
/// is open, in the request when it has finished in the same round.
#[test]
fn a_full_queue_is_counted_also_for_a_finished_request() {
    let (mut capture, _work) = capture(4);
    let sleep = Sleep::start();
    capture.add(sleep.key());
    let (_, actions) = capture.serve(sleep.key().pid);
    let finished = actions.into_iter();
    let finished = finished.filter(|action| matches!(action, Action::Finish(_)));
    let mut finished: Vec<Action> = finished.collect();
    let sample = |_| RawSample {
        request: RequestId(7),
        pid: sleep.key().pid,
        tid: Tid(sleep.key().pid.0),
        ktime_ns: 1_500,
        kind: SampleKind::Unchanged,
    };
    capture.send_samples((0..10).map(sample).collect(), &mut finished);
    let [Action::Finish(over)] = &finished[..] else {
        panic!("{finished:?}");
    };
    // One place was taken by the target.
    assert_eq!(over.losses.get(Counter::SamplesQueueFull), 10 - 3);
}

/// Check that a task that ends lets go of the processes that no other live task watches.
#[test]
fn a_task_that_ends_lets_go_of_its_processes() {
    let (mut capture, work) = capture(100);
    let (own_sleep, shared_sleep) = (Sleep::start(), Sleep::start());
    let (own, shared) = (own_sleep.key(), shared_sleep.key());
    capture.add(own);
    capture.add(shared);
    let other = Live {
        task_id: TaskId("other".to_owned()),
        period: Duration::from_millis(10),
        ends_ktime_ns: None,
        targets: HashSet::from([shared]),
        left_out_before: 0,
    };
    capture.live.insert(TaskSlot(4), other);
    capture.end_task(SLOT, now_ktime_ns());
    let left = capture.processes.keys().copied().collect::<Vec<_>>();
    assert_eq!(left, [shared.pid]);
    let mut work = work.try_iter();
    assert!(work.any(|it| matches!(it, Work::ForgetProcess(process, false) if process == own)));
}
