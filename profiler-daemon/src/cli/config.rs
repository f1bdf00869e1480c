//! `profilerd config`: whether a file can be used, and which values are in use.
//!
//! In:  arguments; a file, variables, options
//! Out: a table or JSON; exit code 1 with the place, the key and what is accepted, if the configuration cannot be used

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::columns::columns;
use super::{DaemonOptions, LogArgs};
use crate::config::{ConfigSource, Loaded, Origin};

#[derive(Args, Debug)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check a file: its keys, its values, and whether they fit each other
    Check(CheckArgs),
    /// Show every key with its value and where that comes from: default, file, variable or option
    Show(ShowArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Variables are left out, because those of the daemon may be others. An error names the place, the key, and the nearest
known key or what is accepted.
Exit codes: 0 the file can be used, 1 it cannot, 2 bad usage.")]
struct CheckArgs {
    /// The file
    file: PathBuf,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  profilerd config show                                      defaults and the variables of this shell
  profilerd config show --config /etc/profilerd/profilerd.yaml --json

It takes the options of `profilerd daemon`, and shows what that would use. Secrets are not shown.
Exit codes: 0 shown, 1 the configuration cannot be used, 2 bad usage.")]
struct ShowArgs {
    #[command(flatten)]
    options: DaemonOptions,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &ConfigCommand, log: &LogArgs) -> Result<ExitCode> {
    match &command.action {
        Action::Check(args) => check(args),
        Action::Show(args) => show(args, log),
    }
}

fn check(args: &CheckArgs) -> Result<ExitCode> {
    let source = ConfigSource {
        file: Some(args.file.clone()),
        ..ConfigSource::default()
    };
    let config = source.load()?.config;
    super::print(&format!("{} can be used\n", args.file.display()))?;
    if config.oap.backends.is_empty() {
        super::say(
            "oap.backends is empty: `profilerd daemon` needs the address of an OAP there, in --backend or in \
             SW_AGENT_COLLECTOR_BACKEND_SERVICES",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// A key, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    key: String,
    value: Value,
    #[serde(flatten)]
    origin: Origin,
}

impl Row {
    fn cells(&self) -> [String; 3] {
        let value = match &self.value {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        [self.key.clone(), value, self.origin.to_string()]
    }
}

fn show(args: &ShowArgs, log: &LogArgs) -> Result<ExitCode> {
    let loaded = args.options.source(log).load()?;
    for warning in &loaded.warnings {
        super::say(warning);
    }
    let filter = crate::log::filter_given(log.log_level.as_deref());
    let rows = rows(&loaded, filter)?;
    super::print(&if args.json {
        super::pretty_json(&rows)?
    } else {
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        columns(["KEY", "VALUE", "SOURCE"], &cells)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// All keys; `filter` is what decides on the level of the log instead of the configuration, with its source.
fn rows(loaded: &Loaded, filter: Option<(String, Origin)>) -> Result<Vec<Row>> {
    let entries = loaded.config.entries()?.into_iter();
    let rows = entries.map(|(key, value)| {
        let given = filter.clone().filter(|_| key == "log.level");
        let (value, origin) = match given {
            Some((filter, origin)) => (Value::String(filter), origin),
            None => (value, loaded.origins.of(&key)),
        };
        Row { key, value, origin }
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the rows: every key once, each with its source, and a secret that is not shown.
    #[test]
    fn every_key_has_a_value_and_a_source() {
        let variables = [
            ("SW_AGENT_AUTHENTICATION", "s3cret"),
            ("PROFILERD_LOG_LEVEL", "debug"),
        ];
        let source = ConfigSource {
            variables: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            ..ConfigSource::default()
        };
        let loaded = source.load().unwrap();
        let shown = |filter| {
            let rows = rows(&loaded, filter).unwrap();
            let cells: Vec<_> = rows.iter().map(Row::cells).collect();
            columns(["KEY", "VALUE", "SOURCE"], &cells)
        };
        let text = shown(None);
        let has = |text: &str, line: [&str; 3]| {
            let mut lines = text.lines();
            lines.any(|it| {
                it.split("  ")
                    .filter(|it| !it.is_empty())
                    .map(str::trim)
                    .eq(line)
            })
        };
        let token = "variable SW_AGENT_AUTHENTICATION";
        assert!(
            has(&text, ["oap.authentication", "(secret)", token]),
            "{text}"
        );
        assert!(has(&text, ["limits.spool", "256MiB", "default"]), "{text}");
        assert!(has(
            &text,
            ["log.level", "debug", "variable PROFILERD_LOG_LEVEL"]
        ));
        assert!(!text.contains("s3cret"), "{text}");
        let text = shown(Some((
            "oap=trace".to_owned(),
            Origin::Option("--log-level"),
        )));
        assert!(has(&text, ["log.level", "oap=trace", "option --log-level"]));
    }
}
