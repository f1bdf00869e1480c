//! Asks for tasks, for each service instance.
//!
//! In:  answers to `getProfileTaskCommands`
//! Out: [`OapEvent::Task`], each task once per instance; [`OapEvent::TaskRefused`]
//! Lost: nothing silently; a command that is not carried out is refused with a reason
//!
//! OAP keeps no record of what it has delivered. Each instance says up to which creation time it
//! knows the tasks (`lastCommandTime`, -1 at first) and gets those created later. A task is for all
//! instances of a service, so one of them is asked for often, and the others when it has one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use profiler_proto::skywalking::{Command, Commands, ProfileTaskCommandQuery};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use tracing::{debug, warn};

use super::command::{self, PROFILE_TASK_QUERY};
use super::link::{Connection, Failure, Link, explain};
use super::presence::Reporting;
use super::skew::Bounds;
use super::turns::{Turns, at};
use super::{OapConfig, OapEvent};
use crate::model::clock::unix_ms_now;
use crate::model::{ProfileTask, Service, TaskId};

/// Most questions a second: each costs some 0.2 ms, so that this is less than 1 % of a core. 1,000 services
/// are then asked for every 25 s, where agents ask every 20 s; up to 80 keep the interval of the configuration.
const CALLS_PER_SECOND: u32 = 40;
/// Task ids and serial numbers remembered per instance. Python agents remember as many.
const REMEMBERED: usize = 64;

/// How long an instance that is gone is remembered after its last task: it may be started again under its
/// name, and an OAP hands out a task for five minutes after its start.
const REMEMBERED_MS: i64 = 30 * 60_000;

/// Tasks that one instance knows.
#[derive(Debug)]
struct Known {
    last_command_ms: i64,
    /// When the last question that was answered was asked, by our clock.
    asked_ms: Option<i64>,
    /// It is there, and had its first turn.
    is_live: bool,
    /// Task ids that were handled.
    tasks: Remembered,
    /// Serial numbers of deliveries that were handled.
    serials: Remembered,
}

/// The last texts of one kind, oldest first.
#[derive(Debug, Default)]
struct Remembered(VecDeque<String>);

impl Remembered {
    /// Remembers a text; true if it is new.
    fn insert(&mut self, text: &str) -> bool {
        if self.0.iter().any(|known| known == text) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(text.to_owned());
        true
    }
}

impl Default for Known {
    fn default() -> Self {
        Self {
            last_command_ms: -1,
            asked_ms: None,
            is_live: false,
            tasks: Remembered::default(),
            serials: Remembered::default(),
        }
    }
}

impl Known {
    /// Turns an answer into events and advances lastCommandTime.
    fn receive(&mut self, service: &Service, answer: &Commands, now_ms: i64) -> Vec<OapEvent> {
        let asked_ms = self.last_command_ms;
        let mut events = Vec::new();
        for command in &answer.commands {
            if command.command != PROFILE_TASK_QUERY {
                debug!(command = command::shorten(&command.command), "ignored");
                continue;
            }
            let create_ms = command::create_time(command, now_ms);
            if create_ms.is_some_and(|create_ms| create_ms <= asked_ms) {
                continue; // known before the question was asked
            }
            if let Some(create_ms) = create_ms {
                self.last_command_ms = self.last_command_ms.max(create_ms);
            }
            if self.is_new(command) {
                events.push(event(service, command, now_ms));
            }
        }
        events
    }

    /// Whether neither the delivery nor the task has been seen.
    fn is_new(&mut self, command: &Command) -> bool {
        let text = |key| command::argument(command, key).map(command::shorten_id);
        let is_new_serial = text("SerialNumber").is_none_or(|serial| self.serials.insert(&serial));
        let is_new_task = text("TaskId").is_none_or(|task_id| self.tasks.insert(&task_id));
        is_new_serial && is_new_task
    }
}

fn event(service: &Service, command: &Command, now_ms: i64) -> OapEvent {
    match command::parse(command, service, now_ms) {
        Ok(parsed) => OapEvent::Task(parsed.task),
        Err(error) => {
            let task_id = command::argument(command, "TaskId");
            let name = command::shorten(task_id.unwrap_or("without id"));
            OapEvent::TaskRefused {
                task_id: task_id.and_then(command::usable_id).map(TaskId),
                service: service.clone(),
                reason: format!("profile task {name} is refused: {error}"),
            }
        }
    }
}

/// The polling task.
#[derive(Debug)]
pub(super) struct Poller {
    pub(super) config: Arc<OapConfig>,
    pub(super) link: Link,
    pub(super) services: watch::Receiver<Arc<Vec<Reporting>>>,
    pub(super) events: mpsc::Sender<OapEvent>,
}

/// What is known of all instances, and when each is asked for.
#[derive(Debug)]
struct Asking {
    interval: Duration,
    known: HashMap<Service, Known>,
    turns: Turns,
    /// The instance of each service that is asked for often.
    scouts: HashMap<String, Service>,
}

impl Asking {
    fn new(interval: Duration, known_tasks: &[ProfileTask]) -> Self {
        let mut known: HashMap<Service, Known> = HashMap::new();
        for task in known_tasks {
            let known = known.entry(task.service.clone()).or_default();
            known.last_command_ms = known.last_command_ms.max(task.create_unix_ms);
            known.tasks.insert(&command::shorten_id(&task.task_id.0));
        }
        Self {
            interval,
            known,
            turns: Turns::new(CALLS_PER_SECOND),
            scouts: HashMap::new(),
        }
    }

    /// Takes over the instances that live; those that are new are asked for now.
    fn set_services(&mut self, services: &[Reporting], now: Instant) {
        let instances = || services.iter().map(|reporting| &reporting.service);
        let live: HashSet<&Service> = instances().collect();
        let remembered_ms = unix_ms_now() - REMEMBERED_MS;
        self.known.retain(|service, known| {
            if live.contains(service) {
                return true;
            }
            known.is_live = false;
            self.turns.forget(service);
            known.last_command_ms > remembered_ms
        });
        self.scouts.retain(|_, scout| live.contains(scout));
        for service in instances() {
            let is_scout = !self.scouts.contains_key(&service.name);
            if is_scout {
                self.scouts.insert(service.name.clone(), service.clone());
            }
            let known = self.known.entry(service.clone()).or_default();
            let is_new = !std::mem::replace(&mut known.is_live, true);
            if is_new || is_scout {
                self.turns.bring_forward(service, now);
            }
        }
    }

    /// Asks for one instance of each service now.
    fn hurry(&mut self, now: Instant) {
        for scout in self.scouts.values() {
            self.turns.bring_forward(scout, now);
        }
    }

    /// The other instances of its service that live.
    fn others(&self, service: &Service) -> Vec<Service> {
        let live = self.known.iter().filter(|(_, known)| known.is_live);
        live.map(|(other, _)| other)
            .filter(|other| other.name == service.name && *other != service)
            .cloned()
            .collect()
    }

    fn query(&self, service: Service) -> ProfileTaskCommandQuery {
        let known = self.known.get(&service);
        ProfileTaskCommandQuery {
            last_command_time: known.map_or(-1, |known| known.last_command_ms),
            service: service.name,
            service_instance: service.instance,
        }
    }

    /// An answer: what follows from it. Also yields what the tasks in it say about the clock of the OAP.
    fn answered(
        &mut self,
        call: &Asked,
        answer: &Commands,
        now: Instant,
    ) -> (Vec<OapEvent>, Vec<Bounds>) {
        let service = &call.service;
        let Some(known) = self.known.get_mut(service).filter(|known| known.is_live) else {
            return (Vec::new(), Vec::new());
        };
        let now_ms = unix_ms_now();
        let events = known.receive(service, answer, now_ms);
        let asked_before_ms = known.asked_ms.replace(call.asked_ms);
        let tasks = events.iter().filter_map(|event| match event {
            OapEvent::Task(task) => Some(task),
            _ => None,
        });
        let bounds = tasks.map(|task| {
            Bounds::of_task(
                task.create_unix_ms,
                task.start_unix_ms,
                asked_before_ms,
                now_ms,
            )
        });
        let bounds = bounds.collect();
        if self.scouts.get(&service.name) == Some(service) {
            self.turns.bring_forward(service, now + self.interval);
            if !events.is_empty() {
                for other in self.others(service) {
                    self.turns.bring_forward(&other, now);
                }
            }
        }
        (events, bounds)
    }

    /// No answer, or an error: the instance is asked for again. The error may be its own, so another one
    /// speaks for the service.
    fn failed(&mut self, service: &Service, now: Instant) {
        if !self.known.get(service).is_some_and(|known| known.is_live) {
            return;
        }
        self.turns.bring_forward(service, now + self.interval);
        if self.scouts.get(&service.name) == Some(service)
            && let Some(other) = self.others(service).pop()
        {
            self.turns.bring_forward(&other, now);
            self.scouts.insert(service.name.clone(), other);
        }
    }
}

/// A question that was asked.
#[derive(Debug)]
struct Asked {
    service: Service,
    generation: u64,
    asked_ms: i64,
}

impl Poller {
    /// Runs until the link or the receiver of events is gone.
    pub(super) async fn run(mut self) {
        let mut asking = Asking::new(self.config.poll_interval, &self.config.known_tasks);
        let mut calls: JoinSet<(Asked, Result<Commands, Status>)> = JoinSet::new();
        // A connection on which nothing more is asked.
        let mut avoided = 0;
        self.services.mark_changed();
        loop {
            let Some(connection) = self.link.connection_after(avoided).await else {
                return;
            };
            if self.services.has_changed().unwrap_or(false) {
                let services = Arc::clone(&self.services.borrow_and_update());
                asking.set_services(&services, Instant::now());
            }
            for service in asking.turns.take(Instant::now(), calls.len()) {
                let call = Asked {
                    service: service.clone(),
                    generation: connection.generation,
                    asked_ms: unix_ms_now(),
                };
                let answer = ask(self.link.clone(), connection.clone(), asking.query(service));
                calls.spawn(async move { (call, answer.await) });
            }
            let next = asking.turns.next_at(calls.len());
            tokio::select! {
                Some(done) = calls.join_next() => {
                    let Ok((call, answer)) = done else { continue };
                    if self.take(&mut asking, &call, answer, &mut avoided).await.is_err() {
                        return;
                    }
                }
                () = at(next) => {}
                () = notified(self.config.poll_now.as_deref()) => asking.hurry(Instant::now()),
                changed = self.services.changed() => match changed {
                    Ok(()) => self.services.mark_changed(),
                    Err(_) => return,
                },
            }
        }
    }

    /// Takes an answer. An error means that tasks are no longer received.
    async fn take(
        &self,
        asking: &mut Asking,
        call: &Asked,
        answer: Result<Commands, Status>,
        avoided: &mut u64,
    ) -> Result<(), mpsc::error::SendError<OapEvent>> {
        let now = Instant::now();
        let status = match answer {
            Ok(answer) => {
                let (events, bounds) = asking.answered(call, &answer, now);
                bounds
                    .into_iter()
                    .for_each(|bounds| self.link.skew.learn(bounds));
                for event in events {
                    self.events.send(event).await?;
                }
                return Ok(());
            }
            Err(status) => status,
        };
        asking.failed(&call.service, now);
        match Failure::of(&status) {
            Failure::Unimplemented if *avoided < call.generation => {
                warn!(
                    "the OAP has no profiling service, so no task can come; it is asked again after a reconnect"
                );
                *avoided = call.generation;
            }
            // The rest is asked on the next connection.
            Failure::Link => *avoided = call.generation.max(*avoided),
            Failure::Unimplemented | Failure::Busy | Failure::Refused => {
                debug!(
                    service = call.service.name,
                    "task query: {}",
                    explain(&status)
                );
            }
        }
        Ok(())
    }
}

async fn ask(
    link: Link,
    connection: Connection,
    query: ProfileTaskCommandQuery,
) -> Result<Commands, Status> {
    let mut client = connection.profile_task();
    let call = client.get_profile_task_commands(query);
    link.call(&connection, call).await
}

/// Waits until a task is announced; for ever if that cannot happen.
async fn notified(poll_now: Option<&Notify>) {
    match poll_now {
        Some(poll_now) => poll_now.notified().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::task::{TaskRecord, TaskRequest};

    const NOW: i64 = 1_795_405_209_971;

    fn service() -> Service {
        Service {
            name: "svc".to_owned(),
            instance: "one".to_owned(),
        }
    }

    fn task(create_ms: i64) -> TaskRecord {
        let request = TaskRequest {
            service: "svc".to_owned(),
            endpoint: "/".to_owned(),
            start_ms: NOW,
            duration_minutes: 5,
            min_duration_threshold_ms: 0,
            dump_period_ms: 10,
            max_sampling_count: 5,
        };
        TaskRecord::create(request, [].into_iter(), |_| false, create_ms).unwrap()
    }

    fn answer(commands: &[Command]) -> Commands {
        Commands {
            commands: commands.to_vec(),
        }
    }

    fn ids(events: &[OapEvent]) -> Vec<&str> {
        events
            .iter()
            .map(|event| match event {
                OapEvent::Task(task) => task.task_id.0.as_str(),
                OapEvent::TaskRefused { .. } => "refused",
                _ => "other",
            })
            .collect()
    }

    /// Check that a task comes once, although each delivery has a new serial number.
    #[test]
    fn a_task_comes_once() {
        let mut known = Known::default();
        let task = task(NOW);
        let deliver = |known: &mut Known| {
            let events = known.receive(&service(), &answer(&[task.to_command()]), NOW);
            events.len()
        };
        assert_eq!(deliver(&mut known), 1);
        assert_eq!(known.last_command_ms, NOW);
        assert_eq!(deliver(&mut known), 0);
        known.last_command_ms = -1; // even if the OAP ignores lastCommandTime
        assert_eq!(deliver(&mut known), 0);
    }

    /// Check that two tasks of one answer are both taken, and that the newest time is remembered.
    #[test]
    fn tasks_of_one_answer_are_all_taken() {
        let mut known = Known::default();
        let (old, new) = (task(NOW - 5), task(NOW));
        let commands = [new.to_command(), old.to_command()];
        let events = known.receive(&service(), &answer(&commands), NOW);
        assert_eq!(ids(&events), [new.id.as_str(), old.id.as_str()]);
        assert_eq!(known.last_command_ms, NOW);
    }

    /// Check that a refused command is refused once, also if its creation time is absurd.
    #[test]
    fn a_command_is_refused_once() {
        for (key, value) in [("Duration", "99"), ("CreateTime", "x")] {
            let mut known = Known::default();
            for expected in [1, 0] {
                let mut command = task(NOW).to_command();
                for pair in &mut command.args {
                    if pair.key == key {
                        pair.value = value.to_owned();
                    }
                }
                let events = known.receive(&service(), &answer(&[command]), NOW);
                assert_eq!(ids(&events), vec!["refused"; expected], "{key}");
            }
        }
    }

    /// Check that commands of other kinds are passed over.
    #[test]
    fn other_commands_are_passed_over() {
        let mut known = Known::default();
        let mut command = task(NOW).to_command();
        command.command = "ConfigurationDiscoveryCommand".to_owned();
        let events = known.receive(&service(), &answer(&[command]), NOW);
        assert!(events.is_empty());
        assert_eq!(known.last_command_ms, -1);
    }

    /// Check that what is remembered stays bounded.
    #[test]
    fn memory_is_bounded() {
        let mut remembered = Remembered::default();
        for i in 0..1000 {
            assert!(remembered.insert(&i.to_string()));
        }
        assert!(!remembered.insert("999"));
        assert_eq!(remembered.0.len(), REMEMBERED);
    }
}
