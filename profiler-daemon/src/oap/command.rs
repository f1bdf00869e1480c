//! Turns a `ProfileTaskQuery` command into a [`ProfileTask`], or into the reason why it is refused.
//!
//! In:  [`Command`] of an OAP: names and texts
//! Out: [`ProfileTask`] within the limits that OAP puts on tasks
//! Lost: a command that is incomplete, unknown in part or out of range -> [`BadCommand`]; nothing
//! of it is carried out
//!
//! An argument we do not know may narrow what the task means, so it refuses the command: profiling
//! other requests than those asked for would be worse than profiling none, and the reason is seen.

use std::time::Duration;

use profiler_proto::skywalking::{Command, KeyStringValuePair};
use thiserror::Error;

use crate::model::plain::is_plain;
use crate::model::{ProfileTask, Service, TaskId, TaskLimits};

/// Name of the only command understood.
pub(super) const PROFILE_TASK_QUERY: &str = "ProfileTaskQuery";

/// Longest task id and serial number accepted, in bytes.
const ID_MAX_BYTES: usize = 1024;
/// Longest endpoint name, the width of OAP's column.
const ENDPOINT_MAX_CHARS: usize = 512;
/// Longest threshold, the range of OAP's type.
const THRESHOLD_MAX_MS: i64 = i32::MAX as i64;
/// OAP hands a task out at most five minutes before its start; more than a day ahead is no time
/// but another unit, or a broken clock.
const FUTURE_MAX_MS: i64 = 24 * 3_600_000;
const MINUTE_MS: i64 = 60_000;

const KEYS: [&str; 9] = [
    "SerialNumber",
    "TaskId",
    "EndpointName",
    "Duration",
    "MinDurationThreshold",
    "DumpPeriod",
    "MaxSamplingCount",
    "StartTime",
    "CreateTime",
];

/// A command that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskCommand {
    /// New for each delivery.
    pub(crate) serial_number: String,
    /// The task.
    pub(crate) task: ProfileTask,
}

/// Why a command is not carried out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum BadCommand {
    /// An argument is not there.
    #[error("the argument {0} is missing")]
    Missing(&'static str),
    /// An argument is there twice.
    #[error("the argument {0} is given more than once")]
    Repeated(&'static str),
    /// An argument this version does not know.
    #[error("the argument {0:?} is not known to this version")]
    Unknown(String),
    /// A text is empty or too long.
    #[error("{key} has {bytes} bytes, 1 to {max} are accepted")]
    BadText {
        /// Argument.
        key: &'static str,
        /// Length of its value.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// A text could act on a terminal or forge a line of the log.
    #[error("{0} has a control character or a bidirectional override")]
    NotPlain(&'static str),
    /// A number is none, or out of its range.
    #[error("{key} is {value:?}, {min} to {max} is accepted")]
    BadNumber {
        /// Argument.
        key: &'static str,
        /// As received, cut.
        value: String,
        /// Least accepted.
        min: i64,
        /// Most accepted.
        max: i64,
    },
    /// The task ended before it came.
    #[error("its time was over {0} s ago")]
    Over(i64),
}

/// The arguments of a command, each known and given once.
struct Args<'a>([Option<&'a str>; KEYS.len()]);

impl<'a> Args<'a> {
    fn new(args: &'a [KeyStringValuePair]) -> Result<Self, BadCommand> {
        let mut values = [None; KEYS.len()];
        for arg in args {
            let Some(index) = KEYS.iter().position(|&key| key == arg.key) else {
                return Err(BadCommand::Unknown(shorten(&arg.key)));
            };
            if values[index].replace(arg.value.as_str()).is_some() {
                return Err(BadCommand::Repeated(KEYS[index]));
            }
        }
        Ok(Self(values))
    }

    fn get(&self, key: &'static str) -> Result<&'a str, BadCommand> {
        let index = KEYS.iter().position(|&known| known == key);
        let value = index.and_then(|index| self.0[index]);
        value.ok_or(BadCommand::Missing(key))
    }

    fn text(&self, key: &'static str, max: usize) -> Result<String, BadCommand> {
        let text = self.get(key)?;
        if text.is_empty() || text.len() > max {
            let bytes = text.len();
            return Err(BadCommand::BadText { key, bytes, max });
        }
        if !is_plain(text) {
            return Err(BadCommand::NotPlain(key));
        }
        Ok(text.to_owned())
    }

    fn number(&self, key: &'static str, min: i64, max: i64) -> Result<i64, BadCommand> {
        let value = self.get(key)?;
        let number = value.parse().ok().filter(|n| (min..=max).contains(n));
        number.ok_or_else(|| BadCommand::BadNumber {
            key,
            value: shorten(value),
            min,
            max,
        })
    }
}

/// Reads a command that was delivered to `service` at `now_ms`.
pub(crate) fn parse(
    command: &Command,
    service: &Service,
    now_ms: i64,
) -> Result<TaskCommand, BadCommand> {
    let args = Args::new(&command.args)?;
    let latest_ms = now_ms.saturating_add(FUTURE_MAX_MS);
    let minutes = TaskLimits::DURATION_MINUTES;
    let counts = TaskLimits::MAX_SAMPLING_COUNT;
    let serial_number = args.text("SerialNumber", ID_MAX_BYTES)?;
    let task_id = args.text("TaskId", ID_MAX_BYTES)?;
    let endpoint = args.text("EndpointName", ENDPOINT_MAX_CHARS * 4)?;
    let duration_minutes = args.number("Duration", *minutes.start(), *minutes.end())?;
    let threshold_ms = args.number("MinDurationThreshold", 0, THRESHOLD_MAX_MS)?;
    // A period longer than the longest task would never tick.
    let dump_period_ms = args.number(
        "DumpPeriod",
        TaskLimits::DUMP_PERIOD_MIN_MS,
        *minutes.end() * MINUTE_MS,
    )?;
    let max_sampling_count = args.number("MaxSamplingCount", *counts.start(), *counts.end())?;
    let start_unix_ms = args.number("StartTime", 0, latest_ms)?;
    let create_unix_ms = args.number("CreateTime", 0, latest_ms)?;
    let over_ms = now_ms - (start_unix_ms + duration_minutes * MINUTE_MS);
    if over_ms > 0 {
        return Err(BadCommand::Over(over_ms / 1000));
    }
    let narrow = |n: i64| u32::try_from(n).expect("checked to be in 0..=i32::MAX");
    Ok(TaskCommand {
        serial_number,
        task: ProfileTask {
            task_id: TaskId(task_id),
            service: service.clone(),
            endpoint,
            duration: Duration::from_secs(u64::from(narrow(duration_minutes)) * 60),
            min_duration_threshold_ms: narrow(threshold_ms),
            dump_period_ms: narrow(dump_period_ms),
            max_sampling_count: narrow(max_sampling_count),
            start_unix_ms,
            create_unix_ms,
        },
    })
}

/// The creation time of a command, whatever else is wrong with it; it advances lastCommandTime, so
/// that a refused task is not sent again. A time that cannot be right does not.
pub(crate) fn create_time(command: &Command, now_ms: i64) -> Option<i64> {
    let time = argument(command, "CreateTime")?.parse().ok()?;
    (0..=now_ms.saturating_add(FUTURE_MAX_MS))
        .contains(&time)
        .then_some(time)
}

/// The first argument of this name.
pub(super) fn argument<'a>(command: &'a Command, key: &str) -> Option<&'a str> {
    let pair = command.args.iter().find(|pair| pair.key == key)?;
    Some(&pair.value)
}

/// A task id that can be reported back.
pub(super) fn usable_id(text: &str) -> Option<String> {
    ((1..=ID_MAX_BYTES).contains(&text.len()) && is_plain(text)).then(|| text.to_owned())
}

/// A text to compare deliveries by, bounded.
pub(super) fn shorten_id(text: &str) -> String {
    text[..text.floor_char_boundary(ID_MAX_BYTES)].to_owned()
}

/// The beginning of a text from outside, for messages.
pub(super) fn shorten(text: &str) -> String {
    text[..text.floor_char_boundary(80)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_405_209_971;

    fn service() -> Service {
        Service {
            name: "svc".to_owned(),
            instance: "one".to_owned(),
        }
    }

    fn command(changes: &[(&str, Option<&str>)]) -> Command {
        let now = NOW.to_string();
        let mut args = vec![
            ("SerialNumber", "c0ffee"),
            ("TaskId", "1795405209971_c3Zj.1"),
            ("EndpointName", "POST:/"),
            ("Duration", "5"),
            ("MinDurationThreshold", "0"),
            ("DumpPeriod", "10"),
            ("MaxSamplingCount", "5"),
            ("StartTime", now.as_str()),
            ("CreateTime", now.as_str()),
        ];
        for &(key, value) in changes {
            args.retain(|&(known, _)| known != key);
            args.extend(value.map(|value| (key, value)));
        }
        let pair = |(key, value): (&str, &str)| KeyStringValuePair {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        Command {
            command: PROFILE_TASK_QUERY.to_owned(),
            args: args.into_iter().map(pair).collect(),
        }
    }

    fn refused(key: &str, value: Option<&str>) -> String {
        parse(&command(&[(key, value)]), &service(), NOW)
            .unwrap_err()
            .to_string()
    }

    /// Check that a whole command becomes a task for the instance that asked.
    #[test]
    fn a_whole_command_becomes_a_task() {
        let parsed = parse(&command(&[]), &service(), NOW).unwrap();
        assert_eq!(parsed.serial_number, "c0ffee");
        assert_eq!(
            parsed.task,
            ProfileTask {
                task_id: TaskId("1795405209971_c3Zj.1".to_owned()),
                service: service(),
                endpoint: "POST:/".to_owned(),
                duration: Duration::from_secs(300),
                min_duration_threshold_ms: 0,
                dump_period_ms: 10,
                max_sampling_count: 5,
                start_unix_ms: NOW,
                create_unix_ms: NOW,
            }
        );
    }

    /// Check that each argument is needed, known, and given once.
    #[test]
    fn arguments_are_needed_known_and_given_once() {
        for key in KEYS {
            assert_eq!(refused(key, None), format!("the argument {key} is missing"));
        }
        assert_eq!(
            refused("ThreadName", Some("main")),
            "the argument \"ThreadName\" is not known to this version"
        );
        let mut twice = command(&[]);
        twice.args.push(twice.args[3].clone());
        assert_eq!(
            parse(&twice, &service(), NOW),
            Err(BadCommand::Repeated("Duration"))
        );
    }

    /// Check that numbers outside OAP's limits, and texts that are no numbers, are refused.
    #[test]
    fn absurd_values_are_refused() {
        assert_eq!(
            refused("Duration", Some("16")),
            "Duration is \"16\", 1 to 15 is accepted"
        );
        let bad = [
            ("Duration", "0"),
            ("Duration", "5.0"),
            ("Duration", " 5"),
            ("Duration", "99999999999999999999"),
            ("MinDurationThreshold", "-1"),
            ("MinDurationThreshold", "2147483648"),
            ("DumpPeriod", "9"),
            ("DumpPeriod", "900001"),
            ("MaxSamplingCount", "0"),
            ("MaxSamplingCount", "10"),
            ("StartTime", "-1"),
            ("StartTime", "1795405209971000"),
            ("CreateTime", "1795405209971000"),
            ("EndpointName", ""),
            ("TaskId", ""),
            ("SerialNumber", ""),
        ];
        for (key, value) in bad {
            assert!(refused(key, Some(value)).contains(key), "{key} {value}");
        }
        let long = "x".repeat(5000);
        assert!(refused("EndpointName", Some(&long)).contains("5000 bytes"));
        assert!(refused("Duration", Some(&long)).len() < 200);
    }

    /// Check that control characters, which would act on a terminal or forge a line of the log, are refused in every text,
    /// and are not in the refusal.
    #[test]
    fn control_characters_are_refused() {
        for key in ["TaskId", "SerialNumber", "EndpointName"] {
            for value in ["1\n2026-01-01 INFO forged", "\x1b[2J", "a\u{9b}b", "\0"] {
                let refusal = refused(key, Some(value));
                assert!(refusal.contains(key), "{refusal:?}");
                assert!(is_plain(&refusal), "{refusal:?}");
            }
        }
        let unknown = refused("\x1b]0;title\x07", Some("1"));
        assert!(is_plain(&unknown), "{unknown:?}");
        assert!(is_plain(&refused("Duration", Some("\x1b[2J"))));
    }

    /// Check the edges of what is accepted.
    #[test]
    fn values_at_the_limits_are_accepted() {
        let good = [
            ("Duration", "1"),
            ("Duration", "15"),
            ("MinDurationThreshold", "2147483647"),
            ("DumpPeriod", "900000"),
            ("MaxSamplingCount", "9"),
            ("EndpointName", "*"),
        ];
        for (key, value) in good {
            let parsed = parse(&command(&[(key, Some(value))]), &service(), NOW);
            assert!(parsed.is_ok(), "{key} {value}: {parsed:?}");
        }
    }

    /// Check that a task is refused one millisecond after its end, not before.
    #[test]
    fn a_task_that_is_over_is_refused() {
        let command = command(&[]);
        let end = NOW + 5 * MINUTE_MS;
        assert!(parse(&command, &service(), end).is_ok());
        assert_eq!(
            parse(&command, &service(), end + 1),
            Err(BadCommand::Over(0))
        );
    }

    /// Check that a refused command still tells its creation time, unless that cannot be right.
    #[test]
    fn a_refused_command_tells_its_creation_time() {
        let bad = command(&[("Duration", Some("99"))]);
        assert_eq!(create_time(&bad, NOW), Some(NOW));
        let absurd = command(&[("CreateTime", Some("9223372036854775807"))]);
        assert_eq!(create_time(&absurd, NOW), None);
        assert_eq!(create_time(&command(&[("CreateTime", None)]), NOW), None);
    }
}
