//! What `profilerd task` reads from arguments and prints for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use profiler_proto::profilerd as pb;
use serde::Serialize;

use super::columns::columns;
use super::task::requests_matched;
use crate::embedded::wire;
use crate::model::plain::is_plain;
use crate::model::{CoverageReport, TaskLimits, TaskReport};
use crate::output::{self, clean, escape_json};

/// Longest endpoint name, the width of OAP's column.
const ENDPOINT_MAX_CHARS: usize = 512;
/// Longest service name: OAP cuts names of services there, so a longer one never has an instance.
const SERVICE_MAX_CHARS: usize = 70;

/// When a task starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At once, by the OAP's clock.
    Now,
    /// After a while.
    In(Duration),
    /// Epoch milliseconds.
    At(i64),
}

impl Start {
    /// For the protocol: 0 means now.
    pub(super) fn unix_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Now => 0,
            Self::In(after) => {
                let after_ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
                now_ms.saturating_add(after_ms)
            }
            Self::At(unix_ms) => unix_ms,
        }
    }
}

/// `10ms`, `30s`, `5m`, `1h`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let ms_per_unit = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(ms_per_unit).map(Duration::from_millis)
}

/// A duration as whole milliseconds in a range.
fn ms_within(text: &str, min: i64, max: i64) -> Option<i64> {
    let ms = i64::try_from(duration(text)?.as_millis()).ok()?;
    (min..=max).contains(&ms).then_some(ms)
}

/// Task duration in minutes.
pub(super) fn duration_minutes(text: &str) -> Result<i32, String> {
    let range = TaskLimits::DURATION_MINUTES;
    ms_within(text, range.start() * 60_000, range.end() * 60_000)
        .filter(|ms| ms % 60_000 == 0)
        .and_then(|ms| i32::try_from(ms / 60_000).ok())
        .ok_or_else(|| "accepted are whole minutes, 1m to 15m".to_owned())
}

/// Dump period in milliseconds.
pub(super) fn dump_period_ms(text: &str) -> Result<i32, String> {
    let longest_ms = TaskLimits::DURATION_MINUTES.end() * 60_000;
    ms_within(text, TaskLimits::DUMP_PERIOD_MIN_MS, longest_ms)
        .and_then(|ms| i32::try_from(ms).ok())
        .ok_or_else(|| "accepted is 10ms to 15m".to_owned())
}

/// Minimum duration in milliseconds.
pub(super) fn min_duration_ms(text: &str) -> Result<i32, String> {
    ms_within(text, 0, i64::from(i32::MAX))
        .and_then(|ms| i32::try_from(ms).ok())
        .ok_or_else(|| format!("accepted is 0ms to {}ms", i32::MAX))
}

/// Start of a task.
pub(super) fn start(text: &str) -> Result<Start, String> {
    let accepted = "accepted are now, +DURATION (for example +10m) and epoch milliseconds";
    if text == "now" {
        return Ok(Start::Now);
    }
    if let Some(after) = text.strip_prefix('+') {
        return duration(after)
            .map(Start::In)
            .ok_or_else(|| accepted.to_owned());
    }
    let at = text.parse().ok().filter(|&at: &i64| at > 0);
    at.map(Start::At).ok_or_else(|| accepted.to_owned())
}

/// Endpoint name.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let trimmed = text.trim();
    let chars = trimmed.chars().count();
    if chars == 0 || chars > ENDPOINT_MAX_CHARS || !is_plain(trimmed) {
        return Err(format!(
            "an endpoint has 1 to {ENDPOINT_MAX_CHARS} characters and no control characters, for \
             example POST:/orders/{{id}}"
        ));
    }
    Ok(trimmed.to_owned())
}

/// Service name.
pub(super) fn name(text: &str) -> Result<String, String> {
    let chars = text.chars().count();
    if text.trim().is_empty() || chars > SERVICE_MAX_CHARS || !is_plain(text) {
        return Err(format!(
            "a service name has 1 to {SERVICE_MAX_CHARS} characters and no control characters; \
             `profilerd ps` lists the names"
        ));
    }
    Ok(text.to_owned())
}

/// `HOST:PORT`.
pub(super) fn address(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    let is_good = parts.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if is_good {
        Ok(text.to_owned())
    } else {
        Err("accepted is HOST:PORT, for example 127.0.0.1:11800".to_owned())
    }
}

/// What to say when no instance of the service has reported.
pub(super) fn unknown_service(service: &str, known: &[String]) -> Option<String> {
    if known.iter().any(|name| name == service) {
        return None;
    }
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(service, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Some(match (nearest, known.is_empty()) {
        (Some((_, name)), _) => {
            format!("no instance of service {service} has reported yet; did you mean {name}?")
        }
        (None, true) => {
            format!("no instance of service {service} has reported yet, nor of any other service")
        }
        (None, false) => format!(
            "no instance of service {service} has reported yet; known are: {}",
            known.join(", ")
        ),
    })
}

fn state_name(task: &pb::Task) -> &'static str {
    match task.state() {
        pb::TaskState::Unspecified => "unknown",
        pb::TaskState::Scheduled => "scheduled",
        pb::TaskState::Waiting => "waiting",
        pb::TaskState::Running => "running",
        pb::TaskState::Finished => "finished",
        pb::TaskState::Expired => "expired",
        pb::TaskState::Cancelled => "cancelled",
    }
}

/// `in 12 s`, `3 min ago`.
pub(super) fn relative(time_ms: i64, now_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(time_ms) / 1000;
    let text = match seconds.unsigned_abs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    };
    if seconds < 0 {
        format!("in {text}")
    } else {
        format!("{text} ago")
    }
}

/// One line per task.
pub(super) fn tasks_table(tasks: &[pb::Task], now_ms: i64) -> String {
    if tasks.is_empty() {
        return "no tasks\n".to_owned();
    }
    let rows: Vec<[String; 5]> = tasks
        .iter()
        .map(|task| {
            [
                task.task_id.clone(),
                state_name(task).to_owned(),
                relative(task.start_ms, now_ms),
                task.service.clone(),
                task.endpoint.clone(),
            ]
        })
        .collect();
    columns(["TASK", "STATE", "START", "SERVICE", "ENDPOINT"], &rows)
}

/// A task for people.
pub(super) fn detail_text(detail: &pb::TaskDetail, now_ms: i64) -> String {
    let task = detail.task.clone().unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14} {}", clean(&value)); // a String takes everything
    };
    line("task", task.task_id.clone());
    line("service", task.service.clone());
    line("endpoint", task.endpoint.clone());
    line("state", state_name(&task).to_owned());
    line("start", relative(task.start_ms, now_ms));
    line("duration", format!("{} min", task.duration_minutes));
    line("dump period", format!("{} ms", task.dump_period_ms));
    let threshold = task.min_duration_threshold_ms;
    line("min duration", format!("{threshold} ms"));
    let count = task.max_sampling_count;
    line("max requests", format!("{count} per instance"));
    line("requests", detail.segments.to_string());
    line("snapshots", detail.snapshots.to_string());
    for log in &detail.logs {
        let when = relative(log.time_ms, now_ms);
        let what = match log.operation.as_str() {
            "NOTIFIED" => "took the task",
            "EXECUTION_FINISHED" => "finished it",
            other => other,
        };
        line("log", format!("{} {what}, {when}", log.service_instance));
    }
    let coverage = output::coverage_text(&wire::coverage_report(detail.coverage.as_ref()));
    if !coverage.trim().is_empty() {
        let _ = writeln!(text, "\n{}", coverage.trim_end());
    }
    text
}

/// The live line of `create --wait`.
pub(super) fn progress(detail: &pb::TaskDetail, now_ms: i64) -> String {
    let task = detail.task.clone().unwrap_or_default();
    let duration_ms = i64::from(task.duration_minutes) * 60_000;
    let end_ms = task.start_ms.saturating_add(duration_ms);
    let left_s = (end_ms.saturating_sub(now_ms) / 1000).max(0);
    let matched = requests_matched(detail).map_or_else(String::new, |matched| {
        format!("{matched} requests matched, ")
    });
    format!(
        "{}, {left_s} s left, {matched}{} profiled, {} snapshots",
        state_name(&task),
        detail.segments,
        detail.snapshots
    )
}

/// A task as JSON: the names of reports, and what only the OAP knows.
#[derive(Serialize)]
struct TaskJson {
    #[serde(flatten)]
    task: TaskReport,
    create_ms: i64,
    state: &'static str,
}

#[derive(Serialize)]
struct LogJson<'a> {
    service_instance: &'a str,
    operation: &'a str,
    time_ms: i64,
}

#[derive(Serialize)]
struct DetailJson<'a> {
    task: TaskJson,
    logs: Vec<LogJson<'a>>,
    coverage: CoverageReport,
    segments: u32,
    snapshots: u64,
}

fn task_json(task: &pb::Task) -> TaskJson {
    TaskJson {
        task: wire::task_report(task),
        create_ms: task.create_ms,
        state: state_name(task),
    }
}

fn json_line(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(value)?;
    Ok(escape_json(&json).into_owned() + "\n")
}

/// All tasks as one object.
pub(super) fn tasks_json(tasks: &[pb::Task]) -> Result<String> {
    let tasks: Vec<TaskJson> = tasks.iter().map(task_json).collect();
    let object = BTreeMap::from([("tasks", tasks)]);
    json_line(&object)
}

/// A task with log and coverage as one object.
pub(super) fn detail_json(detail: &pb::TaskDetail) -> Result<String> {
    let object = DetailJson {
        task: task_json(&detail.task.clone().unwrap_or_default()),
        logs: detail
            .logs
            .iter()
            .map(|log| LogJson {
                service_instance: &log.service_instance,
                operation: &log.operation,
                time_ms: log.time_ms,
            })
            .collect(),
        coverage: wire::coverage_report(detail.coverage.as_ref()),
        segments: detail.segments,
        snapshots: detail.snapshots,
    };
    json_line(&object)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the forms of durations, and what is not one.
    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("10ms"), Some(Duration::from_millis(10)));
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
        for bad in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "5.5m",
            "5d",
            "99999999999999999999s",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        assert_eq!(duration_minutes("120s"), Ok(2));
        assert!(duration_minutes("90s").is_err());
        assert_eq!(start("+90s"), Ok(Start::In(Duration::from_secs(90))));
        assert_eq!(start("+90s").unwrap().unix_ms(1000), 91_000);
        assert_eq!(start("1795405209971"), Ok(Start::At(1_795_405_209_971)));
    }

    /// Check that a service nobody has heard of is answered with the nearest known one.
    #[test]
    fn an_unknown_service_is_answered_with_the_nearest() {
        let known = ["shop".to_owned(), "billing".to_owned()];
        assert_eq!(unknown_service("shop", &known), None);
        let hint = unknown_service("shopp", &known).unwrap();
        assert!(hint.contains("did you mean shop?"), "{hint}");
        let hint = unknown_service("zzz", &known).unwrap();
        assert!(hint.contains("known are: shop, billing"), "{hint}");
        assert!(unknown_service("x", &[]).unwrap().contains("any other"));
    }

    /// Check that times read well in both directions.
    #[test]
    fn times_are_relative() {
        let now = 10_000_000_000;
        assert_eq!(relative(now - 5_000, now), "5 s ago");
        assert_eq!(relative(now + 600_000, now), "in 10 min");
        assert_eq!(relative(now - 7_200_000, now), "2 h ago");
        assert!(relative(i64::MIN, now).ends_with("days ago"));
    }
}
