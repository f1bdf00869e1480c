//! Waits, in a pod, until this node lets the daemon work.
//!
//! In:  [`doctor::missing`], once a minute
//! Out: nothing, once nothing is missing; until then the reasons, to the log and to who asks for readiness
//!
//! # Why a pod does not end
//!
//! On a host a daemon that cannot work ends, and says why: its unit fails, a person reads the message. A pod that ends is
//! started again and again, with growing pauses, and its reason is in the log of a container that is gone. Some reasons
//! go away without a new pod, such as a setting of the node that is changed.

use std::time::Duration;

use anyhow::Result;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::control::Observed;
use super::signals::{Asked, Signals};
use crate::config::Config;
use crate::doctor;
use crate::metrics::Questions;
use crate::model::Observation;

/// Time between two checks.
const CHECK: Duration = Duration::from_secs(60);

/// Whether a daemon that cannot work waits: in a pod, where its readiness can be asked for.
pub(super) fn waits(config: &Config) -> bool {
    let is_in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|it| !it.is_empty());
    is_in_pod && config.metrics.is_some()
}

/// Waits until nothing is missing; `false` if a signal ends the daemon before.
///
/// # Errors
///
/// A check fails to run.
pub(super) async fn wait(questions: &mut Questions, signals: &mut Signals) -> Result<bool> {
    let mut observed = Observed::default();
    let mut missing: Vec<String> = Vec::new();
    let mut check = interval(CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = check.tick() => {
                let found = spawn_blocking(doctor::missing).await?;
                let found: Vec<String> = found.iter().map(doctor::Finding::line).collect();
                for line in found.iter().filter(|line| !missing.contains(line)) {
                    tracing::error!("not ready: {line}");
                }
                if found.is_empty() {
                    return Ok(true);
                }
                missing = found;
            }
            question = questions.next() => question.answer(Observation {
                process: observed.process(),
                obstacles: missing.clone(),
                ..Observation::default()
            }),
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(false),
                // The configuration is read when there is something to do with it.
                Asked::Reload => tracing::warn!("not reloaded: the daemon has not begun its work"),
            },
        }
    }
}
