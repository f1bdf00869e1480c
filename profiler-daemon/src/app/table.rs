//! Lists processes for a command that ends: with the pods of this moment.

use std::sync::Arc;

use anyhow::Error;

use crate::config::Config;
use crate::kubernetes::{LOOK_DEADLINE, pods_now, reads_pods};
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

/// Why no process of a service can be looked at.
pub(super) fn unknown_service(table: &ProcessTable, name: &str) -> String {
    match table.denial_of_name(name) {
        Some(denial) => format!("the service `{name}` is not to be profiled: {denial}"),
        None => {
            format!("no process belongs to the service `{name}`; `profilerd ps` shows which do")
        }
    }
}
