//! `profilerd record`.

use std::io::{IsTerminal as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ConfigArgs;
use crate::app;
use crate::config::{DurationRange, parse_duration};
use crate::model::{Pid, Progress, ProgressState, RecordRequest, RecordTarget};
use crate::output::{self, Format};
use crate::request::Endpoint;

/// How long a recording may look for requests.
const DURATION: DurationRange = DurationRange {
    min_ms: 1000,
    max_ms: 15 * 60 * 1000,
};
/// How far apart stacks may be.
const PERIOD: DurationRange = DurationRange {
    min_ms: 1,
    max_ms: 10_000,
};
/// Most requests of one recording: each keeps its stacks in memory.
const REQUESTS_MAX: u32 = 1000;

#[derive(Args, Debug)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Endpoint: `GET:/path`, `/path`, a template such as `GET:/users/{id}`, or `*`
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: String,
    /// Process to record
    #[arg(long, required_unless_present = "service", conflicts_with = "service")]
    pid: Option<u32>,
    /// Service to record, as `profilerd ps` shows it
    #[arg(long)]
    service: Option<String>,
    /// How long to look for requests (1s to 15m)
    #[arg(long, default_value = "30s")]
    duration: String,
    /// One stack per this long (1ms to 10s)
    #[arg(long, default_value = "10ms")]
    period: String,
    /// Keep only requests that last longer
    #[arg(long, default_value = "0ms")]
    min_duration: String,
    /// Stop after so many requests (1 to 1000)
    #[arg(long, default_value_t = 9)]
    max_requests: u32,
    /// Write the result to this file instead of standard output
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the result; by default that of the file's name, else a tree
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) fn run(args: &RecordArgs, level: &str) -> Result<ExitCode> {
    let request = request(args);
    if let Some(file) = &args.output {
        output::check_target(file)?;
    }
    let from_name = args.output.as_deref().and_then(Format::from_path);
    let format = args.format.or(from_name).unwrap_or(Format::Tree);
    let config = super::load(args.config.config.as_deref(), level)?;
    super::inspect::require_privileges()?;

    let line = Line::new();
    let report = app::record(&config, &request, &line)?;
    line.0.finish_and_clear();
    if let Some(why) = output::explain(&report) {
        eprintln!("{}", output::coverage_text(&report.coverage));
        eprintln!("profilerd: {why}");
        return Ok(ExitCode::from(3));
    }
    match &args.output {
        Some(file) => output::write_file(&report, format, file)?,
        None => output::print(&report, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn request(args: &RecordArgs) -> RecordRequest {
    let duration = |option: &str, text: &str, range: DurationRange| {
        range
            .parse(text)
            .unwrap_or_else(|why| super::usage(format!("--{option}: {why}")))
    };
    if let Err(error) = Endpoint::parse(&args.endpoint) {
        super::usage(format!("--endpoint: {error}"));
    }
    if !(1..=REQUESTS_MAX).contains(&args.max_requests) {
        super::usage(format!("--max-requests: give 1 to {REQUESTS_MAX}"));
    }
    let min_duration = parse_duration(&args.min_duration)
        .unwrap_or_else(|why| super::usage(format!("--min-duration: {why}")));
    RecordRequest {
        endpoint: args.endpoint.clone(),
        target: match (args.pid, &args.service) {
            (Some(pid), _) => RecordTarget::Pid(Pid(pid)),
            (None, Some(service)) => RecordTarget::Service(service.clone()),
            (None, None) => super::usage("give --pid or --service"),
        },
        duration: duration("duration", &args.duration, DURATION),
        dump_period: duration("period", &args.period, PERIOD),
        min_duration,
        max_requests: args.max_requests,
    }
}

/// The live line on a terminal.
struct Line(ProgressBar);

impl Line {
    fn new() -> Self {
        let target = if stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{msg}").expect("a constant template"));
        Self(bar)
    }
}

impl Progress for Line {
    fn update(&self, state: ProgressState) {
        self.0.set_message(format!(
            "{} s left, {} requests matched, {} snapshots",
            state.duration.saturating_sub(state.elapsed).as_secs(),
            state.requests_matched,
            state.snapshots
        ));
        self.0.tick();
    }
}
