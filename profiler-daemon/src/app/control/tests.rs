use std::path::Path;

use tokio::time::Instant;

use super::super::neighbour;
use super::*;
use crate::model::clock::unix_ms_now;
use crate::state::StateFolder;

fn control(pipeline: Pipeline, oap: OapHandle, journal: Option<TaskJournal>) -> Control {
    Control {
        config: Config::default(),
        source: ConfigSource::default(),
        oap,
        pipeline,
        processes: Processes::default(),
        table: Some(Box::new(ProcessTable::new(Vec::new()))),
        scan: JoinSet::new(),
        must_scan_again: false,
        settles_at: None,
        inspections: Inspections::default(),
        postponed_told: None,
        system_ticks: HashMap::new(),
        pods: None,
        waiting: Vec::new(),
        live: HashMap::new(),
        journal,
        mark: neighbour::announce(&[]),
        oap_stops_too: false,
        stopped: Vec::new(),
        clashes_told: HashSet::new(),
        bindings: Bindings::spawn(&Config::default(), None),
        overhead: Overhead::new(Config::default().budget(), None),
        agent_instances: AgentInstances::new(None, "host"),
        found_instances: Found::new(),
        discovery: Discovery::spawn(&Config::default()).unwrap(),
        observed: Observed::default(),
        questions: Questions::default(),
    }
}

/// Nothing is captured, and no OAP is there.
fn idle(state: &Path) -> Control {
    let (oap, _) = OapClient::spawn(OapConfig::new(vec!["127.0.0.1:1".to_owned()]));
    let (pipeline, _) = Pipeline::with_resolve(|| {}).unwrap();
    let folder = StateFolder::open(state).unwrap();
    let journal = TaskJournal::open(folder, unix_ms_now()).unwrap();
    control(pipeline, oap, Some(journal))
}

/// For a minute.
fn task(id: &str, service: &str, start_unix_ms: i64) -> ProfileTask {
    ProfileTask {
        task_id: TaskId(id.to_owned()),
        service: Service {
            name: service.to_owned(),
            instance: "one".to_owned(),
        },
        endpoint: "/".to_owned(),
        duration: Duration::from_secs(60),
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 5,
        start_unix_ms,
        create_unix_ms: start_unix_ms,
    }
}

fn is_ending(control: &Control, id: &str) -> Option<bool> {
    let live = control.live.get(&TaskId(id.to_owned()));
    live.map(|live| live.ending)
}

/// Tasks that are over, and those that are not.
fn saved(control: &Control, is_over: bool) -> Vec<String> {
    let tasks = control.journal.as_ref().unwrap().tasks();
    let tasks = tasks.filter(|saved| saved.is_over == is_over);
    tasks.map(|saved| saved.task().task_id.0).collect()
}

/// Check that a task for the time of another one is refused, that one of another service runs beside it,
/// and that the next one waits for its start and ends what runs late.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_runs_one_task_at_a_time() {
    let state = tempfile::tempdir().unwrap();
    let mut control = idle(state.path());
    let now = unix_ms_now();
    let late = now - 55_000; // its time is over in five seconds; it runs for a minute all the same
    control.on_task(task("late", "shop", late));
    control.on_task(task("late", "shop", late));
    let before = ProfileTask {
        create_unix_ms: late - 1,
        ..task("same", "shop", now)
    };
    control.on_task(before);
    control.on_task(task("beside", "stock", now));
    control.on_task(task("next", "shop", late + 60_001));
    assert_eq!(is_ending(&control, "late"), Some(false));
    assert_eq!(is_ending(&control, "beside"), Some(false));
    assert_eq!(control.waiting.len(), 1);
    assert_eq!(saved(&control, true), ["same"]);
    assert_eq!(saved(&control, false), ["late", "beside", "next"]);
    let seen = control.observe().tasks;
    assert_eq!((seen.live, seen.started), (2, 2));
    assert_eq!((seen.waiting, seen.refused), (1, 1));

    let deadline = Instant::now() + Duration::from_secs(30);
    while is_ending(&control, "next").is_none() && Instant::now() < deadline {
        tokio::time::sleep(STEP).await;
        control.step();
    }
    assert_eq!(is_ending(&control, "next"), Some(false));
    assert_eq!(is_ending(&control, "late"), Some(true));
    assert_eq!(is_ending(&control, "beside"), Some(false));
}

/// Check that a cancelled task ends, once, and no other; and that hearing of it again, or of an unknown one, changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_ends() {
    let state = tempfile::tempdir().unwrap();
    let mut control = idle(state.path());
    let now = unix_ms_now();
    control.on_task(task("cancelled", "shop", now));
    control.on_task(task("other", "stock", now));
    for id in ["unknown", "cancelled", "cancelled"] {
        control.on_oap_event(OapEvent::TaskCancelled(TaskId(id.to_owned())));
    }
    assert_eq!(is_ending(&control, "cancelled"), Some(true));
    assert_eq!(is_ending(&control, "other"), Some(false));
}

/// Check that a task that was created later for the same time ends the one that runs or waits: an OAP that creates
/// it has lost that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_the_oap_has_lost_makes_way() {
    let state = tempfile::tempdir().unwrap();
    let mut control = idle(state.path());
    let now = unix_ms_now();
    let later = |id, start_unix_ms| ProfileTask {
        create_unix_ms: now + 200_000,
        ..task(id, "shop", start_unix_ms)
    };
    control.on_task(task("runs", "shop", now));
    control.on_task(task("waits", "shop", now + 120_000));
    control.on_task(later("next", now));
    control.on_task(later("after", now + 130_000));
    control.step();
    assert_eq!(is_ending(&control, "runs"), Some(true));
    assert_eq!(is_ending(&control, "next"), Some(false));
    let waiting = control.waiting.iter().map(|task| task.task_id.0.as_str());
    assert_eq!(waiting.collect::<Vec<_>>(), ["after"]);
    assert_eq!(saved(&control, true), ["waits"]);
    assert_eq!(saved(&control, false), ["runs", "next", "after"]);
}

/// Check that a restart goes on with what runs until its end, still waits for what is to start, and ends
/// what was over meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let now = unix_ms_now();
    let mut before = idle(state.path());
    before.on_task(task("runs", "shop", now));
    before.on_task(task("waits", "shop", now + 3_600_000));
    let over = task("over", "stock", now - 70_000);
    before.journal(|journal| journal.started(&over, now - 1));
    drop(before);
    let mut after = idle(state.path());
    after.resume();
    assert_eq!(is_ending(&after, "runs"), Some(false));
    let runs = &after.live[&TaskId("runs".to_owned())];
    let ends = runs.instances.values().next().unwrap();
    assert!(*ends <= Instant::now() + Duration::from_secs(60));
    assert_eq!(after.waiting, [task("waits", "shop", now + 3_600_000)]);
    assert_eq!(saved(&after, true), ["over"]);
}

/// Check that a task that goes on tells what was counted before as well: after a crash what the journal got,
/// after a clean stop all of it, each with a note; and that an OAP of our own does not hear of an end before it.
#[tokio::test(flavor = "multi_thread")]
async fn counts_go_on() {
    let state = tempfile::tempdir().unwrap();
    let (id, now) = (TaskId("runs".to_owned()), unix_ms_now());
    let counted = |seen, profiled| {
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsSeen, seen);
        coverage.add(Counter::RequestsProfiled, profiled);
        coverage
    };
    let told = |control: &Control, coverage: &Coverage| {
        let live = &control.live[&id];
        live.told_by(&live.reporter, coverage)
    };
    let mut first = idle(state.path());
    first.on_task(task("runs", "shop", now));
    first.tell_coverage(&id, counted(5, 1));
    first.tell_coverage(&id, counted(6, 1)); // within ten seconds, and no request was profiled
    drop(first);

    let mut second = idle(state.path());
    second.oap_stops_too = true;
    second.resume();
    let all = told(&second, &counted(2, 1));
    assert_eq!(
        (
            all.get(Counter::RequestsSeen),
            all.get(Counter::RequestsProfiled)
        ),
        (7, 2)
    );
    let notes: Vec<String> = all.notes().collect();
    assert!(notes[0].starts_with("profilerd was killed"), "{notes:?}");
    second.on_pipeline_event(PipelineEvent::TaskDone(id.clone(), counted(3, 1)));
    assert!(second.live.is_empty());
    let stopped = std::mem::take(&mut second.stopped);
    note_stopped(second.journal.as_mut().unwrap(), &second.oap, stopped);
    drop(second);

    let mut third = idle(state.path());
    third.resume();
    let all = told(&third, &counted(1, 0));
    assert_eq!(
        (
            all.get(Counter::RequestsSeen),
            all.get(Counter::RequestsProfiled)
        ),
        (9, 2)
    );
    let notes: Vec<String> = all.notes().collect();
    let is_said = |text: &str| notes.iter().any(|note| note.starts_with(text));
    assert!(
        is_said("profilerd was killed") && is_said("profilerd was stopped"),
        "{notes:?}"
    );
    assert!(!is_said("cut short"), "{notes:?}");
}

/// Check that the daemon ends with the reason when a thread of the pipeline does not live on.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_pipeline_ends_the_daemon() {
    let (oap, oap_events) = OapClient::spawn(OapConfig::new(vec!["127.0.0.1:1".to_owned()]));
    let (pipeline, events) = Pipeline::with_resolve(|| panic!("an unheard-of stack")).unwrap();
    let control = control(pipeline, oap, None);
    let signals = Signals::catch(EarlyReload::watch().unwrap()).unwrap();
    let result = control.run(oap_events, events, signals).await;
    assert_eq!(
        result.unwrap_err().to_string(),
        "the resolve thread panicked: an unheard-of stack"
    );
}
