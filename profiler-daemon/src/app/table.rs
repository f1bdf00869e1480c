//! Lists processes for a command that ends: with the pods of this moment.

use std::sync::Arc;

use anyhow::{Error, Result, bail};

use crate::config::Config;
use crate::kubernetes::{LOOK_DEADLINE, pods_now, reads_pods};
use crate::model::Pid;
use crate::process::table::Process;
use crate::process::{Choice, ProcessTable};

/// The processes by the rules of the configuration, not scanned yet; and why pods are not known, if they should be.
pub async fn table_now(config: &Config) -> (ProcessTable, Option<Error>) {
    let settings = &config.kubernetes;
    // Where they should be read and cannot, they matter.
    let choice = Choice::new(settings, reads_pods(settings).unwrap_or(true));
    let mut table = ProcessTable::new(config.services.clone()).with_choice(choice);
    let problem = match pods_now(settings, LOOK_DEADLINE).await {
        Ok(pods) => {
            table.set_pods(Arc::new(pods.unwrap_or_default()));
            None
        }
        Err(error) => Some(error.context("pods cannot be read from Kubernetes")),
    };
    (table, problem)
}

/// As [`table_now`]; what is not known of pods is logged.
pub(super) async fn logged_table(config: &Config) -> ProcessTable {
    let (table, problem) = table_now(config).await;
    if let Some(problem) = problem {
        tracing::warn!("{problem:#}");
    }
    table
}

/// A process that somebody wants to look at.
///
/// # Errors
///
/// It is not there, or is not to be profiled.
pub(super) fn wanted_process(table: &ProcessTable, pid: Pid) -> Result<&Process> {
    let Some(process) = table.get(pid) else {
        bail!("there is no process {pid}; `profilerd ps` lists the processes");
    };
    match &process.denial {
        Some(denial) => bail!("process {pid} is not to be profiled: {denial}"),
        None => Ok(process),
    }
}

/// That a service has a process that can be looked at.
///
/// # Errors
///
/// It has none, or none that is to be profiled.
pub(super) fn require_service(table: &ProcessTable, name: &str) -> Result<()> {
    if table.processes_of_name(name).next().is_some() {
        return Ok(());
    }
    match table.denial_of_name(name) {
        Some(denial) => bail!("the service `{name}` is not to be profiled: {denial}"),
        None => bail!("no process belongs to the service `{name}`; `profilerd ps` shows which do"),
    }
}
