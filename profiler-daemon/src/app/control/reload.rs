//! Reads the configuration again on SIGHUP, and uses what can change while the daemon runs.
//!
//! In:  the file, variables and options that the daemon was started with
//! Out: other service rules, choice of processes, limits, token, level of the log; a line in the log for each change
//! Lost: nothing; a configuration that cannot be used changes nothing, and the log says why

use super::Control;
use crate::config::{Change, OapOwner};
use crate::process::Choice;

impl Control {
    /// Reads the configuration again.
    pub(super) fn reload(&mut self) {
        let before = self.config.clone();
        match tokio::task::block_in_place(|| self.read_again()) {
            Ok(changes) if changes.is_empty() => {
                tracing::info!("the configuration was read again; nothing has changed");
            }
            Ok(changes) => {
                for change in &changes {
                    match change.is_effective {
                        true => tracing::info!("{change}"),
                        false => tracing::warn!("{change}"),
                    }
                }
            }
            Err(error) => {
                tracing::error!("the configuration was not reloaded, nothing changes: {error:#}");
                return;
            }
        }
        let config = &self.config;
        if let Err(decider) = crate::log::set_level(config.log.level)
            && config.log.level != before.log.level
        {
            tracing::warn!("log.level has no effect: {decider} decides on the level");
        }
        if self.oap_owner() == OapOwner::Others {
            self.oap.set_token(config.token_source());
        }
        self.pipeline
            .send(super::Command::SetLimits(config.tracker_limits()));
        self.overhead.set_budget(config.budget());
        self.discovery.set_budget(config.limits.max_cpu_percent);
        // Who is which service, and who is left out, shows at once.
        self.begin_scan();
    }

    fn read_again(&mut self) -> anyhow::Result<Vec<Change>> {
        let loaded = self.source.load()?;
        for warning in loaded.warnings {
            tracing::warn!("{warning}");
        }
        let owner = self.oap_owner();
        self.config.adopt(&loaded.config, owner)
    }

    fn oap_owner(&self) -> OapOwner {
        match self.oap_stops_too {
            true => OapOwner::Daemon,
            false => OapOwner::Others,
        }
    }

    /// Which processes are wanted.
    pub(super) fn choice(&self) -> Choice {
        Choice::new(&self.config.kubernetes, self.pods.is_some())
    }
}
