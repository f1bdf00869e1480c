//! What the built-in OAP stores: tasks, instances, segments, snapshots, coverage. In SQLite.
//!
//! In:  calls of the gRPC services, with the time of the call
//! Out: commands for agents; tasks, logs and results for users
//! Lost: rows over a limit, unusable rows, rows of unknown tasks -> [`StoreLosses`] and a note in
//! the coverage of the task they belong to; a call that SQLite fails -> [`StorageError`], and nothing
//! of it is stored
//!
//! Everything is bounded by [`StoreLimits`]. Data of the oldest tasks that are over makes room for
//! new data; if there is none, the new data is dropped and counted.
//!
//! A call that returns `Ok` has committed: what it stored survives the death of the process
//! (`storage/database.rs` has the fine print). A call may wait for the disk and for other calls, so
//! asynchronous code makes it by [`Store::run`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use profiler_proto::skywalking::{Command, SegmentObject, ThreadSnapshot};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::Notify;
use tracing::{error, info};

use super::intake::Intake;
use super::span;
use super::storage::database::{DataDir, Database, OpenError};
use super::storage::tasks::TaskRow;
use super::storage::{StorageError, endpoints, instances, retention, segments, snapshots, tasks};
use super::task::{LogEntry, Operation, Refusal, TaskRecord, TaskRequest, TaskState};
use super::trace::SegmentSummary;
use crate::model::Coverage;
use crate::model::plain::is_plain;

pub use super::record::{
    FindError, InstanceRecord, NamedInstance, SegmentData, StoreLimits, StoreLosses, TaskView,
    TraceFilter,
};

/// Longest name of a service or endpoint that is kept: OAP cuts at 150 characters at most.
const NAME_MAX_BYTES: usize = 600;
/// Spans of segments without snapshots take at most an eighth of the store: agents report every request.
const LOOSE_SHARE: u64 = 8;

/// The store: one connection, one call at a time.
#[derive(Debug)]
pub struct Store {
    limits: StoreLimits,
    state: Mutex<State>,
    created: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    database: Database,
    losses: StoreLosses,
    /// The last call failed: said once, not for every call while the disk is full.
    failing: bool,
}

impl Store {
    /// An empty store in memory.
    #[must_use]
    pub fn new(limits: StoreLimits) -> Self {
        Self::open(&DataDir::Memory, limits).expect("SQLite has memory for an empty database")
    }

    /// The store in a directory, with what is there from before.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if there is something that is not to be used or cannot be.
    pub fn open(place: &DataDir, limits: StoreLimits) -> Result<Self, OpenError> {
        Ok(Self {
            limits,
            state: Mutex::new(State {
                database: Database::open(place)?,
                losses: StoreLosses::default(),
                failing: false,
            }),
            created: Arc::default(),
        })
    }

    /// What it is bounded by.
    #[must_use]
    pub fn limits(&self) -> &StoreLimits {
        &self.limits
    }

    /// Notified when a task has been accepted.
    #[must_use]
    pub fn created(&self) -> Arc<Notify> {
        Arc::clone(&self.created)
    }

    /// Makes calls from asynchronous code, on a thread that may wait.
    ///
    /// # Errors
    ///
    /// What `calls` returns, or that it did not get to return.
    pub async fn run<T, E>(
        self: &Arc<Self>,
        calls: impl FnOnce(&Self) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StorageError> + Send + 'static,
    {
        let store = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || calls(&store)).await;
        done.unwrap_or_else(|error| Err(StorageError::new(error).into()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read<T>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StorageError> {
        let mut state = self.lock();
        let result = look(&state.database.connection);
        state.noted(result)
    }

    /// Runs a transaction. Losses count if it is committed.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&Connection, &mut StoreLosses) -> rusqlite::Result<T>,
    ) -> Result<T, StorageError> {
        let mut state = self.lock();
        let mut losses = state.losses;
        let database = &mut state.database.connection;
        let result = database
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let value = change(&transaction, &mut losses)?;
                transaction.commit()?;
                Ok(value)
            });
        if result.is_ok() {
            state.losses = losses;
        }
        state.noted(result)
    }

    /// Accepts a task.
    ///
    /// # Errors
    ///
    /// [`Refusal`] by OAP's rules, or because no room can be made for it.
    pub fn create_task(&self, request: TaskRequest, now_ms: i64) -> Result<TaskRecord, Refusal> {
        let limit = self.limits.tasks;
        let task = self.write(|db, _| {
            let rows = tasks::of_service(db, &request.service)?;
            let over = over(db, &rows, now_ms)?;
            let others = rows.iter().map(|row| &row.task);
            let is_over = |task: &TaskRecord| over.contains(&task.id.as_str());
            let task = match TaskRecord::create(request, others, is_over, now_ms) {
                Ok(task) => task,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if !instances::has_agent(db, &task.request.service)?
                && let Err(refusal) = task.request.check_endpoint()
            {
                return Ok(Err(refusal));
            }
            let why = format!("no more than {limit} tasks are kept");
            if tasks::all(db)?.len() >= limit
                && !retention::remove_oldest(db, i64::MAX, now_ms, &why)?
            {
                return Ok(Err(Refusal::Full(limit)));
            }
            tasks::insert(db, &task)?;
            Ok(Ok(task))
        })??;
        self.created.notify_one();
        Ok(task)
    }

    /// Commands for an instance that asks; each is noted in its task's log.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn commands(
        &self,
        service: &str,
        instance: &str,
        last_command_ms: i64,
        now_ms: i64,
    ) -> Result<Vec<Command>, StorageError> {
        let limits = self.limits;
        self.write(|db, losses| {
            let key = (service, instance);
            losses.other_over_limit +=
                instances::seen(db, key, None, now_ms, limits.instances)? as u64;
            let mut commands = Vec::new();
            for TaskRow { key, task, .. } in tasks::of_service(db, service)? {
                if task.is_deliverable(last_command_ms, now_ms) {
                    commands.push(task.to_command());
                    let entry = LogEntry {
                        instance: instance.to_owned(),
                        operation: Operation::Notified,
                        time_ms: now_ms,
                    };
                    log(db, key, &entry, limits, losses)?;
                }
            }
            Ok(commands)
        })
    }

    /// Notes that an instance has finished a task.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn finished(&self, task_id: &str, instance: &str, now_ms: i64) -> Result<(), StorageError> {
        self.write(|db, losses| {
            let Some(row) = tasks::find(db, task_id)? else {
                return Ok(());
            };
            let entry = LogEntry {
                instance: instance.to_owned(),
                operation: Operation::Finished,
                time_ms: now_ms,
            };
            log(db, row.key, &entry, self.limits, losses)
        })
    }

    /// Notes that an instance lives, to the minute, and its properties if it sent them.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn seen(
        &self,
        service: &str,
        instance: &str,
        properties: Option<BTreeMap<String, String>>,
        now_ms: i64,
    ) -> Result<(), StorageError> {
        let limit = self.limits.instances;
        self.write(|db, losses| {
            let key = (service, instance);
            losses.other_over_limit +=
                instances::seen(db, key, properties.as_ref(), now_ms, limit)? as u64;
            Ok(())
        })
    }

    /// Notes that services have endpoints; names that nothing else would take are left out, and counted.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn seen_endpoints(
        &self,
        seen: Vec<(String, String)>,
        now_ms: i64,
    ) -> Result<(), StorageError> {
        let fits = |name: &str, bytes| !name.is_empty() && name.len() <= bytes && is_plain(name);
        self.write(|db, losses| {
            // Most logs are of no endpoint.
            for (service, name) in seen.iter().filter(|(_, name)| !name.is_empty()) {
                let is_kept = fits(service, NAME_MAX_BYTES)
                    && fits(name, NAME_MAX_BYTES)
                    && endpoints::seen(db, (service, name), now_ms)?;
                losses.other_over_limit += u64::from(!is_kept);
            }
            Ok(())
        })
    }

    /// Stores segments, all or none. Of two with one id the first stays.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn add_segments(
        &self,
        objects: impl IntoIterator<Item = SegmentObject>,
    ) -> Result<(), StorageError> {
        self.write(|db, losses| {
            for object in objects {
                let Ok(summary) = SegmentSummary::try_from_object(&object) else {
                    losses.bad_segments += 1;
                    continue;
                };
                let (spans, lost) = span::keep(object.spans);
                losses.span_parts_over_limit += lost;
                segments::insert(db, &summary, &span::to_bytes(spans))?;
            }
            let bytes = self.limits.bytes / LOOSE_SHARE;
            segments::trim_loose(db, self.limits.loose_segments, bytes).map(drop)
        })
    }

    /// Stores snapshots, all or none, except for those that are lost on their own account.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn add_snapshots(
        &self,
        snapshots: impl IntoIterator<Item = ThreadSnapshot>,
        now_ms: i64,
    ) -> Result<(), StorageError> {
        self.write(|db, losses| {
            let mut intake = Intake::new(db, self.limits.bytes, now_ms, losses);
            for snapshot in snapshots {
                intake.add(snapshot)?;
            }
            Ok(())
        })
    }

    /// Replaces what an instance reported about a task. Returns whether the task is cancelled.
    ///
    /// # Errors
    ///
    /// [`FindError`] if there is no such task.
    pub fn set_coverage(
        &self,
        task_id: &str,
        instance: &str,
        coverage: Coverage,
    ) -> Result<bool, FindError> {
        let limit = self.limits.logs_per_task;
        let found = self.write(|db, losses| {
            let Some(row) = tasks::find(db, task_id)? else {
                return Ok(None);
            };
            if !tasks::set_coverage(db, row.key, instance, &coverage, limit)? {
                losses.other_over_limit += 1;
            }
            Ok(Some(row.task.cancelled_ms.is_some()))
        })?;
        found.ok_or_else(|| FindError::Unknown(task_id.to_owned()))
    }

    /// All instances that have reported.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn instances(&self) -> Result<Vec<NamedInstance>, StorageError> {
        self.read(instances::all)
    }

    /// All tasks, newest first.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn tasks(&self, now_ms: i64) -> Result<Vec<(TaskRecord, TaskState)>, StorageError> {
        let logged = self.logged_tasks()?.into_iter();
        let stated = logged.map(|(task, logs)| {
            let state = task.state(&logs, now_ms);
            (task, state)
        });
        Ok(stated.collect())
    }

    /// The task with this id or with the only id that begins so; for an empty text the newest.
    ///
    /// # Errors
    ///
    /// [`FindError`] if no task or more than one fits.
    pub fn find_task(&self, text: &str, now_ms: i64) -> Result<TaskView, FindError> {
        self.read(|db| match find(db, text)? {
            Ok(row) => view(db, row, now_ms).map(Ok),
            Err(error) => Ok(Err(error)),
        })?
    }

    /// The segments of a task that can be shown, oldest first.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn segments(&self, task_id: &str) -> Result<Vec<SegmentData>, StorageError> {
        self.read(|db| {
            let Some(row) = tasks::find(db, task_id)? else {
                return Ok(Vec::new());
            };
            let listed = segments::listed(db, row.key)?.into_iter();
            let loaded = listed.map(|(key, summary)| {
                let snapshots = snapshots::of_segment(db, key)?;
                Ok(SegmentData { summary, snapshots })
            });
            loaded.collect()
        })
    }

    /// Removes what is too old or too much, and gives the space back. To be called now and then.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn sweep(&self, now_ms: i64) -> Result<(), StorageError> {
        let retention_ms = i64::try_from(self.limits.retention.as_millis()).unwrap_or(i64::MAX);
        let since_ms = now_ms.saturating_sub(retention_ms);
        // A transaction each: others get their turn in between.
        self.write(|db, _| retention::remove_silent(db, since_ms))?;
        let why = "their time is over";
        while self.write(|db, _| retention::remove_oldest(db, since_ms, now_ms, why))? {}
        while self.write(|db, _| {
            Ok(retention::used_bytes(db)? >= self.limits.bytes
                && retention::clear_oldest(db, None, now_ms)?)
        })? {}
        while self.read(retention::give_back)? {}
        Ok(())
    }

    /// Counts of what was not stored.
    #[must_use]
    pub fn losses(&self) -> StoreLosses {
        self.lock().losses
    }
}

impl State {
    fn noted<T>(&mut self, result: rusqlite::Result<T>) -> Result<T, StorageError> {
        match &result {
            Ok(_) if self.failing => info!("the store of the built-in OAP works again"),
            Err(error) if !self.failing => error!(%error, "the store of the built-in OAP fails"),
            _ => {}
        }
        self.failing = result.is_err();
        Ok(result?)
    }
}

fn log(
    db: &Connection,
    task: i64,
    entry: &LogEntry,
    limits: StoreLimits,
    losses: &mut StoreLosses,
) -> rusqlite::Result<()> {
    if !tasks::log(db, task, entry, limits.logs_per_task)? {
        losses.other_over_limit += 1;
    }
    Ok(())
}

/// Ids of those that nothing more is expected of.
fn over<'a>(db: &Connection, rows: &'a [TaskRow], now_ms: i64) -> rusqlite::Result<Vec<&'a str>> {
    let mut over = Vec::new();
    for row in rows {
        if retention::is_over(db, row, now_ms)? {
            over.push(row.task.id.as_str());
        }
    }
    Ok(over)
}

/// The task with this id or with the only id that begins so; for an empty text the newest.
pub(super) fn find(db: &Connection, text: &str) -> rusqlite::Result<Result<TaskRow, FindError>> {
    if text.is_empty() {
        return Ok(tasks::newest(db)?.ok_or(FindError::Empty));
    }
    if let Some(row) = tasks::find(db, text)? {
        return Ok(Ok(row));
    }
    let mut fitting = tasks::beginning(db, text)?;
    Ok(match fitting.len() {
        0 => Err(FindError::Unknown(text.to_owned())),
        1 => Ok(fitting.remove(0)),
        _ => {
            let ids: Vec<&str> = fitting.iter().map(|row| row.task.id.as_str()).collect();
            Err(FindError::Ambiguous(text.to_owned(), ids.join(", ")))
        }
    })
}

fn view(db: &Connection, row: TaskRow, now_ms: i64) -> rusqlite::Result<TaskView> {
    let mut coverage = tasks::coverage(db, row.key)?;
    let segments = segments::listed(db, row.key)?.len();
    let hidden = segments::count(db, row.key)? - segments;
    if hidden > 0 {
        coverage.note(format!(
            "{hidden} segments are not shown: their trace segment or their snapshot 0 has not arrived"
        ));
    }
    if row.lost > 0 {
        coverage.note(format!("{} snapshots were not stored", row.lost));
    }
    let logs = tasks::logs(db, row.key)?;
    Ok(TaskView {
        state: row.task.state(&logs, now_ms),
        task: row.task,
        logs,
        coverage,
        segments,
        snapshots: snapshots::count(db, row.key)?,
    })
}
