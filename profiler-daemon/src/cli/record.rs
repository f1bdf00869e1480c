//! `profilerd record`: one endpoint, now, into a file or onto the terminal.
//!
//! In:  arguments, checked by the parser: out of range is exit code 2 with what is accepted
//! Out: the result; with no request in it exit code 3, coverage and the reason on standard error
//! Lost: nothing that the coverage does not say

use std::io::{BufWriter, IsTerminal as _, stderr, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::complete;
use super::delivery::OutputArgs;
use super::{ConfigArgs, LogArgs};
use crate::app;
use crate::config::{DurationRange, duration_text};
use crate::doctor;
use crate::model::{Pid, Progress, ProgressState, RecordRequest, RecordTarget};
use crate::request::Endpoint;

/// How long a recording may look for requests: as long as a task of SkyWalking at most.
const DURATION: DurationRange = DurationRange::ms(1_000, 15 * 60_000);
/// How far apart stacks may be. SkyWalking's floor of 10 ms is a pause of the whole application;
/// here a stack costs the profiled thread a few microseconds.
const PERIOD: DurationRange = DurationRange::ms(1, 10_000);
/// Up to the longest duration: more could never be reached.
const MIN_DURATION: DurationRange = DurationRange::ms(0, 15 * 60_000);

#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("target").required(true),
    after_help = "\
Examples:
  profilerd record --endpoint GET:/orders/{id} --service shop
  profilerd record --endpoint POST:/ --pid 4711 --duration 1m -o slow.svg
  profilerd record --endpoint '*' --service shop --min-duration 500ms --format json

Endpoints: METHOD:/path, /path for any method, {name} for a segment that varies, * for every
request. Exit codes: 0 result written, 1 failed, 2 bad usage, 3 no request was profiled."
)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Endpoint to profile
    #[arg(long, value_parser = endpoint, add = complete::endpoints())]
    endpoint: String,
    /// Process to record, with its descendants, present and future ones
    #[arg(long, group = "target", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Service to record, with all its processes, as `profilerd ps` names it
    #[arg(long, group = "target", add = complete::services())]
    service: Option<String>,
    /// How long to look for requests, 1s to 15m
    #[arg(long, default_value = "30s", value_parser = |text: &str| DURATION.parse(text))]
    duration: Duration,
    /// Time between two stacks, 1ms to 10s
    #[arg(long, default_value = "10ms", value_parser = |text: &str| PERIOD.parse(text))]
    period: Duration,
    /// Keep only requests that last longer, 0ms to 15m
    #[arg(long, default_value = "0ms", value_parser = |text: &str| MIN_DURATION.parse(text))]
    min_duration: Duration,
    /// Stop after this number of requests, 1 to 1000
    #[arg(long, default_value = "9", value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_requests: u32,
    #[command(flatten)]
    output: OutputArgs,
}

fn endpoint(text: &str) -> Result<String, String> {
    match Endpoint::parse(text) {
        Ok(_) => Ok(text.trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn run(args: &RecordArgs, log: &LogArgs) -> Result<ExitCode> {
    let mut config = super::load(&args.config, log, "warn")?;
    if let Some(frames) = args.output.frames {
        config.frames = frames;
    }
    doctor::require()?;
    let line = Line::new();
    let report = app::record(&config, &args.request(), &line)?;
    line.0.finish_and_clear();
    let mut out = BufWriter::new(stdout().lock());
    Ok(ExitCode::from(args.output.deliver(
        &report,
        &args.again(),
        &mut out,
    )?))
}

impl RecordArgs {
    /// The command that records the same once more.
    fn again(&self) -> Vec<String> {
        let mut words = vec!["profilerd", "record", "--endpoint", &self.endpoint];
        let pid = self.pid.map(|pid| pid.to_string());
        match (&pid, &self.service) {
            (Some(pid), _) => words.extend(["--pid", pid]),
            (None, Some(service)) => words.extend(["--service", service]),
            (None, None) => {}
        }
        words.into_iter().map(str::to_owned).collect()
    }

    fn request(&self) -> RecordRequest {
        let target = match self.pid {
            Some(pid) => RecordTarget::Pid(Pid(pid)),
            None => RecordTarget::Service(self.service.clone().unwrap_or_default()),
        };
        RecordRequest {
            endpoint: self.endpoint.clone(),
            target,
            duration: self.duration,
            dump_period: self.period,
            min_duration: self.min_duration,
            max_requests: self.max_requests,
        }
    }
}

/// The progress line; only on a terminal.
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
        let left = state.duration.saturating_sub(state.elapsed);
        self.0.set_message(format!(
            "{} left, {} requests matched, {} snapshots (Ctrl-C ends early)",
            duration_text(Duration::from_secs(left.as_secs())),
            state.requests_matched,
            state.snapshots
        ));
        self.0.tick();
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: RecordArgs,
    }

    fn parse(args: &[&str]) -> Result<RecordArgs, String> {
        let parsed = Cli::try_parse_from(["record"].iter().chain(args));
        parsed
            .map(|cli| cli.args)
            .map_err(|error| error.to_string())
    }

    /// Check the defaults.
    #[test]
    fn defaults_are_those_of_the_help() {
        let args = parse(&["--endpoint", " /a ", "--pid", "7"]).unwrap();
        assert_eq!(
            args.request(),
            RecordRequest {
                endpoint: "/a".to_owned(),
                target: RecordTarget::Pid(Pid(7)),
                duration: Duration::from_secs(30),
                dump_period: Duration::from_millis(10),
                min_duration: Duration::ZERO,
                max_requests: 9,
            }
        );
    }

    /// Check that each value out of range is refused with what is accepted.
    #[test]
    fn refusals_name_what_is_accepted() {
        let base = ["--endpoint", "/a", "--pid", "7"];
        for (option, value, accepted) in [
            ("--duration", "16m", "1s to 15m"),
            ("--duration", "30", "such as 30s"),
            ("--period", "0ms", "1ms to 10s"),
            ("--min-duration", "1h", "0ms to 15m"),
            ("--max-requests", "0", "1..=1000"),
        ] {
            let error = parse(&[&base[..], &[option, value]].concat()).unwrap_err();
            assert!(error.contains(accepted), "{option} {value}: {error}");
        }
        let error = parse(&["--endpoint", "com.acme.Shop", "--pid", "7"]).unwrap_err();
        assert!(error.contains("METHOD:/path"), "{error}");
        assert!(parse(&["--endpoint", "/a"]).is_err());
        assert!(parse(&["--endpoint", "/a", "--pid", "1", "--service", "s"]).is_err());
        assert!(parse(&["--endpoint", "/a", "--pid", "0"]).is_err());
    }
}
