//! `profilerd ps` and `profilerd doctor`: what is here and what works.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::ConfigArgs;
use crate::kernel;
use crate::output::clean;
use crate::process::{ProcessTable, RequestModel, Runtime};

#[derive(Args, Debug)]
pub(super) struct PsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// All processes, not only those that listen or have a service name
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn ps(args: &PsArgs, level: &str) -> Result<ExitCode> {
    let config = super::load(args.config.config.as_deref(), level)?;
    let mut table = ProcessTable::new(config.services);
    table.scan()?;
    let mut rows = Vec::new();
    for process in table.iter().filter(|p| args.all || p.may_serve()) {
        let (runtime, profiled) = match Runtime::detect(process.pid) {
            Ok(runtime) => {
                let profiled = match runtime.request_model() {
                    RequestModel::ThreadPerRequest => "yes".to_owned(),
                    RequestModel::Unsupported(why) => format!("no: {why}"),
                };
                (runtime.to_string(), profiled)
            }
            Err(error) => ("?".to_owned(), format!("no: {error}")),
        };
        let identity = &process.identity;
        rows.push([
            process.pid.to_string(),
            clean(&identity.service.name).into_owned(),
            clean(&identity.service.instance).into_owned(),
            identity.rule.to_string(),
            runtime,
            profiled,
        ]);
    }
    let names = [
        "PID", "SERVICE", "INSTANCE", "NAMED BY", "RUNTIME", "PROFILED",
    ];
    if args.json {
        let objects: Vec<_> = rows
            .iter()
            .map(|r| {
                json!({"pid": r[0].parse::<u32>().unwrap_or(0), "service": r[1], "instance": r[2],
                    "rule": r[3], "runtime": r[4], "profiled": r[5]})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&objects)?);
    } else {
        let width = |column: usize| {
            let texts = rows.iter().map(|r| r[column].chars().count());
            texts.chain([names[column].len()]).max().unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        let header = names.map(str::to_owned);
        for row in std::iter::once(&header).chain(&rows) {
            let cells = row.iter().zip(widths).map(|(cell, w)| format!("{cell:w$}"));
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let checks = kernel::probe();
    if args.json {
        let objects: Vec<_> = checks
            .iter()
            .map(|c| json!({"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&objects)?);
    } else {
        for check in &checks {
            println!(
                "{}  {}: {}",
                if check.ok { "ok  " } else { "FAIL" },
                check.name,
                check.detail
            );
            if !check.ok {
                println!("      {}", check.fix);
            }
        }
    }
    Ok(if checks.iter().all(|c| c.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Fails at once, with what to do, where nothing could ever be captured.
pub(super) fn require_privileges() -> Result<()> {
    let missing: Vec<String> = kernel::probe()
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: {} ({})", check.name, check.detail, check.fix))
        .collect();
    if !missing.is_empty() {
        bail!(
            "this machine cannot be profiled yet: {}",
            missing.join("; ")
        );
    }
    Ok(())
}
