//! `profilerd task create|list|show|result|cancel`: profile tasks of an OAP, built-in or SkyWalking's.
//!
//! In:  arguments; a built-in OAP by gRPC (`--oap`) or a SkyWalking OAP by GraphQL (`--graphql`)
//! Out: what was asked for on standard output; progress and explanations on standard error
//!
//! Values out of range are refused by the parser (exit code 2), with what is accepted. All else
//! that fails is exit code 1, and a result without any profiled request 3.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use profiler_proto::profilerd as pb;

use super::complete::{self, OAP_DEFAULT};
use super::delivery::OutputArgs;
use super::task_text::{self as text, Start};
use super::token::TokenArgs;
use super::{ConfigArgs, LogArgs};
use crate::config::Config;
use crate::embedded::{TaskClient, wire};
use crate::model::clock::unix_ms_now;
use crate::model::{Counter, ProfileReport};
use crate::oap::graphql::GraphqlClient;
use crate::output::{clean, reduce};
use crate::request::unasked_endpoint;

/// Time between two queries for a task that is waited for.
const WAIT_INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait for an instance to take a task before saying that none has.
const UNTAKEN_HINT_MS: i64 = 10_000;

/// Profile tasks: create, list, show, get the result, cancel.
#[derive(Args, Clone, Debug)]
pub struct TaskArgs {
    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    target: TargetArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone, Debug)]
struct TargetArgs {
    /// Address of the built-in OAP of a `profilerd standalone`
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value = OAP_DEFAULT,
        value_parser = text::address
    )]
    oap: String,

    /// GraphQL address of an OAP, SkyWalking's or built-in, instead of --oap; usually http://HOST:12800/graphql
    #[arg(long, global = true, value_name = "URL", conflicts_with = "oap")]
    graphql: Option<String>,

    #[command(flatten)]
    token: TokenArgs,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Create a task, which profiles one endpoint of a service
    Create(CreateArgs),
    /// List the tasks, newest first
    List(ListArgs),
    /// Show a task: its state, the instances that run it, what was seen and lost
    Show(ShowArgs),
    /// Print the profiled requests of a task
    Result(ResultArgs),
    /// End a task early; what it has profiled stays, and the service can have another one
    Cancel(CancelArgs),
}

#[derive(Args, Clone, Debug)]
struct CreateArgs {
    /// Service to profile, as `profilerd ps` names it
    #[arg(long, value_parser = text::name, add = complete::services())]
    service: String,

    /// Endpoint to profile, for example POST:/orders/{id}
    #[arg(long, value_parser = text::endpoint, add = complete::endpoints())]
    endpoint: String,

    /// How long to look for requests: whole minutes, 1m to 15m
    #[arg(long, default_value = "5m", value_parser = text::duration_minutes)]
    duration: i32,

    /// Time between two snapshots: whole milliseconds, 10ms to 15m
    #[arg(long, default_value = "10ms", value_parser = text::dump_period_ms)]
    period: i32,

    /// Keep only requests that last longer
    #[arg(long, default_value = "0ms", value_parser = text::min_duration_ms)]
    min_duration: i32,

    /// Most requests profiled per service instance, 1 to 9
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(i32).range(1..=9))]
    max_requests: i32,

    /// When to start: now, +DURATION, or epoch milliseconds
    #[arg(long, default_value = "now", value_parser = text::start)]
    start: Start,

    /// Wait until the task is over, then print its result
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    /// Only tasks of this service
    #[arg(long, default_value = "", add = complete::services())]
    service: String,

    /// Only tasks for this endpoint
    #[arg(long, default_value = "", add = complete::endpoints())]
    endpoint: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
struct ShowArgs {
    /// Task id or the beginning of one; the newest task if left out
    #[arg(default_value = "")]
    task: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
struct ResultArgs {
    /// Task id or the beginning of one; the newest task if left out
    #[arg(default_value = "")]
    task: String,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
struct CancelArgs {
    /// Task id or the beginning of one
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    task: String,
}

/// Runs the command on a runtime of its own.
///
/// # Errors
///
/// If the OAP cannot be reached, refuses, or the result cannot be written.
pub(super) fn run(args: &TaskArgs, log: &LogArgs) -> Result<ExitCode> {
    if let Some(refusal) = args.target.token.refusal() {
        super::say(refusal);
        return Ok(ExitCode::from(super::EXIT_USAGE));
    }
    let config = super::load(&args.config, log, "warn")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let mut out = BufWriter::new(io::stdout().lock());
    let code = runtime.block_on(execute(args, &config, &mut out))?;
    out.flush().context("failed to write to standard output")?;
    Ok(ExitCode::from(code))
}

/// Either kind of OAP.
enum Oap {
    Embedded(TaskClient),
    Graphql(GraphqlClient),
}

impl Oap {
    async fn connect(target: &TargetArgs, config: &Config) -> Result<Self> {
        Ok(match &target.graphql {
            Some(url) => {
                let client = GraphqlClient::new(url)?;
                let credential = target.token.find(config, client.host())?;
                let client = client.with_token(credential.token.as_deref())?;
                let client = client.with_local_users(&credential.local_users);
                Self::Graphql(client.with_remedy(credential.remedy))
            }
            None => {
                let (host, _) = target.oap.rsplit_once(':').unwrap_or_default();
                let credential = target.token.find(config, host)?;
                let (token, users) = (credential.token.as_deref(), &credential.local_users);
                let client = TaskClient::connect_to(&target.oap, token, users).await?;
                Self::Embedded(client.with_remedy(credential.remedy))
            }
        })
    }

    async fn create(&mut self, request: pb::CreateTaskRequest) -> Result<pb::Task> {
        match self {
            Self::Embedded(client) => client.create(request).await,
            Self::Graphql(client) => client.create(request).await,
        }
    }

    async fn list(&mut self, service: &str, endpoint: &str) -> Result<Vec<pb::Task>> {
        match self {
            Self::Embedded(client) => client.list(service, endpoint).await,
            Self::Graphql(client) => client.list(service, endpoint).await,
        }
    }

    async fn show(&mut self, task_id: &str) -> Result<pb::TaskDetail> {
        match self {
            Self::Embedded(client) => client.show(task_id).await,
            Self::Graphql(client) => client.show(task_id).await,
        }
    }

    async fn result(&mut self, task_id: &str) -> Result<ProfileReport> {
        match self {
            Self::Embedded(client) => client.result(task_id).await,
            Self::Graphql(client) => client.result(task_id).await,
        }
    }

    async fn cancel(&mut self, task_id: &str) -> Result<pb::Task> {
        match self {
            Self::Embedded(client) => client.cancel(task_id).await,
            Self::Graphql(_) => bail!(
                "GraphQL has no way to cancel a task: a SkyWalking OAP ends it after its duration; the OAP of \
                 `profilerd standalone` takes this command at its gRPC port, --oap HOST:11800"
            ),
        }
    }

    /// Names of services that have reported, or `None` if this OAP is not asked for them.
    async fn services(&mut self) -> Option<Vec<String>> {
        let Self::Embedded(client) = self else {
            return None;
        };
        let instances = client.instances().await.ok()?;
        let mut names: Vec<String> = instances.into_iter().map(|i| i.service).collect();
        names.dedup();
        Some(names)
    }
}

impl Oap {
    /// Names of a service's endpoints, as far as they are known.
    async fn endpoints(&mut self, service: &str) -> Vec<String> {
        let known = match self {
            Self::Embedded(client) => client.endpoints(service).await,
            Self::Graphql(client) => client.endpoints(service).await,
        };
        // An OAP that cannot tell is no reason to stop.
        known.unwrap_or_default()
    }
}

async fn execute(args: &TaskArgs, config: &Config, out: &mut dyn Write) -> Result<u8> {
    let target = &args.target;
    let mut oap = Oap::connect(target, config).await?;
    match &args.command {
        Command::Create(args) => create(&mut oap, target, args, out).await,
        Command::List(args) => {
            let tasks = oap.list(&args.service, &args.endpoint).await?;
            let text = match args.json {
                true => text::tasks_json(&tasks)?,
                false => text::tasks_table(&tasks, unix_ms_now()),
            };
            out.write_all(text.as_bytes())?;
            Ok(0)
        }
        Command::Show(args) => {
            let detail = oap.show(&args.task).await?;
            let text = match args.json {
                true => text::detail_json(&detail)?,
                false => text::detail_text(&detail, unix_ms_now()),
            };
            out.write_all(text.as_bytes())?;
            Ok(0)
        }
        Command::Result(args) => {
            let report = oap.result(&args.task).await?;
            deliver(report, target, &args.output, out)
        }
        Command::Cancel(args) => {
            let task = oap.cancel(&args.task).await?;
            writeln!(out, "task {} is cancelled", clean(&task.task_id))?;
            Ok(0)
        }
    }
}

/// Writes the result of a task.
fn deliver(
    mut report: ProfileReport,
    target: &TargetArgs,
    output: &OutputArgs,
    out: &mut dyn Write,
) -> Result<u8> {
    if let Some(frames) = output.frames {
        reduce(&mut report, frames);
    }
    let mut again = ["profilerd", "task", "result", &report.task.task_id]
        .map(str::to_owned)
        .to_vec();
    match &target.graphql {
        Some(url) => again.extend(["--graphql".to_owned(), url.clone()]),
        None if target.oap != OAP_DEFAULT => again.extend(["--oap".to_owned(), target.oap.clone()]),
        None => {}
    }
    again.extend(target.token.again());
    output.deliver(&report, &again, out)
}

async fn create(
    oap: &mut Oap,
    target: &TargetArgs,
    args: &CreateArgs,
    out: &mut dyn Write,
) -> Result<u8> {
    let request = pb::CreateTaskRequest {
        service: args.service.clone(),
        endpoint: args.endpoint.clone(),
        start_ms: args.start.unix_ms(unix_ms_now()),
        duration_minutes: args.duration,
        min_duration_threshold_ms: args.min_duration,
        dump_period_ms: args.period,
        max_sampling_count: args.max_requests,
    };
    let services = oap.services().await;
    // Before the task, whose endpoint is known as well from then on.
    let endpoints = oap.endpoints(&args.service).await;
    let task = oap.create(request).await?;
    if let Some(hint) = services.and_then(|known| text::unknown_service(&args.service, &known)) {
        eprintln!("{}", clean(&hint));
    }
    if let Some(hint) = unasked_endpoint(&args.endpoint, &endpoints) {
        eprintln!("{}", clean(&hint));
    }
    if !args.wait {
        writeln!(out, "{}", clean(&task.task_id))?;
        return Ok(0);
    }
    eprintln!("task {}", clean(&task.task_id));
    wait(oap, &task).await?;
    let report = oap.result(&task.task_id).await?;
    deliver(report, target, &args.output, out)
}

/// Waits until the task is over, with a live line on a terminal.
async fn wait(oap: &mut Oap, task: &pb::Task) -> Result<()> {
    let line = ProgressBar::new_spinner(); // draws to standard error, and only on a terminal
    let mut is_hint_due = true;
    loop {
        let detail = oap.show(&task.task_id).await?;
        let Some(current) = &detail.task else {
            bail!("the OAP does not have the task any more");
        };
        match current.state() {
            pb::TaskState::Finished | pb::TaskState::Expired | pb::TaskState::Cancelled => {
                line.finish_and_clear();
                return Ok(());
            }
            pb::TaskState::Waiting => {
                let late_ms = unix_ms_now().saturating_sub(current.start_ms);
                if is_hint_due && late_ms > UNTAKEN_HINT_MS {
                    is_hint_due = false;
                    line.suspend(|| {
                        eprintln!(
                            "no instance of service {} has asked for the task yet; is it running, \
                             and does `profilerd ps` show it under this name?",
                            clean(&current.service)
                        );
                    });
                }
            }
            _ => {}
        }
        line.set_message(text::progress(&detail, unix_ms_now()));
        line.tick();
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

/// Requests matched so far, if the OAP keeps coverage.
pub(super) fn requests_matched(detail: &pb::TaskDetail) -> Option<u64> {
    let coverage = detail.coverage.as_ref()?;
    Some(wire::coverage_from_wire(coverage).get(Counter::RequestsMatched))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::delivery::EXIT_NO_REQUEST;
    use super::*;
    use crate::embedded::EmbeddedOap;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TaskArgs,
    }

    fn parse(args: &[&str]) -> Result<TaskArgs, clap::Error> {
        let args = ["task"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| cli.args)
    }

    async fn run_on(oap: &EmbeddedOap, args: &[&str]) -> (Result<u8>, String) {
        let address = oap.local_addr().to_string();
        let args: Vec<&str> = args.iter().copied().chain(["--oap", &address]).collect();
        let mut out = Vec::new();
        let code = execute(&parse(&args).unwrap(), &Config::default(), &mut out).await;
        (code, String::from_utf8(out).unwrap())
    }

    /// Check that values out of range are usage errors that name what is accepted.
    #[test]
    fn values_out_of_range_are_usage_errors() {
        let cases = [
            (["--duration", "30s"], "1m to 15m"),
            (["--duration", "16m"], "1m to 15m"),
            (["--duration", "soon"], "1m to 15m"),
            (["--period", "9ms"], "10ms to 15m"),
            (["--period", "0"], "10ms to 15m"),
            (["--min-duration", "-1ms"], "0ms to"),
            (["--max-requests", "0"], "1..=9"),
            (["--max-requests", "10"], "1..=9"),
            (["--start", "tomorrow"], "+DURATION"),
            (["--endpoint", " "], "endpoint"),
            (["--oap", "nowhere"], "HOST:PORT"),
        ];
        for ([option, value], expected) in cases {
            let argument = format!("{option}={value}");
            let mut args = vec!["create", "--service", "s", "--endpoint", "/", &argument];
            if option == "--endpoint" {
                args.drain(3..5);
            }
            let error = parse(&args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{argument}");
            assert!(error.to_string().contains(expected), "{argument}: {error}");
        }
        assert!(parse(&["create", "--service", "s"]).is_err());
        assert!(parse(&["create", "--service", "s", "--endpoint", "/"]).is_ok());
    }

    /// Check create, list, show and result against a built-in OAP.
    #[tokio::test]
    async fn a_task_can_be_created_listed_and_shown() {
        let oap = EmbeddedOap::start("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let (code, id) = run_on(
            &oap,
            &["create", "--service", "shop", "--endpoint", "POST:/"],
        )
        .await;
        assert_eq!(code.unwrap(), 0);
        let id = id.trim();
        assert_eq!(
            oap.store().find_task("", unix_ms_now()).unwrap().task.id,
            id
        );

        let (code, list) = run_on(&oap, &["list"]).await;
        assert_eq!(code.unwrap(), 0);
        assert!(list.contains(id) && list.contains("POST:/"), "{list}");
        let (_, show) = run_on(&oap, &["show", &id[..12]]).await;
        assert!(show.contains("waiting"), "{show}");
        let (_, json) = run_on(&oap, &["show", "--json"]).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["task"]["task_id"], id);
        assert_eq!(json["coverage"]["requests_seen"], 0);

        let (code, result) = run_on(&oap, &["result", "--format", "json"]).await;
        assert_eq!(code.unwrap(), EXIT_NO_REQUEST);
        let report: ProfileReport = serde_json::from_str(&result).unwrap();
        assert_eq!(report.task.task_id, id);

        let (code, _) = run_on(
            &oap,
            &["create", "--service", "shop", "--endpoint", "/other"],
        )
        .await;
        let error = code.unwrap_err().to_string();
        assert!(error.contains("already has monitor task"), "{error}");
        let (code, _) = run_on(&oap, &["result", "nonsense"]).await;
        assert_eq!(code.unwrap_err().to_string(), "no task has the id nonsense");
    }

    /// Check that an OAP that is not there is named, with what to do.
    #[tokio::test]
    async fn an_absent_oap_is_named() {
        let oap = EmbeddedOap::start("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = oap.local_addr().to_string();
        oap.shutdown().await;
        let args = parse(&["list", "--oap", &address]).unwrap();
        let error = execute(&args, &Config::default(), &mut Vec::new())
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(&address) && text.contains("profilerd standalone"));
        let url = format!("http://{address}/graphql");
        let args = parse(&["list", "--graphql", &url]).unwrap();
        let error = execute(&args, &Config::default(), &mut Vec::new())
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains(&url));
    }
}
