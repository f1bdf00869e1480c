//! Profile tasks as the server keeps them: creation rules, identity, state.
//!
//! The checks, their order and their texts are those of OAP's `ProfileTaskMutationService`, so that
//! a task refused here is one that a SkyWalking OAP would refuse, for the reason it would give. The one more is
//! [`TaskRequest::check_endpoint`], and names with control characters are refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use profiler_proto::skywalking::{Command, KeyStringValuePair};
use thiserror::Error;
use uuid::Uuid;

use super::storage::StorageError;
use crate::model::TaskLimits;
use crate::model::plain::check_plain;
use crate::request::Endpoint;

/// Tasks whose start lies further from now than this are not delivered.
const DELIVERY_WINDOW_MINUTES: i64 = 5;
/// How long after its expected end an instance may still report it.
const FINISH_GRACE_MS: i64 = 60_000;
const MINUTE_MS: i64 = 60_000;

/// What a user asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskRequest {
    /// Service name.
    pub service: String,
    /// Endpoint name.
    pub endpoint: String,
    /// Epoch milliseconds; 0 or less means now.
    pub start_ms: i64,
    /// Whole minutes.
    pub duration_minutes: i32,
    /// Milliseconds.
    pub min_duration_threshold_ms: i32,
    /// Milliseconds.
    pub dump_period_ms: i32,
    /// Most profiled requests per instance.
    pub max_sampling_count: i32,
}

/// Why a task was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// An argument is out of its range.
    #[error("{0}")]
    Argument(String),
    /// The service has a task at that time.
    #[error("current service already has monitor task execute at this time")]
    Busy,
    /// The store keeps as many tasks as it may and none of them is over.
    #[error("the store is full: {0} tasks are waiting or running")]
    Full(usize),
    /// The task cannot be stored.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A task that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRecord {
    /// `<creation time>_<service id>`.
    pub id: String,
    /// What was asked, with the start filled in.
    pub request: TaskRequest,
    /// Epoch milliseconds.
    pub create_ms: i64,
    /// When a user has cancelled it, epoch milliseconds.
    pub cancelled_ms: Option<i64>,
}

/// What an instance did with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It took the task.
    Notified,
    /// It finished it.
    Finished,
}

impl Operation {
    /// OAP's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Notified => "NOTIFIED",
            Self::Finished => "EXECUTION_FINISHED",
        }
    }
}

/// One entry of a task's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Service instance.
    pub instance: String,
    /// What the instance did with the task.
    pub operation: Operation,
    /// Epoch milliseconds.
    pub time_ms: i64,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It starts later.
    Scheduled,
    /// It is due; no instance has asked for it.
    Waiting,
    /// An instance has it.
    Running,
    /// All instances that took it have finished it.
    Finished,
    /// Its time is over without that.
    Expired,
    /// A user has ended it early.
    Cancelled,
}

impl TaskState {
    /// Nothing more is expected of the task.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Expired | Self::Cancelled)
    }
}

/// OAP's id of a service: base64 of its name and `.1` for "reported by an agent".
#[must_use]
pub fn service_id(name: &str) -> String {
    format!("{}.1", STANDARD.encode(name))
}

/// The name in an id that [`service_id`] made; OAP has other numbers behind the dot for other origins.
#[must_use]
pub fn service_name(id: &str) -> Option<String> {
    let (name, origin) = id.rsplit_once('.')?;
    origin.parse::<u8>().ok()?;
    String::from_utf8(STANDARD.decode(name).ok()?).ok()
}

/// OAP's id of a service instance.
#[must_use]
pub fn instance_id(service: &str, instance: &str) -> String {
    id_within(service, instance)
}

/// OAP's id of an endpoint.
#[must_use]
pub fn endpoint_id(service: &str, endpoint: &str) -> String {
    id_within(service, endpoint)
}

/// The names of the service and of the instance in an id that [`instance_id`] made.
#[must_use]
pub fn instance_names(id: &str) -> Option<(String, String)> {
    names_within(id)
}

/// The names of the service and of the endpoint in an id that [`endpoint_id`] made.
#[must_use]
pub fn endpoint_names(id: &str) -> Option<(String, String)> {
    names_within(id)
}

fn names_within(id: &str) -> Option<(String, String)> {
    let (service, name) = id.split_once('_')?;
    let name = String::from_utf8(STANDARD.decode(name).ok()?).ok()?;
    Some((service_name(service)?, name))
}

fn id_within(service: &str, name: &str) -> String {
    format!("{}_{}", service_id(service), STANDARD.encode(name))
}

impl TaskRequest {
    /// Checks the arguments.
    ///
    /// # Errors
    ///
    /// [`Refusal::Argument`] with OAP's text.
    pub fn check(&self) -> Result<(), Refusal> {
        let minutes = TaskLimits::DURATION_MINUTES;
        let counts = TaskLimits::MAX_SAMPLING_COUNT;
        let refused = |text: &str| Err(Refusal::Argument(text.to_owned()));
        if self.service.is_empty() {
            return refused("service cannot be null");
        }
        if self.endpoint.trim().is_empty() {
            return refused("endpoint name cannot be empty");
        }
        if i64::from(self.duration_minutes) < *minutes.start() {
            return refused("monitor duration must greater than 1 minutes");
        }
        if self.min_duration_threshold_ms < 0 {
            return refused("min duration threshold must greater than or equals zero");
        }
        if i64::from(self.max_sampling_count) < *counts.start() {
            return refused("max sampling count must greater than zero");
        }
        if i64::from(self.duration_minutes) > *minutes.end() {
            return refused(
                "The duration of the monitoring task cannot be greater than 15 minutes",
            );
        }
        if i64::from(self.dump_period_ms) < TaskLimits::DUMP_PERIOD_MIN_MS {
            return refused("dump period must be greater than or equals 10 milliseconds");
        }
        if i64::from(self.max_sampling_count) > *counts.end() {
            return refused("max sampling count must less than 10");
        }
        check_plain("service", &self.service)
            .and_then(|()| check_plain("endpoint name", &self.endpoint))
            .map_err(Refusal::Argument)
    }

    /// Checks that the endpoint can be found in a request line. OAP takes any text; where no agent runs the task, one
    /// that cannot would keep the service busy for nothing.
    ///
    /// # Errors
    ///
    /// [`Refusal::Argument`] that says what to write.
    pub fn check_endpoint(&self) -> Result<(), Refusal> {
        let parsed = Endpoint::parse(&self.endpoint);
        parsed
            .map(drop)
            .map_err(|error| Refusal::Argument(error.to_string()))
    }
}

impl TaskRecord {
    /// Accepts `request`; `others` are the tasks of the same service.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if an argument is out of range or the service has a task at that time.
    pub fn create<'a>(
        mut request: TaskRequest,
        others: impl Iterator<Item = &'a Self> + Clone,
        is_over: impl Fn(&Self) -> bool,
        now_ms: i64,
    ) -> Result<Self, Refusal> {
        request.check()?;
        request.endpoint = request.endpoint.trim().to_owned();
        if request.start_ms <= 0 {
            request.start_ms = now_ms;
        }
        // lastCommandTime distinguishes tasks of a service by this number: it must not repeat.
        let newest = others.clone().map(|task| task.create_ms).max();
        let create_ms = newest.map_or(now_ms, |newest| now_ms.max(newest.saturating_add(1)));
        let task = Self {
            id: format!("{create_ms}_{}", service_id(&request.service)),
            request,
            create_ms,
            cancelled_ms: None,
        };
        // OAP compares one task only: the latest that starts in or before the new one's last minute.
        let latest = others
            .filter(|other| {
                minute(other.request.start_ms) <= minute(task.end_ms()) && !is_over(other)
            })
            .max_by_key(|other| minute(other.request.start_ms));
        if latest.is_some_and(|latest| latest.end_ms() >= task.request.start_ms) {
            return Err(Refusal::Busy);
        }
        Ok(task)
    }

    /// Start plus duration, epoch milliseconds.
    #[must_use]
    pub fn end_ms(&self) -> i64 {
        let duration_ms = i64::from(self.request.duration_minutes) * MINUTE_MS;
        self.request.start_ms.saturating_add(duration_ms)
    }

    /// Whether OAP would hand the task to an agent that asks now; none gets one that is cancelled.
    #[must_use]
    pub fn is_deliverable(&self, last_command_ms: i64, now_ms: i64) -> bool {
        let distance = minute(self.request.start_ms).abs_diff(minute(now_ms));
        self.create_ms > last_command_ms
            && distance <= DELIVERY_WINDOW_MINUTES.unsigned_abs()
            && self.cancelled_ms.is_none()
    }

    /// The command in which an agent gets the task; its serial number is new each time.
    #[must_use]
    pub fn to_command(&self) -> Command {
        let request = &self.request;
        let args = [
            ("SerialNumber", Uuid::new_v4().to_string()),
            ("TaskId", self.id.clone()),
            ("EndpointName", request.endpoint.clone()),
            ("Duration", request.duration_minutes.to_string()),
            (
                "MinDurationThreshold",
                request.min_duration_threshold_ms.to_string(),
            ),
            ("DumpPeriod", request.dump_period_ms.to_string()),
            ("MaxSamplingCount", request.max_sampling_count.to_string()),
            ("StartTime", request.start_ms.to_string()),
            ("CreateTime", self.create_ms.to_string()),
        ];
        Command {
            command: "ProfileTaskQuery".to_owned(),
            args: args
                .map(|(key, value)| KeyStringValuePair {
                    key: key.to_owned(),
                    value,
                })
                .into(),
        }
    }

    /// Where the task stands, from what the instances did.
    #[must_use]
    pub fn state(&self, logs: &[LogEntry], now_ms: i64) -> TaskState {
        if self.cancelled_ms.is_some() {
            return TaskState::Cancelled;
        }
        let mut notified = logs
            .iter()
            .filter(|entry| entry.operation == Operation::Notified)
            .peekable();
        if notified.peek().is_none() {
            return if now_ms < self.request.start_ms {
                TaskState::Scheduled
            } else if now_ms <= self.end_ms() {
                TaskState::Waiting
            } else {
                TaskState::Expired
            };
        }
        let duration_ms = i64::from(self.request.duration_minutes) * MINUTE_MS;
        let mut state = TaskState::Finished;
        for entry in notified {
            let finished = logs.iter().any(|other| {
                other.operation == Operation::Finished && other.instance == entry.instance
            });
            if finished {
                continue;
            }
            // The instance counts the duration from its own start.
            let begin_ms = entry.time_ms.max(self.request.start_ms);
            let due_ms = begin_ms.saturating_add(duration_ms + FINISH_GRACE_MS);
            if now_ms <= due_ms {
                return TaskState::Running;
            }
            state = TaskState::Expired;
        }
        state
    }
}

fn minute(time_ms: i64) -> i64 {
    time_ms.div_euclid(MINUTE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plain::HOSTILE;

    const NOW: i64 = 1_795_405_209_971;

    fn request() -> TaskRequest {
        TaskRequest {
            service: "demo-svc".to_owned(),
            endpoint: "POST:/".to_owned(),
            start_ms: 0,
            duration_minutes: 5,
            min_duration_threshold_ms: 0,
            dump_period_ms: 10,
            max_sampling_count: 5,
        }
    }

    fn create(request: TaskRequest, others: &[TaskRecord]) -> Result<TaskRecord, Refusal> {
        TaskRecord::create(request, others.iter(), |_| false, NOW)
    }

    /// Check that the id is made as OAP makes it, and that a missing start means now.
    #[test]
    fn the_id_is_oaps() {
        let task = create(request(), &[]).unwrap();
        assert_eq!(task.id, "1795405209971_ZGVtby1zdmM=.1");
        assert_eq!(task.request.start_ms, NOW);
    }

    /// Check that a service's name is read from its id, and that other texts are no ids.
    #[test]
    fn a_service_is_named_by_its_id() {
        assert_eq!(
            service_name(&service_id("déjà vu")).as_deref(),
            Some("déjà vu")
        );
        assert_eq!(service_name("ZGVtby1zdmM=.0").as_deref(), Some("demo-svc"));
        for bad in [
            "",
            ".",
            "ZGVtby1zdmM=",
            "ZGVtby1zdmM.1",
            "ZGVtby1zdmM=.x",
            "/w==.1",
        ] {
            assert_eq!(service_name(bad), None, "{bad}");
        }
        assert_eq!(instance_id("demo-svc", "one"), "ZGVtby1zdmM=.1_b25l");
    }

    /// Check each limit at its edge, with OAP's text.
    #[test]
    fn limits_are_checked_with_oaps_texts() {
        type Change = fn(&mut TaskRequest);
        let refused: [(Change, &str); 11] = [
            (|r| r.service.clear(), "service cannot be null"),
            (
                |r| r.endpoint = "  ".to_owned(),
                "endpoint name cannot be empty",
            ),
            (|r| r.duration_minutes = 0, "monitor duration must"),
            (|r| r.duration_minutes = 16, "greater than 15 minutes"),
            (
                |r| r.min_duration_threshold_ms = -1,
                "min duration threshold must",
            ),
            (|r| r.dump_period_ms = 9, "dump period must be"),
            (|r| r.max_sampling_count = 0, "must greater than zero"),
            (|r| r.max_sampling_count = 10, "must less than 10"),
            (
                |r| r.max_sampling_count = i32::MIN,
                "must greater than zero",
            ),
            (|r| r.service.push_str(HOSTILE), "service has a control"),
            (
                |r| r.endpoint.push_str(HOSTILE),
                "endpoint name has a control",
            ),
        ];
        for (change, text) in refused {
            let mut request = request();
            change(&mut request);
            let error = create(request, &[]).unwrap_err().to_string();
            assert!(error.contains(text), "{error:?} does not contain {text:?}");
        }
        let accepted: [Change; 5] = [
            |r| r.duration_minutes = 1,
            |r| r.duration_minutes = 15,
            |r| r.dump_period_ms = i32::MAX,
            |r| r.max_sampling_count = 9,
            |r| r.endpoint = " * ".to_owned(),
        ];
        for change in accepted {
            let mut request = request();
            change(&mut request);
            assert!(create(request, &[]).is_ok());
        }
    }

    /// Check that a service has one task at a time, until the millisecond after its end.
    #[test]
    fn a_service_has_one_task_at_a_time() {
        let first = create(request(), &[]).unwrap();
        let others = [first.clone()];
        let at = |start_ms| TaskRequest {
            start_ms,
            ..request()
        };
        assert_eq!(create(at(0), &others), Err(Refusal::Busy));
        assert_eq!(create(at(first.end_ms()), &others), Err(Refusal::Busy));
        assert!(create(at(first.end_ms() + 1), &others).is_ok());
        // Before it: only if the new one's last minute ends before the other's first minute.
        assert_eq!(create(at(NOW - 5 * 60_000), &others), Err(Refusal::Busy));
        assert!(create(at(NOW - 6 * 60_000), &others).is_ok());
        assert!(create(at(i64::MAX), &others).is_ok());
        // One that is over makes room, and still has its creation time for itself.
        let after = TaskRecord::create(at(0), others.iter(), |_| true, NOW).unwrap();
        assert_eq!(after.create_ms, NOW + 1);
    }

    /// Check that creation times of a service never repeat, whatever the clock does.
    #[test]
    fn creation_times_do_not_repeat() {
        let first = create(request(), &[]).unwrap();
        let later = TaskRequest {
            start_ms: first.end_ms() + 1,
            ..request()
        };
        let second = TaskRecord::create(later, [&first].into_iter(), |_| false, NOW - 1000);
        let second = second.unwrap();
        assert_eq!(second.create_ms, NOW + 1);
    }

    /// Check the delivery window of five minute buckets around the start, and lastCommandTime.
    #[test]
    fn tasks_are_delivered_around_their_start() {
        let task = create(request(), &[]).unwrap();
        assert!(task.is_deliverable(-1, NOW));
        assert!(task.is_deliverable(NOW - 1, NOW));
        assert!(!task.is_deliverable(NOW, NOW));
        let start_of_minute = NOW - NOW % MINUTE_MS;
        assert!(task.is_deliverable(-1, start_of_minute + 6 * MINUTE_MS - 1));
        assert!(!task.is_deliverable(-1, start_of_minute + 6 * MINUTE_MS));
        assert!(task.is_deliverable(-1, start_of_minute - 5 * MINUTE_MS));
        assert!(!task.is_deliverable(-1, start_of_minute - 5 * MINUTE_MS - 1));
    }

    /// Check the command: nine texts, and a new serial number for each delivery.
    #[test]
    fn the_command_carries_nine_texts() {
        let task = create(request(), &[]).unwrap();
        let value = |command: &Command, key: &str| {
            let pair = command.args.iter().find(|pair| pair.key == key);
            pair.map(|pair| pair.value.clone())
        };
        let command = task.to_command();
        assert_eq!(command.command, "ProfileTaskQuery");
        assert_eq!(command.args.len(), 9);
        assert_eq!(value(&command, "Duration").as_deref(), Some("5"));
        assert_eq!(
            value(&command, "CreateTime").as_deref(),
            Some("1795405209971")
        );
        assert_ne!(
            value(&command, "SerialNumber"),
            value(&task.to_command(), "SerialNumber")
        );
    }

    /// Check the states a task goes through.
    #[test]
    fn the_state_follows_the_log() {
        let task = create(
            TaskRequest {
                start_ms: NOW + 1000,
                ..request()
            },
            &[],
        )
        .unwrap();
        let entry = |instance: &str, operation, time_ms| LogEntry {
            instance: instance.to_owned(),
            operation,
            time_ms,
        };
        let end = task.end_ms();
        assert_eq!(task.state(&[], NOW), TaskState::Scheduled);
        assert_eq!(task.state(&[], NOW + 1000), TaskState::Waiting);
        assert_eq!(task.state(&[], end + 1), TaskState::Expired);
        let mut logs = vec![entry("a", Operation::Notified, NOW)];
        logs.push(entry("b", Operation::Notified, NOW + 61_000));
        assert_eq!(task.state(&logs, NOW + 70_000), TaskState::Running);
        logs.push(entry("a", Operation::Finished, end));
        assert_eq!(task.state(&logs, end), TaskState::Running);
        assert_eq!(task.state(&logs, end + 3 * 60_000), TaskState::Expired);
        logs.push(entry("b", Operation::Finished, end));
        assert_eq!(task.state(&logs, end + 3 * 60_000), TaskState::Finished);
        // Another OAP may say any time.
        let never = [entry("a", Operation::Notified, i64::MAX)];
        assert_eq!(task.state(&never, NOW), TaskState::Running);
    }
}
