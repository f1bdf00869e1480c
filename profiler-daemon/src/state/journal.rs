//! Tasks by instance: what the daemon needs to continue them after a restart, or not to run them again.
//!
//! In:  tasks as they come, start, profile requests and end
//! Out: [`SavedTask`]s of the daemon before
//! Lost: a file that is no journal is moved aside; over [`TASKS_MAX`] the oldest are forgotten

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::StateFolder;
use crate::model::{Counter, Coverage, ProfileTask, Service, TaskId, TaskLimits};

const FILE: &str = "tasks.json";
/// A task is delivered for five minutes around its start, so a day is long enough to remember it.
const FORGET_AFTER_MS: i64 = 24 * 3_600_000;
/// Tasks times instances that are remembered.
const TASKS_MAX: usize = 4096;
/// Room for that many with names of full length and usual counts.
const FILE_MAX_BYTES: u64 = 32 << 20;
/// Notes kept of one task.
const NOTES_MAX: usize = 64;

/// A task at one service instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTask {
    task_id: String,
    service: String,
    instance: String,
    endpoint: String,
    duration_ms: u64,
    min_duration_threshold_ms: u32,
    dump_period_ms: u32,
    max_sampling_count: u32,
    start_unix_ms: i64,
    create_unix_ms: i64,
    /// When it ends, by the clock of this host.
    pub ends_unix_ms: i64,
    /// It has not started here.
    #[serde(default)]
    pub is_waiting: bool,
    /// Requests that were profiled.
    pub used: u32,
    /// Its end was reported, or it was refused.
    pub is_over: bool,
    /// It was cut short by a clean stop: nothing of it was lost but what happened since.
    #[serde(default)]
    pub is_stopped: bool,
    /// What this and earlier daemons have counted of it.
    #[serde(default)]
    coverage: SavedCoverage,
}

/// Counts by name, and notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedCoverage {
    counts: BTreeMap<String, u64>,
    notes: Vec<String>,
}

impl SavedCoverage {
    fn new(coverage: &Coverage) -> Self {
        let moved = Counter::all().map(|counter| (counter, coverage.get(counter)));
        Self {
            counts: moved
                .filter(|&(_, count)| count > 0)
                .map(|(counter, count)| (counter.name().to_owned(), count))
                .collect(),
            notes: coverage.notes().take(NOTES_MAX).collect(),
        }
    }

    /// Counts that only another version knows are left out.
    fn coverage(&self) -> Coverage {
        let mut coverage = Coverage::default();
        for (name, &count) in &self.counts {
            if let Some(counter) = Counter::from_name(name) {
                coverage.add(counter, count);
            }
        }
        for note in &self.notes {
            coverage.note(note.clone());
        }
        coverage
    }
}

impl SavedTask {
    fn new(task: &ProfileTask, ends_unix_ms: i64) -> Self {
        Self {
            task_id: task.task_id.0.clone(),
            service: task.service.name.clone(),
            instance: task.service.instance.clone(),
            endpoint: task.endpoint.clone(),
            duration_ms: u64::try_from(task.duration.as_millis()).unwrap_or(u64::MAX),
            min_duration_threshold_ms: task.min_duration_threshold_ms,
            dump_period_ms: task.dump_period_ms,
            max_sampling_count: task.max_sampling_count,
            start_unix_ms: task.start_unix_ms,
            create_unix_ms: task.create_unix_ms,
            ends_unix_ms,
            is_waiting: false,
            used: 0,
            is_over: false,
            is_stopped: false,
            coverage: SavedCoverage::default(),
        }
    }

    /// What was counted of it so far, as far as it was noted.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        self.coverage.coverage()
    }

    /// The task as it was received.
    #[must_use]
    pub fn task(&self) -> ProfileTask {
        ProfileTask {
            task_id: TaskId(self.task_id.clone()),
            service: self.service(),
            endpoint: self.endpoint.clone(),
            duration: Duration::from_millis(self.duration_ms),
            min_duration_threshold_ms: self.min_duration_threshold_ms,
            dump_period_ms: self.dump_period_ms,
            max_sampling_count: self.max_sampling_count,
            start_unix_ms: self.start_unix_ms,
            create_unix_ms: self.create_unix_ms,
        }
    }

    /// The instance.
    #[must_use]
    pub fn service(&self) -> Service {
        Service {
            name: self.service.clone(),
            instance: self.instance.clone(),
        }
    }

    fn is_of(&self, task_id: &TaskId, service: &Service) -> bool {
        self.task_id == task_id.0
            && self.service == service.name
            && self.instance == service.instance
    }

    /// Whether an OAP could have asked for it.
    fn is_possible(&self) -> bool {
        let minutes = *TaskLimits::DURATION_MINUTES.end();
        let longest = Duration::from_secs(60) * u32::try_from(minutes).unwrap_or(u32::MAX);
        let counts = TaskLimits::MAX_SAMPLING_COUNT;
        Duration::from_millis(self.duration_ms) <= longest
            && i64::from(self.dump_period_ms) >= TaskLimits::DUMP_PERIOD_MIN_MS
            && counts.contains(&i64::from(self.max_sampling_count))
            && self.ends_unix_ms >= 0
            && self.coverage.notes.len() <= NOTES_MAX
    }
}

/// The journal. Each change is on the disk when the call returns.
#[derive(Debug)]
pub struct TaskJournal {
    folder: StateFolder,
    tasks: Vec<SavedTask>,
}

impl TaskJournal {
    /// Reads what a daemon before has left.
    ///
    /// # Errors
    ///
    /// The file cannot be read, nor moved aside.
    pub fn open(folder: StateFolder, now_ms: i64) -> Result<Self> {
        let tasks = match read(&folder) {
            Ok(tasks) => tasks,
            Err(error) => {
                let aside = folder.move_aside(FILE)?;
                tracing::warn!(
                    error = format!("{error:#}"), now = %aside.display(),
                    "the journal of tasks cannot be read and was moved aside; no task is continued"
                );
                Vec::new()
            }
        };
        let mut journal = Self { folder, tasks };
        let remembered = now_ms - FORGET_AFTER_MS;
        journal.tasks.retain(|task| task.ends_unix_ms > remembered);
        Ok(journal)
    }

    /// All that is remembered, oldest first.
    pub fn tasks(&self) -> impl Iterator<Item = &SavedTask> {
        self.tasks.iter()
    }

    /// A task has come for an instance, to be started later or not at all.
    pub fn received(&mut self, task: &ProfileTask) {
        let waiting = SavedTask {
            is_waiting: true,
            ..SavedTask::new(task, task.end_unix_ms())
        };
        self.put(waiting);
    }

    /// A task begins at an instance.
    pub fn started(&mut self, task: &ProfileTask, ends_unix_ms: i64) {
        self.put(SavedTask::new(task, ends_unix_ms));
    }

    /// Remembers a task that is new, or one that was waiting until now.
    fn put(&mut self, task: SavedTask) {
        let (task_id, service) = (TaskId(task.task_id.clone()), task.service());
        let mut tasks = self.tasks.iter_mut();
        match tasks.find(|saved| saved.is_of(&task_id, &service)) {
            Some(saved) if saved.is_waiting => *saved = task,
            Some(_) => return,
            None => {
                if self.tasks.len() >= TASKS_MAX {
                    self.tasks.remove(0);
                }
                self.tasks.push(task);
            }
        }
        self.save();
    }

    /// A request of the task was profiled at an instance.
    pub fn profiled(&mut self, task_id: &TaskId, service: &Service) {
        self.change(task_id, service, |saved| saved.used += 1);
    }

    /// The task's counts so far, reported by an instance.
    pub fn counted(&mut self, task_id: &TaskId, service: &Service, coverage: &Coverage) {
        let coverage = SavedCoverage::new(coverage);
        self.change(task_id, service, |saved| saved.coverage = coverage.clone());
    }

    /// The daemon stops while the task runs at an instance.
    pub fn stopped(&mut self, task_id: &TaskId, service: &Service, coverage: &Coverage) {
        let coverage = SavedCoverage::new(coverage);
        self.change(task_id, service, |saved| {
            saved.is_stopped = true;
            saved.coverage = coverage.clone();
        });
    }

    /// The task continues at an instance.
    pub fn resumed(&mut self, task_id: &TaskId, service: &Service) {
        self.change(task_id, service, |saved| saved.is_stopped = false);
    }

    /// The task is over for an instance.
    pub fn ended(&mut self, task_id: &TaskId, service: &Service) {
        self.change(task_id, service, |saved| {
            saved.is_over = true;
            saved.coverage = SavedCoverage::default(); // the OAP has it
        });
    }

    fn change(&mut self, task_id: &TaskId, service: &Service, change: impl Fn(&mut SavedTask)) {
        let mut tasks = self.tasks.iter_mut();
        if let Some(saved) = tasks.find(|saved| saved.is_of(task_id, service)) {
            change(saved);
            self.save();
        }
    }

    /// A disk that is full must not end a profile.
    fn save(&self) {
        let saved = serde_json::to_vec(&self.tasks)
            .context("a task cannot be written as JSON")
            .and_then(|bytes| self.folder.replace(FILE, &bytes));
        if let Err(error) = saved {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "the journal was not written: a restart will not continue the latest tasks"
            );
        }
    }
}

fn read(folder: &StateFolder) -> Result<Vec<SavedTask>> {
    let Some(bytes) = folder.read(FILE, FILE_MAX_BYTES)? else {
        return Ok(Vec::new());
    };
    parse(&bytes)
        .with_context(|| format!("{} is not a journal of tasks", folder.file(FILE).display()))
}

/// Tasks that an OAP can have asked for.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<SavedTask>> {
    let tasks: Vec<SavedTask> = serde_json::from_slice(bytes)?;
    if tasks.len() > TASKS_MAX || !tasks.iter().all(SavedTask::is_possible) {
        bail!("it has tasks that no OAP can have created");
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const NOW: i64 = 1_795_405_209_971;

    fn task(id: &str) -> ProfileTask {
        ProfileTask {
            task_id: TaskId(id.to_owned()),
            service: Service {
                name: "shop".to_owned(),
                instance: "one".to_owned(),
            },
            endpoint: "POST:/".to_owned(),
            duration: Duration::from_secs(60),
            min_duration_threshold_ms: 0,
            dump_period_ms: 10,
            max_sampling_count: 5,
            start_unix_ms: NOW,
            create_unix_ms: NOW,
        }
    }

    fn open(path: &Path, now_ms: i64) -> TaskJournal {
        TaskJournal::open(StateFolder::open(path).unwrap(), now_ms).unwrap()
    }

    /// Check that a task comes back as it was, with the requests it has used and whether it is over.
    #[test]
    fn a_task_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let mut journal = open(root.path(), NOW);
        let (one, two) = (task("one"), task("two"));
        for task in [&one, &two, &one] {
            journal.started(task, NOW + 60_000);
        }
        journal.profiled(&one.task_id, &one.service);
        journal.profiled(&one.task_id, &one.service);
        journal.ended(&two.task_id, &two.service);
        drop(journal);
        let journal = open(root.path(), NOW);
        let saved: Vec<_> = journal
            .tasks()
            .map(|s| (s.task(), s.used, s.is_over))
            .collect();
        assert_eq!(saved, [(one, 2, false), (two, 0, true)]);
        drop(journal);
        assert_eq!(
            open(root.path(), NOW + 2 * FORGET_AFTER_MS).tasks().count(),
            0
        );
    }

    /// Check that counts and notes come back, that counts of another version are left out, and that a clean stop
    /// is told from a crash.
    #[test]
    fn counts_come_back() {
        let root = tempfile::tempdir().unwrap();
        let mut journal = open(root.path(), NOW);
        let one = task("one");
        journal.started(&one, NOW + 60_000);
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsSeen, 7);
        coverage.note("a note");
        journal.counted(&one.task_id, &one.service, &coverage);
        drop(journal);
        let path = root.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let newer = text.replace(
            "\"requests_seen\":7",
            "\"requests_seen\":7,\"moons_seen\":1",
        );
        assert_ne!(text, newer);
        fs::write(&path, newer).unwrap();
        let mut journal = open(root.path(), NOW);
        let saved = journal.tasks().next().unwrap();
        assert_eq!(
            (saved.coverage(), saved.is_stopped),
            (coverage.clone(), false)
        );
        coverage.add(Counter::RequestsSeen, 1);
        journal.stopped(&one.task_id, &one.service, &coverage);
        drop(journal);
        let mut journal = open(root.path(), NOW);
        let saved = journal.tasks().next().unwrap();
        assert_eq!((saved.coverage(), saved.is_stopped), (coverage, true));
        journal.resumed(&one.task_id, &one.service);
        assert!(!journal.tasks().next().unwrap().is_stopped);
    }

    /// Check that what is no journal is moved aside, not believed and not lost.
    #[test]
    fn garbage_is_moved_aside() {
        let saved = serde_json::to_string(&[SavedTask::new(&task("one"), NOW)]).unwrap();
        let absurd = saved.replace("\"max_sampling_count\":5", "\"max_sampling_count\":5000");
        for text in ["", "{}", "[1]", "\u{0}", &absurd] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(FILE), text).unwrap();
            let journal = open(root.path(), NOW);
            assert_eq!(journal.tasks().count(), 0);
            let aside = root.path().join("tasks.json.unreadable");
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
    }

    /// Check that a task that waits for its start comes back as such, and starts once.
    #[test]
    fn a_waiting_task_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let mut journal = open(root.path(), NOW);
        let later = task("later");
        journal.received(&later);
        drop(journal);
        let mut journal = open(root.path(), NOW);
        let state = |journal: &TaskJournal| {
            let saved = journal.tasks().next().unwrap();
            (saved.is_waiting, saved.ends_unix_ms - NOW)
        };
        assert_eq!(state(&journal), (true, 60_000));
        journal.started(&later, NOW + 61_000);
        journal.received(&later);
        assert_eq!(state(&journal), (false, 61_000));
        journal.started(&later, NOW + 99_000);
        assert_eq!(state(&journal), (false, 61_000));
        assert_eq!(journal.tasks().count(), 1);
    }

    /// Check that a task of another instance is another one.
    #[test]
    fn instances_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let mut journal = open(root.path(), NOW);
        let one = task("one");
        let mut other = one.clone();
        other.service.instance = "other".to_owned();
        journal.started(&one, NOW);
        journal.started(&other, NOW);
        journal.profiled(&one.task_id, &other.service);
        let used: Vec<u32> = journal.tasks().map(|saved| saved.used).collect();
        assert_eq!(used, [0, 1]);
    }
}
