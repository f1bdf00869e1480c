//! The command line: the only module that knows clap.
//!
//! In:  arguments, variables, the configuration's file
//! Out: exit codes: 0 done, 1 failed, 2 bad usage (values out of range are refused by the parser),
//!      3 no request was profiled, or seen; docs/operations.md has them by command
//!
//! Results go to standard output and nothing else does; logs, progress and reasons go to standard
//! error.

pub mod analyze;
mod columns;
mod complete;
mod completions;
mod config;
mod delivery;
mod doctor;
mod endpoints;
mod format;
mod man;
mod ps;
mod record;
mod shell;
mod status;
mod status_text;
pub mod task;
mod task_text;
mod token;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::CompleteEnv;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::app::{self, EarlyReload};
use crate::config::{
    Config, ConfigSource, LogFormat, Options, TokenFile, parse_listen, parse_metrics,
};
use crate::limit;
use crate::model::plain::{clean, clean_lines, escape_json, is_plain};

/// Profiles single endpoints of unmodified services from outside, with eBPF, for Apache SkyWalking.
#[derive(Debug, Parser)]
#[command(
    name = "profilerd",
    version = VERSION,
    propagate_version = true,
    after_help = "\
Where to begin:
  profilerd doctor                                     what works on this machine
  profilerd ps                                         what there is to profile
  profilerd endpoints                                  what services are asked for, and how long it takes
  profilerd record --endpoint GET:/path --pid 4711     where the time of these requests goes

Completions, also of services and endpoints; for bash, zsh and fish:
  source <(profilerd completions bash)"
)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run tasks of a SkyWalking OAP
    Daemon(DaemonArgs),
    /// Run with a built-in OAP; tasks are created by `profilerd task`
    Standalone(StandaloneArgs),
    /// Profile one endpoint now and write the result
    Record(record::RecordArgs),
    /// Create, list and show profile tasks, get their results
    Task(task::TaskArgs),
    /// Turn thread snapshots into call trees, as OAP does
    Analyze(analyze::AnalyzeArgs),
    /// List processes, the services they belong to, and what can be profiled
    Ps(ps::PsArgs),
    /// Count and measure the requests of services by endpoint
    Endpoints(endpoints::EndpointsArgs),
    /// Show how the daemon on this host is doing: what it does, uses and loses
    Status(status::StatusArgs),
    /// Check what works on this machine, and what to do about the rest
    Doctor(doctor::DoctorArgs),
    /// Check a configuration file, or show the values in use
    Config(config::ConfigCommand),
    /// Print the completions for a shell
    Completions(completions::CompletionsArgs),
    /// Write the man pages
    Man(man::ManArgs),
}

/// What the log is like, for every command.
#[derive(Args, Clone, Debug)]
struct LogArgs {
    /// Messages logged to standard error: error, warn, info, debug, trace, or a filter such as
    /// `profiler_daemon::oap=debug`
    #[arg(long, global = true, value_name = "FILTER", value_parser = filter)]
    log_level: Option<String>,
    /// How they are written, instead of the configured way: `text` for people, `json` for programs
    #[arg(long, global = true, value_name = "FORMAT", value_parser = log_format())]
    log_format: Option<LogFormat>,
}

impl LogArgs {
    /// For commands that read no configuration.
    fn start_without_config(&self) {
        let format = self.log_format.unwrap_or_default();
        crate::log::start(self.log_level.as_deref(), None, "warn", format);
    }
}

fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    let names = LogFormat::NAMED.map(|(name, _)| name);
    PossibleValuesParser::new(names).map(|name| {
        let named = LogFormat::NAMED.into_iter().find(|(it, _)| *it == name);
        named.map(|(_, format)| format).unwrap_or_default()
    })
}

/// Option of the commands that run until they are stopped.
#[derive(Args, Clone, Debug)]
struct MetricsArgs {
    /// Address where the daemon's own figures are served, for Prometheus and `profilerd status`, instead of
    /// the configured one; `off` for none
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = metrics)]
    metrics: Option<Listen>,
}

fn metrics(text: &str) -> Result<Listen, String> {
    parse_metrics(text).map(Listen)
}

/// Options of every command that needs the configuration.
#[derive(Args, Clone, Debug)]
struct ConfigArgs {
    /// Configuration file (YAML); docs/configuration.md lists every key
    #[arg(long, value_name = "FILE", env = "PROFILERD_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn source(&self, log: &LogArgs) -> ConfigSource {
        let mut source = ConfigSource::of_process(self.config.clone());
        source.options.log_format = log.log_format;
        source
    }
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  profilerd daemon --config /etc/profilerd.yaml
  SW_AGENT_COLLECTOR_BACKEND_SERVICES=oap:11800 profilerd daemon
  profilerd daemon --backend oap:11800 --metrics 127.0.0.1:9464

It needs the address of an OAP; `profilerd standalone` has one of its own. Stops on SIGINT and SIGTERM, after it has delivered its results; reads the configuration
again on SIGHUP (docs/operations.md).")]
struct DaemonArgs {
    #[command(flatten)]
    options: DaemonOptions,
}

/// Options of `daemon`, which `config show` has as well.
#[derive(Args, Clone, Debug)]
struct DaemonOptions {
    #[command(flatten)]
    config: ConfigArgs,
    /// OAP address instead of the configured ones, any number of times; the first that can be
    /// reached is used. On this host it must belong to root or a user of oap.local_users
    #[arg(long = "backend", value_name = "HOST:PORT")]
    backends: Vec<String>,
    /// Directory where tasks and unsent results are kept for a restart, instead of the configured one;
    /// `none` keeps nothing
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsArgs,
}

impl DaemonOptions {
    fn source(&self, log: &LogArgs) -> ConfigSource {
        let source = self.config.source(log);
        let options = Options {
            backends: self.backends.clone(),
            state_dir: self.state_dir.clone(),
            metrics: self.metrics.metrics.map(|Listen(address)| address),
            ..source.options
        };
        ConfigSource { options, ..source }
    }
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  profilerd standalone &
  profilerd task create --service shop --endpoint GET:/orders/{id} --duration 5m --wait

Callers must send the token in /var/lib/profilerd/token, which is made at the first start. `profilerd task`,
run as root, finds it there; give it to agents as SW_AGENT_AUTHENTICATION.")]
struct StandaloneArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address of the built-in OAP; only this host can reach the default
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:11800",
        env = "PROFILERD_LISTEN"
    )]
    listen: SocketAddr,
    /// Where tasks and results are kept, instead of the configured directory; `:memory:` keeps them
    /// until the end of the process
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address where the built-in OAP answers GraphQL, for UIs and swctl; `off` for none
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:12800",
        env = "PROFILERD_HTTP_LISTEN",
        value_parser = http_listen
    )]
    http_listen: Listen,
    /// File of the token that callers must send, instead of the configured one; created if it is missing
    #[arg(long, value_name = "FILE", conflicts_with = "no_token")]
    token_file: Option<PathBuf>,
    /// Ask for no token: everybody who reaches the ports, including every user of this host, can profile all
    /// services and read the results
    #[arg(long)]
    no_token: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
}

impl StandaloneArgs {
    fn source(&self, log: &LogArgs) -> ConfigSource {
        let source = self.config.source(log);
        let token_file = self.token_file.clone().map(TokenFile::At);
        let options = Options {
            data_dir: self.data_dir.clone(),
            token_file: token_file.or(self.no_token.then_some(TokenFile::Off)),
            metrics: self.metrics.metrics.map(|Listen(address)| address),
            ..source.options
        };
        ConfigSource { options, ..source }
    }
}

/// Where to listen, if at all.
#[derive(Clone, Copy, Debug)]
struct Listen(Option<SocketAddr>);

fn http_listen(text: &str) -> Result<Listen, String> {
    parse_listen(text, "127.0.0.1:12800").map(Listen)
}

/// Version, with the revision it was built from if that is known.
const VERSION: &str = env!("PROFILERD_VERSION");

/// Exit code of bad usage, as clap has it.
const EXIT_USAGE: u8 = 2;

/// Whether an argument can be shown, logged and sent as it is.
fn is_accepted(argument: &OsString) -> bool {
    is_plain(&argument.to_string_lossy())
}

/// Says something on standard error. It may quote what others have chosen.
fn say(text: &str) {
    eprintln!("profilerd: {}", clean_lines(text));
}

/// A value as JSON for people and programs.
fn pretty_json(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string_pretty(value)?;
    Ok(escape_json(&json).into_owned() + "\n")
}

/// Parses the command line, runs the command, and yields the exit code.
#[must_use]
pub fn main() -> ExitCode {
    // Answers a shell that asks for completions, and ends the program then.
    CompleteEnv::with_factory(Cli::command).complete();
    if let Some(argument) = std::env::args_os().find(|argument| !is_accepted(argument)) {
        let shown = argument.to_string_lossy();
        say(&format!(
            "the argument {} has a control character, which no argument may have",
            clean(&shown)
        ));
        return ExitCode::from(EXIT_USAGE);
    }
    match run(&Cli::parse()) {
        Ok(code) => code,
        // `profilerd ps | head`: the reader has closed the pipe.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("{error:#}");
            if let Some(remedy) = limit::remedy(error.as_ref()).filter(|it| !text.contains(it)) {
                text = format!("{text}: {remedy}");
            }
            if crate::log::is_json() {
                tracing::error!("{text}");
            } else {
                say(&text);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let log = &cli.log;
    match &cli.command {
        Command::Daemon(args) => {
            let early_reload = EarlyReload::watch()?;
            let source = args.options.source(log);
            let config = open(&source, log, "info")?;
            config.oap_config().check()?;
            app::run_daemon(config, source, early_reload)?;
        }
        Command::Standalone(args) => {
            let early_reload = EarlyReload::watch()?;
            let source = args.source(log);
            let config = open(&source, log, "info")?;
            let (listen, http_listen) = (args.listen, args.http_listen.0);
            app::run_standalone(config, source, early_reload, listen, http_listen)?;
        }
        Command::Record(args) => return record::run(args, log),
        Command::Task(args) => return task::run(args, log),
        Command::Analyze(args) => {
            log.start_without_config();
            return analyze::run(args);
        }
        Command::Ps(args) => return ps::run(args, log),
        Command::Endpoints(args) => return endpoints::run(args, log),
        Command::Status(args) => return status::run(args, log),
        Command::Doctor(args) => {
            log.start_without_config();
            return doctor::run(args);
        }
        Command::Config(args) => return config::run(args, log),
        Command::Completions(args) => return completions::run(args),
        Command::Man(args) => return man::run(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the configuration and starts the log: by option, else by configuration, else as usual for the
/// command.
fn load(args: &ConfigArgs, log: &LogArgs, usual: &'static str) -> Result<Config> {
    open(&args.source(log), log, usual)
}

fn open(source: &ConfigSource, log: &LogArgs, usual: &'static str) -> Result<Config> {
    let loaded = source.load()?;
    let settings = &loaded.config.log;
    crate::log::start(
        log.log_level.as_deref(),
        settings.level,
        usual,
        settings.format,
    );
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded.config)
}

fn filter(text: &str) -> Result<String, String> {
    const LEVELS: &str = "accepted are error, warn, info, debug, trace, and filters such as \
                          `warn,profiler_daemon::oap=debug`";
    // A single word that is no level would be taken for the name of a module, and show nothing.
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    if is_word && !levels.contains(&text.to_ascii_lowercase().as_str()) {
        return Err(LEVELS.to_owned());
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; {LEVELS}")),
    }
}

/// Writes a result to standard output.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context("failed to write to standard output")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>();
        let kind = io.or_else(|| json.and_then(serde_json::Error::io_error_kind));
        kind == Some(io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check clap's own rules for all commands.
    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    /// Check that a filter is taken and a misspelt level is not.
    #[test]
    fn levels_are_checked() {
        assert!(filter("debug").is_ok());
        assert!(filter("warn,profiler_daemon::oap=debug").is_ok());
        assert!(
            filter("verbose")
                .unwrap_err()
                .contains("accepted are error")
        );
        assert!(filter("a=b=c").is_err());
    }

    /// Check that a closed pipe is told from other failures, below any context.
    #[test]
    fn a_closed_pipe_is_no_failure() {
        let io = |kind| anyhow::Error::from(io::Error::from(kind)).context("failed to write");
        assert!(is_broken_pipe(&io(io::ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&io(io::ErrorKind::NotFound)));
    }
}
