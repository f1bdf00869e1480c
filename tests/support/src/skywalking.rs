//! The real ones: a SkyWalking OAP and SkyWalking's Python agent, as `cargo xtask setup --oap` fetched them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{ChildGuard, HttpClient, free_port, target_dir, wait_until, workspace_root};

/// A start takes 5 to 8 s on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(120);
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
const MAIN_CLASS: &str = "org.apache.skywalking.oap.server.starter.OAPServerStartUp";

/// Where the OAP's jars are, in `lib`.
#[must_use]
pub fn oap_folder() -> PathBuf {
    target_dir().join("oap")
}

/// A virtual environment of Python with `bin/sw-python`.
#[must_use]
pub fn python_agent_folder() -> PathBuf {
    target_dir().join("python-agent")
}

/// Runs a Python script under SkyWalking's agent, as users do; the script's path is yet to be added.
/// The agent reports to `oap` as `instance`, with its defaults except for what it reports beside traces.
#[must_use]
pub fn python_agent_command(oap: SocketAddr, instance: &str) -> Command {
    let mut command = plain_python_agent_command(oap, instance);
    command
        .env("SW_AGENT_METER_REPORTER_ACTIVE", "false")
        .env("SW_AGENT_PVM_METER_REPORTER_ACTIVE", "false")
        .env("SW_AGENT_LOG_REPORTER_ACTIVE", "false")
        // It warns of each library that it knows and that is not there.
        .env("SW_AGENT_LOGGING_LEVEL", "ERROR");
    command
}

/// As [`python_agent_command`], with all defaults of the agent.
#[must_use]
pub fn plain_python_agent_command(oap: SocketAddr, instance: &str) -> Command {
    let programs = python_agent_folder().join("bin");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(programs.join("sw-python"));
    command
        .args(["run", "python"])
        // It starts the first Python of this path.
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("SW_AGENT_COLLECTOR_BACKEND_SERVICES", oap.to_string())
        .env("SW_AGENT_INSTANCE_NAME", instance);
    command
}

/// A running SkyWalking OAP on loopback, with `tests/oap/conf`; ends when dropped.
#[derive(Debug)]
pub struct SkywalkingOap {
    child: ChildGuard,
    variables: Vec<(String, String)>,
    log: PathBuf,
    grpc: SocketAddr,
    query: SocketAddr,
}

impl SkywalkingOap {
    /// Starts one that forgets everything when it ends; `folder` gets its log. Returns when it answers.
    ///
    /// # Errors
    /// It is not installed, or ends before it answers.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_with(folder, &[])
    }

    /// As [`Self::start`], with more variables of `tests/oap/conf/application.yml`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        let on_loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (grpc, query) = (on_loopback(free_port()?), on_loopback(free_port()?));
        let mut variables: Vec<(String, String)> = variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        variables.push(("SW_CORE_GRPC_PORT".to_owned(), grpc.port().to_string()));
        variables.push(("SW_CORE_REST_PORT".to_owned(), query.port().to_string()));
        let log = folder.join("oap.log");
        let mut oap = Self {
            child: spawn(&log, &variables)?,
            variables,
            log,
            grpc,
            query,
        };
        oap.wait_until_it_answers()?;
        Ok(oap)
    }

    /// Stops it as a service manager would.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.child.signal(libc::SIGTERM);
        self.child.wait(ANSWER_DEADLINE)?;
        Ok(())
    }

    /// Makes it take nothing more from its connections, which stay open.
    pub fn freeze(&self) {
        self.child.signal(libc::SIGSTOP);
    }

    /// Kills it, with all that it has not stored.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.signal(libc::SIGKILL);
        self.child.wait(ANSWER_DEADLINE)?;
        Ok(())
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], where it was.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.log, &self.variables)?;
        self.wait_until_it_answers()
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        wait_until("an answer of the SkyWalking OAP", START_DEADLINE, || {
            self.child
                .still_running()
                .with_context(|| self.log().unwrap_or_default())?;
            Ok(self.graphql("query { version }", &Value::Null).ok())
        })?;
        Ok(())
    }

    /// Where agents report to.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The URL of its query side.
    #[must_use]
    pub fn graphql_url(&self) -> String {
        format!("http://{}/graphql", self.query)
    }

    /// Asks its query side; yields `data`.
    ///
    /// # Errors
    /// It does not answer, or with errors.
    pub fn graphql(&self, query: &str, variables: &Value) -> Result<Value> {
        let mut answer = self.answer(query, variables)?;
        if let Some(errors) = answer.get("errors") {
            bail!("the OAP answers {query} with {errors}");
        }
        Ok(answer["data"].take())
    }

    /// As [`Self::graphql`]; yields all of the answer, errors as well.
    ///
    /// # Errors
    /// It does not answer.
    pub fn answer(&self, query: &str, variables: &Value) -> Result<Value> {
        let body = json!({ "query": query, "variables": variables }).to_string();
        let json = [("Content-Type", "application/json")];
        let response = HttpClient::connect(self.query, ANSWER_DEADLINE)?
            .request_with("POST", "/graphql", &json, &body)?;
        serde_json::from_slice(&response.body)
            .with_context(|| format!("status {} without JSON", response.status))
    }

    /// Everything it has logged.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log)
            .with_context(|| format!("failed to read {}", self.log.display()))
    }
}

/// Starts the process; its log goes on where a former one ended.
fn spawn(log: &Path, variables: &[(String, String)]) -> Result<ChildGuard> {
    let jars = oap_folder().join("lib");
    if !jars.exists() {
        bail!(
            "{} is missing: run `cargo xtask setup --oap`",
            jars.display()
        );
    }
    let configuration = workspace_root().join("tests/oap/conf");
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("failed to open {}", log.display()))?;
    let mut command = Command::new("java");
    command
        .args(["-Xms256m", "-Xmx1g", "-cp"])
        .arg(format!("{}:{}/*", configuration.display(), jars.display()))
        .arg(MAIN_CLASS)
        .envs(variables.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    ChildGuard::spawn("the SkyWalking OAP", &mut command)
}
