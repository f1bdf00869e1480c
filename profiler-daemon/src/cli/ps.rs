//! `profilerd ps`: which processes there are, what they are called, and whether they can be profiled.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::ConfigArgs;
use super::columns::columns;
use crate::output::clean;
use crate::process::table::Process;
use crate::process::{ProcessTable, RequestModel, Runtime};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  profilerd ps                 servers and named processes
  profilerd ps --all --json    everything, for programs

NAMED BY tells what gave the service its name: a rule of the configuration, a variable of the
process, its systemd unit, or its program.")]
pub(super) struct PsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// All processes, not only those that listen on a TCP port or were given a service name
    #[arg(long)]
    all: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// One process, as `--json` prints it.
#[derive(Serialize)]
struct Row {
    pid: u32,
    service: String,
    instance: String,
    /// What gave the service its name.
    rule: String,
    runtime: Option<String>,
    ports: Vec<u16>,
    profilable: bool,
    /// Why not.
    reason: Option<String>,
}

impl Row {
    fn new(process: &Process) -> Self {
        let (runtime, reason) = match Runtime::detect(process.pid) {
            Ok(runtime) => {
                let reason = match runtime.request_model() {
                    RequestModel::ThreadPerRequest => None,
                    RequestModel::Unsupported(why) => Some(why.to_owned()),
                };
                (Some(runtime.to_string()), reason)
            }
            Err(error) => (None, Some(format!("cannot be looked at: {error}"))),
        };
        let identity = &process.identity;
        Self {
            pid: process.pid.0,
            service: clean(&identity.service.name).into_owned(),
            instance: clean(&identity.service.instance).into_owned(),
            rule: identity.rule.to_string(),
            runtime,
            ports: process.listen_ports.clone(),
            profilable: reason.is_none(),
            reason,
        }
    }

    fn cells(&self) -> [String; 7] {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let profilable = match &self.reason {
            None => "yes".to_owned(),
            Some(reason) => format!("no: {reason}"),
        };
        [
            self.pid.to_string(),
            self.service.clone(),
            self.instance.clone(),
            self.rule.clone(),
            ports.join(","),
            self.runtime.clone().unwrap_or_else(|| "?".to_owned()),
            profilable,
        ]
    }
}

pub(super) fn run(args: &PsArgs, level: Option<&str>) -> Result<ExitCode> {
    let config = super::load(&args.config, level, "warn")?;
    let mut table = ProcessTable::new(config.services);
    table
        .scan()
        .context("failed to list the processes in /proc")?;
    let shown = table.iter().filter(|p| args.all || p.may_serve());
    let rows: Vec<Row> = shown.map(Row::new).collect();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("profilerd: not root: processes of other users are seen only in part");
    }
    if args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        super::print(&(text + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        eprintln!(
            "profilerd: no process listens on a TCP port or has a service name; --all lists {}",
            table.iter().count()
        );
    }
    let head = [
        "PID",
        "SERVICE",
        "INSTANCE",
        "NAMED BY",
        "PORTS",
        "RUNTIME",
        "PROFILABLE",
    ];
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    super::print(&columns(head, &cells))?;
    Ok(ExitCode::SUCCESS)
}
