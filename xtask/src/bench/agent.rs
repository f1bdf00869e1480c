//! SkyWalking's Python agent with a profile task of its own, and an OAP that only receives its reports.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use profiler_test_support::{SampleService, python_agent_command, wait_until};

use super::read_until;
use super::side::{Tools, task};
use crate::daemon::Daemon;
use crate::report::Report;

/// From the creation of a task until an agent that starts afterwards has got it.
const TAKEN_DEADLINE: Duration = Duration::from_secs(30);
/// An agent begins to profile some time after it has got its task.
const ARMS: Duration = Duration::from_millis(1000);
/// Segments and snapshots come some time after the answer.
const REPORTED_DEADLINE: Duration = Duration::from_secs(5);

/// Starts processes under the agent.
pub(super) struct AgentStage {
    oap: Daemon,
    /// Given to agents so far.
    tasks: Cell<u32>,
}

/// A process under the agent.
pub(super) struct WithTask {
    pub(super) service: SampleService,
    task_id: String,
}

impl AgentStage {
    pub(super) fn start(tools: &Tools) -> Result<Self> {
        // Processes of agents are another service here than the one they report, so that their tasks are
        // theirs alone.
        let config = tools.folder.join("agents-alone.yaml");
        fs::write(
            &config,
            "services: [{match: {command: '(sample|exact)_service'}, service: not-an-agent}]\n",
        )?;
        let config = config.to_str().context("a path that is no text")?;
        let log = tools.folder.join("profilerd-oap.log");
        Ok(Self {
            oap: Daemon::start_with(&tools.binary, &log, &["--config", config])?,
            tasks: Cell::new(0),
        })
    }

    fn command(&self, service: &str) -> Result<Command> {
        let mut agent = python_agent_command(self.oap.address(), &format!("{service}-1"));
        agent.env("SW_AGENT_AUTHENTICATION", self.oap.token()?);
        Ok(agent)
    }

    /// A process without a task.
    pub(super) fn without_task(&self, service: &str) -> Result<SampleService> {
        let agent = self.command(service)?;
        SampleService::start_by(agent, service, None)
    }

    /// A new process, which takes a task at its start. A service runs one task at a time.
    pub(super) fn with_task(
        &self,
        script: &str,
        target: &str,
        truth: Option<&Path>,
    ) -> Result<WithTask> {
        self.tasks.update(|count| count + 1);
        let name = format!("bench-agent-task-{}", self.tasks.get());
        let task_id = self.oap.create_task(task(&name, target))?;
        let agent = self.command(&name)?;
        let service = SampleService::start_script(agent, script, &name, truth)?;
        wait_until("the agent to take its task", TAKEN_DEADLINE, || {
            Ok(self.oap.is_notified(&task_id)?.then_some(()))
        })?;
        sleep(ARMS);
        Ok(WithTask { service, task_id })
    }

    /// What the agent has reported, once it is of so many requests or time is up: what is missing then is missed.
    pub(super) fn report(&self, of: &WithTask, requests: usize) -> Result<Report> {
        read_until(
            REPORTED_DEADLINE,
            || Report::from_json(&self.oap.result(&of.task_id)?),
            |report| report.segments.len() >= requests,
        )
    }
}
