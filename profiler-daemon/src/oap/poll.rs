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
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tracing::{debug, warn};

use super::command::{self, PROFILE_TASK_QUERY};
use super::link::{Connection, Failure, Link, explain};
use super::presence::Reporting;
use super::{OapConfig, OapEvent};
use crate::model::clock::unix_ms_now;
use crate::model::{ProfileTask, Service, TaskId};

/// Questions on their way at a time: one that is answered late does not hold up all others.
const CALLS_AT_ONCE: usize = 8;
/// Most questions a second. 1,000 services are then asked for every 20 s, as agents ask, at less than 1 %
/// of a core; up to 100 keep the interval of the configuration.
const CALLS_PER_SECOND: u32 = 50;
/// Task ids and serial numbers remembered per instance. Python agents remember as many.
const REMEMBERED: usize = 64;

/// What one instance knows.
#[derive(Debug)]
struct Known {
    last_command_ms: i64,
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

/// What is known of all instances.
#[derive(Debug, Default)]
struct Asking {
    known: HashMap<Service, Known>,
    /// Instances to be asked for next time because there may be a task for them.
    pending: HashSet<Service>,
}

impl Asking {
    fn new(known_tasks: &[ProfileTask]) -> Self {
        let mut asking = Self::default();
        for task in known_tasks {
            let known = asking.known.entry(task.service.clone()).or_default();
            known.last_command_ms = known.last_command_ms.max(task.create_unix_ms);
            known.tasks.insert(&command::shorten_id(&task.task_id.0));
            asking.pending.insert(task.service.clone());
        }
        asking
    }
}

/// How a round of questions ended.
enum Round {
    /// All were asked.
    Done,
    /// The connection failed; the rest is asked on the next one.
    Broken,
    /// The OAP does not know the call.
    Unimplemented,
    /// Nobody takes tasks any more.
    Closed,
}

impl Poller {
    /// Runs until the link or the receiver of events is gone.
    pub(super) async fn run(mut self) {
        let mut asking = Asking::new(&self.config.known_tasks);
        let mut muted = None;
        loop {
            let next = Instant::now() + self.config.poll_interval;
            let connection = match muted {
                Some(generation) => self.link.connection_after(generation).await,
                None => self.link.connection().await,
            };
            let Some(connection) = connection else { return };
            let services = Arc::clone(&self.services.borrow_and_update());
            match self.round(&connection, &services, &mut asking).await {
                Round::Done | Round::Broken => {}
                Round::Unimplemented => {
                    warn!("the OAP has no profiling service; asking again after a reconnect");
                    muted = Some(connection.generation);
                }
                Round::Closed => return,
            }
            tokio::select! {
                () = sleep_until(next) => {}
                () = notified(self.config.poll_now.as_deref()) => {}
                changed = self.services.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Asks for one instance of each service, for those that were never asked for, and for the others of
    /// a service that turns out to have a task.
    async fn round(
        &self,
        connection: &Connection,
        services: &[Reporting],
        asking: &mut Asking,
    ) -> Round {
        let instances = || services.iter().map(|reporting| &reporting.service);
        let live: HashSet<&Service> = instances().collect();
        asking.known.retain(|service, _| live.contains(service));
        asking.pending.retain(|service| live.contains(service));
        let mut asked = HashSet::new();
        let mut scouted = HashSet::new();
        let mut due: Vec<&Service> = instances()
            .filter(|service| {
                scouted.insert(service.name.as_str())
                    || asking.pending.contains(*service)
                    || !asking.known.contains_key(*service)
            })
            .collect();
        while !due.is_empty() {
            asked.extend(due.iter().copied());
            // Until they are answered.
            asking.pending.extend(due.iter().copied().cloned());
            let (round, with_more) = self.ask_all(connection, &due, asking).await;
            due = instances()
                .filter(|service| with_more.contains(service.name.as_str()))
                .filter(|service| !asked.contains(service))
                .collect();
            if !matches!(round, Round::Done) {
                asking.pending.extend(due.into_iter().cloned());
                return round;
            }
        }
        Round::Done
    }

    /// Asks for instances, some at a time and no more a second than [`CALLS_PER_SECOND`]. Also yields the
    /// services of which others are to be asked: there was a command, or an error that may be the
    /// instance's own.
    async fn ask_all<'a>(
        &self,
        connection: &Connection,
        services: &[&'a Service],
        asking: &mut Asking,
    ) -> (Round, HashSet<&'a str>) {
        let mut with_more = HashSet::new();
        for chunk in services.chunks(CALLS_AT_ONCE) {
            let next = Instant::now() + Duration::from_secs(chunk.len() as u64) / CALLS_PER_SECOND;
            let mut calls = JoinSet::new();
            for (index, service) in chunk.iter().enumerate() {
                let known = asking.known.entry((*service).clone()).or_default();
                let query = ProfileTaskCommandQuery {
                    service: service.name.clone(),
                    service_instance: service.instance.clone(),
                    last_command_time: known.last_command_ms,
                };
                let call = ask(self.link.clone(), connection.clone(), query);
                calls.spawn(async move { (index, call.await) });
            }
            while let Some(Ok((index, answer))) = calls.join_next().await {
                let service = chunk[index];
                let answer = match answer.map_err(|status| (Failure::of(&status), status)) {
                    Ok(answer) => answer,
                    Err((Failure::Unimplemented, _)) => return (Round::Unimplemented, with_more),
                    Err((Failure::Link, _)) => return (Round::Broken, with_more),
                    Err((Failure::Busy | Failure::Refused, status)) => {
                        debug!(service = service.name, "task query: {}", explain(&status));
                        with_more.insert(service.name.as_str());
                        continue;
                    }
                };
                asking.pending.remove(service);
                if !answer.commands.is_empty() {
                    with_more.insert(service.name.as_str());
                }
                let known = asking.known.entry(service.clone()).or_default();
                for event in known.receive(service, &answer, unix_ms_now()) {
                    if self.events.send(event).await.is_err() {
                        return (Round::Closed, with_more);
                    }
                }
            }
            if services.len() > CALLS_AT_ONCE {
                sleep_until(next).await;
            }
        }
        (Round::Done, with_more)
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

/// Waits until somebody knows of a task; for ever if nobody can.
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
        TaskRecord::create(request, [].into_iter(), create_ms).unwrap()
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
