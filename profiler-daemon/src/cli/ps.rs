//! `profilerd ps`: which processes there are, what they are called, and whether they can be profiled.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use nix::unistd::{Uid, User};
use serde::Serialize;
use terminal_size::{Width, terminal_size};

use super::columns::columns_within;
use super::{ConfigArgs, LogArgs};
use crate::app::table_now;
use crate::config::Config;
use crate::doctor::foreign_pid_namespace;
use crate::output::clean;
use crate::process::table::Process;
use crate::process::{Agent, Container, Denial, NamedFrames, ProcessTable, RequestModel, Runtime};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  profilerd ps                 servers and named processes
  profilerd ps --all --json    everything, for programs

USER is the effective user. Processes of several users are one service only in a unit, a container or below
one parent; a name of others' services is followed by the number of the user.
NAMED BY says what gave the service its name: a rule of the configuration, the SkyWalking agent in
it, a variable of the process, its Kubernetes workload, container, systemd unit, or its program.
AGENT is the SkyWalking agent in the process, and whether its own profiler is on.
PROFILABLE is yes, no, or native frames only; the reason stands below the table. With `kubernetes` on it may be
that the pod or the operator refuses (docs/configuration.md, \"Which processes\").
On a narrow terminal the widest columns are cut; in a pipe nothing is.")]
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
    /// Effective user: `null` if it is not known.
    uid: Option<u32>,
    /// Name of that user on this host.
    user: Option<String>,
    service: String,
    instance: String,
    /// Empty means `GENERAL`.
    layer: String,
    /// Rule or source that gave the service its name.
    rule: String,
    runtime: Option<String>,
    agent: Option<Agent>,
    container: Option<String>,
    container_id: Option<String>,
    pod: Option<String>,
    namespace: Option<String>,
    workload: Option<String>,
    unit: Option<String>,
    ports: Vec<u16>,
    /// As they are reported to an OAP; a key may come twice.
    properties: Vec<(String, String)>,
    tags: Vec<(String, String)>,
    profilable: bool,
    /// Why not.
    reason: Option<String>,
    /// Functions that have names in its stacks: `all` or `native`.
    frames: Option<&'static str>,
    /// Why only those.
    frames_reason: Option<&'static str>,
}

impl Row {
    /// `obstacle` is why nothing can be profiled here, if that is so.
    fn new(process: &Process, obstacle: Option<&str>) -> Self {
        let runtime = match &process.runtime {
            Some(runtime) => Ok(runtime.clone()),
            None => Runtime::detect(process.key.pid),
        };
        let named_frames = runtime.as_ref().ok().map(Runtime::named_frames);
        let (runtime, reason) = match runtime {
            Ok(runtime) => {
                let reason = match runtime.request_model() {
                    RequestModel::ThreadPerRequest => None,
                    RequestModel::Unsupported(why) => Some(why.to_owned()),
                };
                (Some(runtime.to_string()), reason)
            }
            Err(error) => (None, Some(format!("cannot be inspected: {error}"))),
        };
        let denial = process.denial.as_ref().map(Denial::to_string);
        let reason = denial.or_else(|| obstacle.map(str::to_owned)).or(reason);
        let (frames, frames_reason) = match named_frames {
            Some(NamedFrames::All) => (Some("all"), None),
            Some(NamedFrames::NativeOnly(why)) => (Some("native"), Some(why)),
            None => (None, None),
        };
        let identity = &process.identity;
        let property = |key: &str| {
            let mut properties = identity.properties.iter();
            properties
                .find(|(name, _)| name == key)
                .map(|(_, value)| clean(value).into_owned())
        };
        let container_id = match &process.cgroup.container {
            Some(Container::Id(id)) => Some(id.clone()),
            _ => None,
        };
        Self {
            pid: process.key.pid.0,
            uid: process.uid,
            user: process.uid.and_then(user_name),
            service: clean(&identity.service.name).into_owned(),
            instance: clean(&identity.service.instance).into_owned(),
            layer: identity.layer.clone(),
            rule: identity.rule.to_string(),
            runtime,
            agent: process.agent.clone(),
            container: property("container"),
            container_id,
            pod: property("pod"),
            namespace: property("namespace"),
            workload: property("workload"),
            unit: property("systemd unit"),
            ports: process.listen_ports.clone(),
            properties: identity.properties.to_vec(),
            tags: identity.tags.clone(),
            profilable: reason.is_none(),
            reason,
            frames,
            frames_reason,
        }
    }

    fn cells(&self) -> [String; 10] {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let within = self.pod.as_ref().or(self.container.as_ref());
        [
            self.pid.to_string(),
            self.user(),
            self.service.clone(),
            self.instance.clone(),
            self.rule.clone(),
            ports.join(","),
            self.runtime.clone().unwrap_or_else(|| "?".to_owned()),
            self.agent
                .as_ref()
                .map(Agent::to_string)
                .unwrap_or_default(),
            within.cloned().unwrap_or_default(),
            self.gets().to_owned(),
        ]
    }

    /// The cell of the column USER.
    fn user(&self) -> String {
        let number = || {
            self.uid
                .map_or_else(|| "?".to_owned(), |uid| uid.to_string())
        };
        self.user.clone().unwrap_or_else(number)
    }

    /// The cell of the column PROFILABLE.
    fn gets(&self) -> &'static str {
        match (self.profilable, self.frames_reason) {
            (false, _) => "no",
            (true, None) => "yes",
            (true, Some(_)) => "frames: native only",
        }
    }
}

pub(super) fn run(args: &PsArgs, log: &LogArgs) -> Result<ExitCode> {
    let config = super::load(&args.config, log, "warn")?;
    let mut table = table(&config)?;
    table
        .scan()
        .context("failed to list the processes in /proc")?;
    let shown = table.iter().filter(|p| args.all || p.is_server());
    let obstacle = foreign_pid_namespace();
    let rows: Vec<Row> = shown
        .map(|process| Row::new(process, obstacle.as_deref()))
        .collect();
    if !nix::unistd::geteuid().is_root() {
        super::say("not root: facts about processes of other users are incomplete");
    }
    for (name, full) in table.clashes() {
        let full: Vec<_> = full.into_iter().map(clean).collect();
        super::say(&format!(
            "an OAP keeps 70 characters of a name, so it shows these as one service, {}: {}",
            clean(name),
            full.join(", ")
        ));
    }
    for (process, name) in table.posing() {
        super::say(&format!(
            "process {} is known by the name of a service of other users, {}, and is a service of its own: {}",
            process.key,
            clean(name),
            clean(&process.identity.service.name)
        ));
    }
    if args.json {
        super::print(&super::pretty_json(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        super::say(&format!(
            "no process listens on a TCP port or was given a service name; --all lists {} processes",
            table.iter().count()
        ));
    }
    let head = [
        "PID",
        "USER",
        "SERVICE",
        "INSTANCE",
        "NAMED BY",
        "PORTS",
        "RUNTIME",
        "AGENT",
        "POD/CONTAINER",
        "PROFILABLE",
    ];
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    let screen = terminal_size().map(|(Width(columns), _)| usize::from(columns));
    super::print(&columns_within(head, &cells, screen))?;
    let reasons: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row.reason.as_deref())
        .collect();
    for reason in reasons {
        super::print(&format!("not profilable: {}\n", clean(reason)))?;
    }
    let profiled = rows.iter().filter(|row| row.profilable);
    let reasons: BTreeSet<&str> = profiled.filter_map(|row| row.frames_reason).collect();
    for reason in reasons {
        super::print(&format!("frames: native only: {reason}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn user_name(uid: u32) -> Option<String> {
    let user = User::from_uid(Uid::from_raw(uid)).ok()??;
    Some(clean(&user.name).into_owned())
}

/// The processes, with the pods of this node if they are wanted.
fn table(config: &Config) -> Result<ProcessTable> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the asynchronous runtime")?;
    let (table, problem) = runtime.block_on(table_now(config));
    if let Some(problem) = problem {
        super::say(&format!("{problem:#}"));
    }
    Ok(table)
}
