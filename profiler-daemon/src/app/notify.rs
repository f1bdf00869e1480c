//! Tells systemd how the daemon is doing, if a unit of `Type=notify` has started it.
//!
//! In:  what the daemon does, and why it is not ready
//! Out: `READY`, `RELOADING`, `STOPPING`, `STATUS` and `WATCHDOG`, to the socket that systemd has named
//! Lost: what the socket does not take; systemd sees the silence
//!
//! `READY` means that the daemon runs, not that an OAP is there: a unit that waits for an OAP would fail to start without.

use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// What systemd has been told.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    status: Option<String>,
}

impl Notifier {
    /// The daemon runs.
    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The configuration is read again; [`Self::ready`] says when it is in use.
    pub(super) fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// The daemon leaves.
    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The daemon lives; `obstacles` are why it is not ready.
    pub(super) fn alive(&mut self, obstacles: &[String]) {
        tell(&[NotifyState::Watchdog]);
        let status = match obstacles {
            [] => "ready".to_owned(),
            obstacles => format!("not ready: {}", obstacles.join("; ")),
        };
        if self.status.as_ref() != Some(&status) {
            tell(&[NotifyState::Status(&status)]);
            self.status = Some(status);
        }
    }
}

/// How often systemd is to hear that the daemon lives: twice in the time it waits, if it does.
pub(super) fn alive_interval(usual: Duration) -> Duration {
    let wait = watchdog_enabled().map(|wait| wait / 2);
    wait.map_or(usual, |wait| wait.clamp(Duration::from_millis(100), usual))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
