//! `profilerd status`: how the daemon on this host is doing.
//!
//! In:  arguments; the configuration, for the address; what [`crate::metrics::ask`] hears
//! Out: words or JSON on standard output; exit code 1 if nobody answers

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use super::status_text::text;
use super::{ConfigArgs, LogArgs};
use crate::metrics::ask;
use crate::model::clock::unix_ms_now;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  profilerd status                              the address of the configuration or PROFILERD_METRICS
  profilerd status --metrics 127.0.0.1:9464     a daemon that was started with this option
  profilerd status --json                       everything, for programs

Figures are of all tasks since the daemon started; `!` marks what is missing or lost.
Exit codes: 0 a daemon has answered, 1 none has.")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address where the daemon serves its figures
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs, log: &LogArgs) -> Result<ExitCode> {
    let config = super::load(&args.config, log, "warn")?;
    let address = args.metrics.or(config.metrics).context(
        "no address of a daemon is known. Start the daemon with --metrics 127.0.0.1:9464, or set \
         `metrics` in the configuration or PROFILERD_METRICS, and give `status` the same address",
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the asynchronous runtime")?;
    let observation = runtime.block_on(ask(address))?;
    let shown = if args.json {
        super::pretty_json(&observation)?
    } else {
        text(&observation, unix_ms_now())
    };
    super::print(&shown)?;
    Ok(ExitCode::SUCCESS)
}
