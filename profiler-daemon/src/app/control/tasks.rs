//! The rules of tasks: which is refused, when one starts, what it runs for, when it ends.
//!
//! In:  tasks from an OAP and from the journal, the time
//! Out: [`Command`]s to the pipeline; ends to the OAP and to the journal
//! Lost: a task that cannot run is reported as finished, with the reason in its coverage

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use profiler_common::MAX_TASKS;
use tokio::time::Instant;

use super::budget::period_note;
use super::{Command, Control};
use crate::model::clock::unix_ms_now;
use crate::model::{Counter, Coverage, ProcessKey, ProfileTask, Service, TaskId, TaskSlot};
use crate::oap::DeliveryStats;
use crate::output::explain_nothing;
use crate::request::Endpoint;
use crate::state::{SavedTask, TaskJournal};

/// Note of a task that a stop has ended, until the task continues.
const CUT_SHORT: &str = "cut short: profilerd was stopped before the task's end; the task goes on if it \
                         is started again in time";
/// The same, of a daemon that keeps no journal.
const CUT_OFF: &str = "cut short: profilerd was stopped before the task's end";
/// Note of a task that a user has ended.
const CANCELLED: &str = "cut short: the task was cancelled";
/// Notes of a task that continues after a restart.
const STOPPED: &str = "profilerd was stopped and started again while the task ran; requests in between were \
                       not seen";
const DIED: &str = "profilerd was killed or crashed, and was started again while the task ran; requests \
                    that were open then are missing, and so are counts of the ten seconds before";
/// How often the journal gets the counts of a task, if no request is profiled.
const NOTE_COUNTS: Duration = Duration::from_secs(10);

/// A task in a slot.
pub(super) struct Live {
    pub(super) slot: TaskSlot,
    /// As one of the instances has got it.
    pub(super) task: ProfileTask,
    /// Coverage is kept per task; this instance reports it.
    pub(super) reporter: Service,
    /// Instances that run it, with the time it ends for them.
    pub(super) instances: BTreeMap<Service, Instant>,
    /// Instances it is over for; they are reported when the slot is done.
    pub(super) ended: Vec<Service>,
    /// Processes that have been checked for it, as long as they live.
    pub(super) watched: HashSet<ProcessKey>,
    pub(super) began: Instant,
    pub(super) ending: bool,
    /// It is over but for requests whose segments are not known yet.
    pub(super) done: Option<Coverage>,
    /// Counts from before a restart, by the instance that reported them.
    pub(super) before: BTreeMap<Service, Coverage>,
    /// What the OAP has heard of deliveries of the instances that report no other counts.
    pub(super) delivered: HashMap<Service, DeliveryStats>,
    /// When the journal got the counts, and of how many profiled requests they were.
    pub(super) noted: (Instant, u64),
}

impl Live {
    /// Runs at the instance, or did until a moment ago.
    fn is_at(&self, service: &Service) -> bool {
        self.instances.contains_key(service) || self.ended.contains(service)
    }

    /// The counts that an instance reports: the reporter those of the pipeline, the others those from before a restart.
    pub(super) fn told_by(&self, service: &Service, coverage: &Coverage) -> Coverage {
        let mut told = self.before.get(service).cloned().unwrap_or_default();
        if *service == self.reporter {
            told.merge(coverage);
        }
        told
    }
}

impl Control {
    pub(super) fn on_task(&mut self, task: ProfileTask) {
        tracing::info!(
            task_id = %task.task_id, service = task.service.name,
            instance = task.service.instance, endpoint = task.endpoint, "task received"
        );
        let live = self.live.values();
        let running = live
            .filter(|live| live.is_at(&task.service))
            .map(|live| &live.task);
        let waiting = self
            .waiting
            .iter()
            .filter(|other| other.service == task.service);
        let others = running.chain(waiting).filter(|it| it.overlaps(&task));
        let others: Vec<ProfileTask> = others.cloned().collect();
        if others.iter().any(|other| other.task_id == task.task_id) {
            return;
        }
        let newer = |other: &&ProfileTask| other.create_unix_ms >= task.create_unix_ms;
        if let Some(other) = others.iter().find(newer) {
            let reason = format!(
                "a service runs one task at a time, and the task {} for the same time came before",
                other.task_id
            );
            return self.refuse(&task, reason);
        }
        for other in others {
            self.end_unknown(&other, &task);
        }
        if task.start_unix_ms > unix_ms_now() {
            // A restart must not forget it: it may not be delivered again.
            self.journal(|journal| journal.received(&task));
        }
        // Looks at other processes for some milliseconds.
        tokio::task::block_in_place(|| self.mark.add_task(&task.task_id));
        self.waiting.push(task);
        self.step();
    }

    /// Reports the end of a task at an instance.
    pub(super) fn tell_end(&self, task_id: TaskId, service: Service, coverage: Coverage) {
        // It may have to go to disk.
        tokio::task::block_in_place(|| self.oap.finish(task_id, service, coverage));
    }

    /// Starts what is due and ends what is over.
    pub(super) fn step(&mut self) {
        let now_ms = unix_ms_now();
        let (due, waiting): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .partition(|task| task.start_unix_ms <= now_ms);
        self.waiting = waiting;
        for task in due {
            self.start(task);
        }
        let now = Instant::now();
        for live in self.live.values_mut() {
            let over: Vec<Service> = live
                .instances
                .iter()
                .filter(|(_, ends)| **ends <= now)
                .map(|(service, _)| service.clone())
                .collect();
            for service in over {
                live.instances.remove(&service);
                live.ended.push(service);
            }
            if live.instances.is_empty() && !live.ending {
                live.ending = true;
                self.pipeline.send(Command::EndTask { slot: live.slot });
            }
        }
    }

    fn start(&mut self, task: ProfileTask) {
        let now_ms = unix_ms_now();
        let late_ms = now_ms.saturating_sub(task.start_unix_ms);
        if late_ms > i64::try_from(task.duration.as_millis()).unwrap_or(i64::MAX) {
            return self.refuse(&task, format!("the task's time was over {late_ms} ms ago"));
        }
        let refusal = self
            .shortest_period()
            .and_then(|it| self.overhead.refusal(it));
        if let Some(reason) = refusal.filter(|_| !self.live.contains_key(&task.task_id)) {
            return self.refuse(&task, reason);
        }
        let lasts = task.duration;
        let lasts_ms = i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX);
        self.journal(|journal| journal.started(&task, now_ms.saturating_add(lasts_ms)));
        self.run_for(task, lasts);
    }

    /// Ends what runs at an instance, late, when another task begins there: as agents do.
    fn make_way(&mut self, next: &TaskId, service: &Service) {
        for (task_id, live) in &mut self.live {
            if let Some(ends) = live.instances.get_mut(service)
                && task_id != next
            {
                *ends = Instant::now();
                let text = format!(
                    "cut short at {}: the next task, {next}, began",
                    service.instance
                );
                self.pipeline.send(Command::Note {
                    slot: live.slot,
                    counter: None,
                    text,
                });
            }
        }
    }

    /// Ends a task at an instance that has got one for the same time since. No OAP creates such while it knows the
    /// first one: it has lost its tasks, so results of that one would never be shown.
    fn end_unknown(&mut self, lost: &ProfileTask, next: &ProfileTask) {
        let why = format!(
            "the OAP does not know this task any more: it has created {} for the same time",
            next.task_id
        );
        tracing::warn!(task_id = %lost.task_id, "the task is ended: {why}");
        let waiting = self.waiting.len();
        self.waiting
            .retain(|task| task.task_id != lost.task_id || task.service != next.service);
        if self.waiting.len() < waiting {
            return self.refuse(lost, why);
        }
        let live = self.live.get_mut(&lost.task_id);
        if let Some(ends) = live.and_then(|live| live.instances.get_mut(&next.service)) {
            *ends = Instant::now();
            let text = format!("cut short at {}: {why}", next.service.instance);
            self.note(&lost.task_id, text);
        }
    }

    /// Ends a task that a user has cancelled; what it has profiled stays.
    pub(super) fn cancel(&mut self, task_id: &TaskId) {
        let Some(live) = self.live.get_mut(task_id).filter(|live| !live.ending) else {
            return; // heard before
        };
        let now = Instant::now();
        live.instances.values_mut().for_each(|ends| *ends = now);
        tracing::info!(%task_id, "the task is cancelled");
        self.note(task_id, CANCELLED.to_owned());
        self.step();
    }

    /// Runs a task at an instance for this time.
    pub(super) fn run_for(&mut self, task: ProfileTask, lasts: Duration) {
        let ends = Instant::now() + lasts;
        let (task_id, service) = (task.task_id.clone(), task.service.clone());
        if let Some(live) = self.live.get_mut(&task_id) {
            live.instances.insert(service.clone(), ends);
        } else {
            let endpoint = match Endpoint::parse(&task.endpoint) {
                Ok(endpoint) => endpoint,
                Err(error) => return self.refuse(&task, error.to_string()),
            };
            let used: HashSet<u32> = self.live.values().map(|live| live.slot.0).collect();
            let Some(slot) = (0..MAX_TASKS)
                .find(|slot| !used.contains(slot))
                .map(TaskSlot)
            else {
                return self.refuse(&task, format!("{MAX_TASKS} tasks are live already"));
            };
            let live = Live {
                slot,
                task: task.clone(),
                reporter: service.clone(),
                instances: BTreeMap::from([(service.clone(), ends)]),
                ended: Vec::new(),
                watched: HashSet::new(),
                began: Instant::now(),
                ending: false,
                done: None,
                before: BTreeMap::new(),
                delivered: HashMap::new(),
                noted: (Instant::now(), 0),
            };
            self.live.insert(task_id.clone(), live);
            let times = self.overhead.stretch();
            let stretched =
                (times > 1).then(|| period_note(&task, times, "the overhead guard acts"));
            self.observed.started += 1;
            self.pipeline.send(Command::StartTask {
                slot,
                task: Box::new(task),
                endpoint: Box::new(endpoint),
            });
            if let Some(text) = stretched {
                self.note_guard(&self.live[&task_id], text);
            }
        }
        self.make_way(&task_id, &service);
        self.watch_new(&task_id);
    }

    /// Goes on with the tasks of the daemon before.
    pub(super) fn resume(&mut self) {
        let now_ms = unix_ms_now();
        let saved: Vec<SavedTask> = self
            .journal
            .iter()
            .flat_map(TaskJournal::tasks)
            .cloned()
            .collect();
        for saved in saved.into_iter().filter(|saved| !saved.is_over) {
            let (task, service) = (saved.task(), saved.service());
            let task_id = task.task_id.clone();
            if saved.is_waiting && now_ms <= saved.ends_unix_ms {
                tracing::info!(%task_id, instance = service.instance, "task waits for its start");
                self.waiting.push(task);
                continue;
            }
            let Ok(left_ms @ 1..) = u64::try_from(saved.ends_unix_ms - now_ms) else {
                tracing::warn!(%task_id, "a task ended while profilerd did not run");
                let mut coverage = saved.coverage();
                coverage.note("cut short: profilerd did not run when the task's time was over");
                self.journal(|journal| journal.ended(&task_id, &service));
                self.tell_end(task_id, service, coverage);
                continue;
            };
            tracing::info!(%task_id, instance = service.instance, used = saved.used, "task continued");
            self.run_for(task, Duration::from_millis(left_ms));
            if let Some(live) = self.live.get_mut(&task_id) {
                let mut before = saved.coverage();
                before.note(if saved.is_stopped { STOPPED } else { DIED });
                live.before.insert(service.clone(), before);
                self.pipeline.send(Command::UsePlaces {
                    slot: live.slot,
                    service: service.clone(),
                    count: saved.used,
                });
                self.journal(|journal| journal.resumed(&task_id, &service));
            }
        }
    }

    /// Writes to the journal, if one is kept.
    pub(super) fn journal(&mut self, write: impl FnOnce(&mut TaskJournal)) {
        if let Some(journal) = &mut self.journal {
            tokio::task::block_in_place(|| write(journal));
        }
    }

    pub(super) fn refuse(&mut self, task: &ProfileTask, reason: String) {
        tracing::warn!(task_id = %task.task_id, reason, "task refused");
        self.observed.refused += 1;
        self.observed.totals.add(Counter::TasksNotRun, 1);
        let (task_id, service) = (task.task_id.clone(), task.service.clone());
        self.journal(|journal| {
            journal.received(task);
            journal.ended(&task_id, &service);
        });
        self.tell_end(task_id, service, Coverage::not_run(&reason));
    }

    /// Ends a task that is done once nothing of it can come any more.
    pub(super) fn finish_if_settled(&mut self, task_id: &TaskId) {
        if self.bindings.is_waiting(task_id) {
            return;
        }
        let done = self.live.get_mut(task_id).and_then(|live| live.done.take());
        if let Some(coverage) = done {
            let mut coverage = self.completed(task_id, coverage);
            let nothing = coverage.get(Counter::RequestsMatched) == 0;
            if let Some(live) = self.live.get(task_id).filter(|_| nothing)
                && let Some(hint) = self.discovery.hint(&live.task)
            {
                coverage.note(hint);
            }
            self.observed.totals.update(task_id, &coverage);
            if let Some(live) = self.live.get(task_id) {
                let mut told = live.told_by(&live.reporter, &coverage);
                if let Some(text) = self.cut(live) {
                    told.note(text);
                }
                log_end(task_id, live, &told);
            }
            self.finish(task_id, &coverage);
        }
    }

    /// Tells how far a task is, now and then the journal as well.
    pub(super) fn tell_coverage(&mut self, task_id: &TaskId, coverage: Coverage) {
        let coverage = self.completed(task_id, coverage);
        self.observed.totals.update(task_id, &coverage);
        let Some(live) = self.live.get_mut(task_id) else {
            return;
        };
        let service = live.reporter.clone();
        let told = live.told_by(&service, &coverage);
        let profiled = coverage.get(Counter::RequestsProfiled);
        let (noted_at, noted_profiled) = live.noted;
        if profiled != noted_profiled || noted_at.elapsed() >= NOTE_COUNTS {
            live.noted = (Instant::now(), profiled);
            let counted = self.with_delivery(task_id, &service, told.clone());
            self.journal(|journal| journal.counted(task_id, &service, &counted));
        }
        self.oap.coverage(task_id.clone(), service, told);
        self.tell_deliveries(task_id);
    }

    /// What became of an instance's requests on their way is known under that instance: each tells its own.
    fn tell_deliveries(&mut self, task_id: &TaskId) {
        let Some(live) = self.live.get_mut(task_id) else {
            return;
        };
        let all = live.instances.keys().chain(&live.ended);
        let others = all.filter(|service| **service != live.reporter).cloned();
        for service in others.collect::<Vec<_>>() {
            let stats = self.oap.delivery_at(task_id, &service);
            let before = live.delivered.insert(service.clone(), stats);
            if before.unwrap_or_default() != stats {
                let told = live.told_by(&service, &Coverage::default());
                self.oap.coverage(task_id.clone(), service, told);
            }
        }
    }

    /// Adds the counts that only the OAP client knows, as it does in its reports.
    pub(super) fn with_delivery(
        &self,
        task_id: &TaskId,
        service: &Service,
        mut coverage: Coverage,
    ) -> Coverage {
        self.oap.add_delivery(task_id, service, &mut coverage);
        coverage
    }

    /// What the pipeline counted, with what bindings and the OAP's clock add.
    pub(super) fn completed(&self, task_id: &TaskId, mut coverage: Coverage) -> Coverage {
        self.bindings.add_to(task_id, &mut coverage);
        if let Some(text) = self.oap.clock_skew() {
            coverage.note(text);
        }
        coverage
    }

    /// What a stop does to a task.
    fn cut(&self, live: &Live) -> Option<&'static str> {
        let goes_on = self.journal.is_some();
        (!live.ending).then_some(if goes_on { CUT_SHORT } else { CUT_OFF })
    }

    pub(super) fn finish(&mut self, task_id: &TaskId, coverage: &Coverage) {
        self.bindings.forget(task_id);
        self.observed.totals.end(task_id);
        let Some(live) = self.live.remove(task_id) else {
            return;
        };
        for service in live.instances.keys().chain(&live.ended) {
            let mut told = live.told_by(service, coverage);
            let goes_on = !live.ending && self.journal.is_some();
            if goes_on {
                let counted = told.clone();
                self.stopped
                    .push((task_id.clone(), service.clone(), counted));
            } else {
                self.journal(|journal| journal.ended(task_id, service));
            }
            if let Some(text) = self.cut(&live) {
                told.note(text);
            }
            if goes_on && self.oap_stops_too {
                self.oap.coverage(task_id.clone(), service.clone(), told);
            } else {
                self.tell_end(task_id.clone(), service.clone(), told);
            }
        }
        if self.live.is_empty() {
            self.overhead.rest();
            self.pipeline.send(Command::Stretch(1));
        }
    }
}

/// A SkyWalking OAP cannot store the coverage report, so it is logged.
fn log_end(task_id: &TaskId, live: &Live, coverage: &Coverage) {
    let report = coverage.to_report();
    let moved = report.counters.iter().filter(|&(_, &count)| count > 0);
    let counts: Vec<String> = moved
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    let notes = report.notes.join("; ");
    tracing::info!(%task_id, counts = counts.join(" "), notes, "task done");
    if coverage.get(Counter::RequestsProfiled) == 0 {
        let reason = explain_nothing(&live.reporter.name, &live.task.endpoint, &report);
        tracing::warn!(%task_id, "no request was profiled. {reason}");
    }
}
