//! The command line: the only module that knows clap.

pub mod analyze;
mod inspect;
mod record;
pub mod task;
mod task_text;

use std::io::{IsTerminal as _, stderr};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::app;
use crate::config::Config;

/// Profiles single endpoints of unmodified services from outside, with eBPF, for Apache SkyWalking.
#[derive(Debug, Parser)]
#[command(name = "profilerd", version, propagate_version = true)]
struct Cli {
    /// What is logged to standard error: error, warn, info, debug, trace, or a filter such as
    /// `profiler_daemon::oap=debug`
    #[arg(long, global = true, env = "PROFILERD_LOG_LEVEL")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run tasks of a SkyWalking OAP
    Daemon(DaemonArgs),
    /// Run with an OAP built in; tasks come by `profilerd task`
    Standalone(StandaloneArgs),
    /// Profile one endpoint now and write the result
    Record(record::RecordArgs),
    /// Create, list and show profile tasks, get their results
    Task(task::TaskArgs),
    /// Turn thread snapshots into call trees, as OAP does
    Analyze(analyze::AnalyzeArgs),
    /// List processes, the services they belong to, and what can be profiled
    Ps(inspect::PsArgs),
    /// Check what works on this machine, and what to do about the rest
    Doctor(inspect::DoctorArgs),
}

/// Options of every command that needs the configuration.
#[derive(Args, Clone, Debug)]
struct ConfigArgs {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE", env = "PROFILERD_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct DaemonArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// OAP address, any number of times; the first that can be reached is used
    #[arg(long = "backend", value_name = "HOST:PORT")]
    backends: Vec<String>,
}

#[derive(Args, Debug)]
struct StandaloneArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address of the built-in OAP
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:11800")]
    listen: SocketAddr,
}

/// Parses the command line, runs the command, and tells how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("profilerd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let level = cli.log_level.as_deref();
    match &cli.command {
        Command::Daemon(args) => {
            let mut config = load(args.config.config.as_deref(), level.unwrap_or("info"))?;
            if !args.backends.is_empty() {
                config.oap.backends.clone_from(&args.backends);
            }
            inspect::require_privileges()?;
            app::run_daemon(config)?;
        }
        Command::Standalone(args) => {
            let config = load(args.config.config.as_deref(), level.unwrap_or("info"))?;
            inspect::require_privileges()?;
            app::run_standalone(config, args.listen)?;
        }
        Command::Record(args) => return record::run(args, level.unwrap_or("warn")),
        Command::Task(args) => {
            log(level.unwrap_or("warn"));
            return task::run(args);
        }
        Command::Analyze(args) => {
            log(level.unwrap_or("warn"));
            return analyze::run(args);
        }
        Command::Ps(args) => return inspect::ps(args, level.unwrap_or("warn")),
        Command::Doctor(args) => {
            log(level.unwrap_or("warn"));
            return inspect::doctor(args);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the configuration and starts the log.
fn load(file: Option<&Path>, level: &str) -> Result<Config> {
    let (config, warnings) = Config::load(file, std::env::vars())?;
    log(level);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn log(level: &str) {
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .try_init();
    if started.is_err() {
        tracing::debug!("the log was started before");
    }
}

/// Ends the process with a usage error (exit code 2), in clap's own form.
fn usage(text: impl std::fmt::Display) -> ! {
    use clap::CommandFactory as _;
    Cli::command()
        .error(clap::error::ErrorKind::ValueValidation, text)
        .exit()
}
