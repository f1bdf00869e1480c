//! `profilerd endpoints`: what services are asked for, how often, how long it takes; as a table that is renewed, or once.
//!
//! In:  arguments
//! Out: the table; with no request in it exit code 3, and the reason on standard error
//! Lost: nothing that the last lines do not say

use std::cmp::Ordering;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;
use terminal_size::{Height, Width, terminal_size};

use super::columns::columns_within;
use super::complete;
use super::{ConfigArgs, LogArgs};
use crate::app::{self, EndpointsRequest, EndpointsShown};
use crate::config::{DurationRange, duration_text};
use crate::doctor;
use crate::model::{EndpointFigures, Pid, RecordTarget, Unseen};

/// How long to look.
const DURATION: DurationRange = DurationRange::ms(1_000, 24 * 3_600_000);
/// Exit code if no request was seen, as of `record`.
const EXIT_NOTHING: u8 = 3;
/// Lines that are not rows: the head, the totals, what was not seen.
const OTHER_LINES: usize = 5;
/// Moves the cursor to the upper left and clears what is below.
const HOME: &str = "\x1b[H\x1b[J";

#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("target"),
    after_help = "\
Examples:
  profilerd endpoints                          all services, for 10 seconds
  profilerd endpoints --service shop --sort p95 --duration 1m
  profilerd endpoints --pid 4711 --json        for programs

Ids in paths become {id}; discovery.templates of the configuration has rules for what else varies. ERRORS are
responses from 500 and requests without one, 4XX those from 400 to 499. PROFILABLE is yes, no, or native frames
only. Neither bodies nor queries are kept, and no stack is taken.
Exit codes: 0 requests were seen, 1 failed, 2 bad usage, 3 no request was seen."
)]
pub(super) struct EndpointsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Process to look at, with its descendants
    #[arg(long, group = "target", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Service to look at, with all its processes, as `profilerd ps` names it
    #[arg(long, group = "target", add = complete::services())]
    service: Option<String>,
    /// How long to look, 1s to 24h; Ctrl-C ends it early
    #[arg(long, default_value = "10s", value_parser = |text: &str| DURATION.parse(text))]
    duration: Duration,
    /// Column by which rows are sorted, the largest first
    #[arg(long, value_enum, default_value_t = Sort::Rate)]
    sort: Sort,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// A column to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Requests per second
    Rate,
    /// Share of errors
    Errors,
    /// Half of the responses took at most this long
    P50,
    /// 95 % of them
    P95,
    /// 99 % of them
    P99,
    /// The longest
    Longest,
    /// Service and endpoint, from A to Z
    Name,
}

impl Sort {
    fn order(self, a: &EndpointFigures, b: &EndpointFigures) -> Ordering {
        let name = |it: &EndpointFigures| (it.service.clone(), it.endpoint.clone());
        let by_name = || name(a).cmp(&name(b));
        let largest = |key: fn(&EndpointFigures) -> f64| key(b).total_cmp(&key(a));
        let order = match self {
            Self::Rate => b.requests.cmp(&a.requests),
            Self::Errors => largest(EndpointFigures::error_share),
            Self::P50 => largest(|it| it.p50_ms),
            Self::P95 => largest(|it| it.p95_ms),
            Self::P99 => largest(|it| it.p99_ms),
            Self::Longest => largest(|it| it.longest_ms),
            Self::Name => by_name(),
        };
        order.then_with(by_name)
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    seconds: f64,
    endpoints: Vec<Row<'a>>,
    unseen: Unseen,
    /// Requests that count under other endpoints because there are too many names.
    requests_over_limit: u64,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    figures: &'a EndpointFigures,
    requests_per_second: f64,
    error_share: f64,
    profilable: &'a str,
}

pub(super) fn run(args: &EndpointsArgs, log: &LogArgs) -> Result<ExitCode> {
    let config = super::load(&args.config, log, "warn")?;
    doctor::require()?;
    let target = match (args.pid, &args.service) {
        (Some(pid), _) => Some(RecordTarget::Pid(Pid(pid))),
        (None, Some(name)) => Some(RecordTarget::Service(name.clone())),
        (None, None) => None,
    };
    let request = EndpointsRequest {
        target,
        duration: Some(args.duration),
    };
    let is_live = stdout().is_terminal() && !args.json;
    let mut update = |shown: &EndpointsShown| {
        if !is_live {
            return Ok(());
        }
        let left = args.duration.saturating_sub(shown.elapsed);
        let left = duration_text(Duration::from_secs(left.as_secs()));
        let rows = terminal_size().map_or(24, |(_, Height(rows))| usize::from(rows));
        let rows = rows.saturating_sub(OTHER_LINES + 1).max(1);
        let text = table(shown, args.sort, Some(rows));
        let mut out = stdout().lock();
        let written = writeln!(out, "{HOME}{text}{left} left (Ctrl-C ends early)");
        written
            .and_then(|()| out.flush())
            .context("failed to write to standard output")
    };
    let shown = app::endpoints(&config, &request, &mut update)?;
    if args.json {
        super::print(&super::pretty_json(&output(&shown, args.sort))?)?;
    } else {
        let begin = if is_live { HOME } else { "" };
        super::print(&format!("{begin}{}", table(&shown, args.sort, None)))?;
    }
    if shown.endpoints.is_empty() {
        super::say(&nothing(args, &shown));
        return Ok(ExitCode::from(EXIT_NOTHING));
    }
    Ok(ExitCode::SUCCESS)
}

fn nothing(args: &EndpointsArgs, shown: &EndpointsShown) -> String {
    let lasted = duration_text(Duration::from_secs(shown.elapsed.as_secs()));
    let unseen = shown.unseen.total();
    if unseen > 0 {
        return format!(
            "no request was seen to its end in {lasted}: {}",
            unseen_text(&shown.unseen)
        );
    }
    let whom = match (args.pid, &args.service) {
        (Some(pid), _) => format!("process {pid}"),
        (None, Some(name)) => format!("service {name}"),
        (None, None) => "any service".to_owned(),
    };
    format!(
        "no HTTP/1 request to {whom} was seen in {lasted}. Is there traffic, and is it HTTP/1 without TLS? \
         --duration looks for longer"
    )
}

fn sorted(shown: &EndpointsShown, sort: Sort) -> Vec<&EndpointFigures> {
    let mut rows: Vec<&EndpointFigures> = shown.endpoints.iter().collect();
    rows.sort_by(|a, b| sort.order(a, b));
    rows
}

fn profilable<'a>(shown: &'a EndpointsShown, row: &EndpointFigures) -> &'a str {
    shown.profilable.get(&row.service).copied().unwrap_or("?")
}

fn output(shown: &EndpointsShown, sort: Sort) -> Output<'_> {
    let seconds = shown.elapsed.as_secs_f64();
    let rows = sorted(shown, sort).into_iter().map(|figures| Row {
        requests_per_second: figures.requests as f64 / seconds.max(0.001),
        error_share: figures.error_share(),
        profilable: profilable(shown, figures),
        figures,
    });
    Output {
        seconds,
        endpoints: rows.collect(),
        unseen: shown.unseen,
        requests_over_limit: shown.over_limit,
    }
}

/// The rows, at most so many, and the totals.
fn table(shown: &EndpointsShown, sort: Sort, rows_max: Option<usize>) -> String {
    let seconds = shown.elapsed.as_secs_f64().max(0.001);
    let head = [
        "SERVICE",
        "ENDPOINT",
        "REQ/S",
        "ERRORS",
        "4XX",
        "P50 MS",
        "P95 MS",
        "P99 MS",
        "LONGEST",
        "PROFILABLE",
    ];
    let percent = |part: u64, of: u64| format!("{:.1} %", 100.0 * part as f64 / of.max(1) as f64);
    let cells = |row: &EndpointFigures| {
        [
            row.service.clone(),
            row.endpoint.clone(),
            format!("{:.1}", row.requests as f64 / seconds),
            percent(row.server_errors + row.unanswered, row.requests),
            percent(row.client_errors, row.requests),
            format!("{:.1}", row.p50_ms),
            format!("{:.1}", row.p95_ms),
            format!("{:.1}", row.p99_ms),
            format!("{:.1}", row.longest_ms),
            profilable(shown, row).to_owned(),
        ]
    };
    let rows = sorted(shown, sort);
    let fitting = rows.iter().take(rows_max.unwrap_or(usize::MAX));
    let cells: Vec<_> = fitting.map(|row| cells(row)).collect();
    let screen = terminal_size().map(|(Width(columns), _)| usize::from(columns));
    let mut text = columns_within(head, &cells, screen);
    if cells.len() < rows.len() {
        text.push_str(&format!("{} more\n", rows.len() - cells.len()));
    }
    text.push_str(&totals(shown));
    text
}

fn totals(shown: &EndpointsShown) -> String {
    let sum = |of: fn(&EndpointFigures) -> u64| shown.endpoints.iter().map(of).sum::<u64>();
    let services: std::collections::BTreeSet<&str> = shown
        .endpoints
        .iter()
        .map(|row| row.service.as_str())
        .collect();
    let named = shown.endpoints.iter().filter(|row| row.has_name).count();
    let requests = sum(|row| row.requests);
    let seconds = shown.elapsed.as_secs_f64();
    let of = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    let mut text = format!(
        "{requests} requests in {seconds:.1} s ({:.1}/s) to {} of {}, {} of them failed\n",
        requests as f64 / seconds.max(0.001),
        of(named, "endpoint"),
        of(services.len(), "service"),
        sum(|row| row.server_errors + row.unanswered)
    );
    if shown.over_limit > 0 {
        text.push_str(&format!(
            "{} requests count under other endpoints: a service has too many names; discovery.templates joins some\n",
            shown.over_limit
        ));
    }
    if shown.unseen.total() > 0 {
        text.push_str(&format!("not seen: {}\n", unseen_text(&shown.unseen)));
    }
    text
}

fn unseen_text(unseen: &Unseen) -> String {
    let counts = [
        (unseen.still_open, "requests still open at the end"),
        (
            unseen.over_limit,
            "requests beyond those that are followed at once",
        ),
        (unseen.pipelined, "pipelined requests"),
        (unseen.malformed, "heads that could not be read"),
        (unseen.events_lost, "events lost"),
    ];
    let moved = counts.iter().filter(|(count, _)| *count > 0);
    let texts: Vec<String> = moved
        .map(|(count, text)| format!("{count} {text}"))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(endpoint: &str, requests: u64, server_errors: u64, p95_ms: f64) -> EndpointFigures {
        EndpointFigures {
            service: "shop".to_owned(),
            endpoint: endpoint.to_owned(),
            has_name: true,
            requests,
            server_errors,
            p95_ms,
            longest_ms: p95_ms,
            ..EndpointFigures::default()
        }
    }

    fn shown() -> EndpointsShown {
        EndpointsShown {
            endpoints: vec![row("GET:/a", 100, 0, 5.0), row("GET:/b", 10, 5, 50.0)],
            profilable: [("shop".to_owned(), "yes")].into(),
            elapsed: Duration::from_secs(10),
            ..EndpointsShown::default()
        }
    }

    /// Check that rows are sorted by each column, with shares and rates, and that the totals end the table.
    #[test]
    fn rows_are_sorted_and_summed() {
        let text = table(&shown(), Sort::Rate, None);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].contains("GET:/a") && lines[1].contains("10.0"),
            "{text}"
        );
        assert!(
            lines[2].contains("50.0 %") && lines[2].ends_with("yes"),
            "{text}"
        );
        assert_eq!(
            lines[3],
            "110 requests in 10.0 s (11.0/s) to 2 endpoints of 1 service, 5 of them failed"
        );
        for sort in [Sort::Errors, Sort::P95, Sort::Longest] {
            let text = table(&shown(), sort, Some(1));
            assert!(text.lines().nth(1).unwrap().contains("GET:/b"), "{text}");
            assert!(text.contains("1 more\n"), "{text}");
        }
    }

    /// Check that what was not seen is said.
    #[test]
    fn what_was_not_seen_is_said() {
        let mut shown = shown();
        shown.over_limit = 3;
        shown.unseen.pipelined = 2;
        let text = table(&shown, Sort::Name, None);
        assert!(text.contains("not seen: 2 pipelined requests\n"), "{text}");
        assert!(
            text.contains("3 requests count under other endpoints"),
            "{text}"
        );
    }

    /// Check the names of the JSON output.
    #[test]
    fn json_has_rates() {
        let json = serde_json::to_value(output(&shown(), Sort::Rate)).unwrap();
        let first = &json["endpoints"][0];
        assert_eq!(first["endpoint"], "GET:/a");
        assert_eq!(first["requests_per_second"], 10.0);
        assert_eq!(first["profilable"], "yes");
        assert_eq!(json["unseen"]["still_open"], 0);
    }
}
