//! The signals that the daemon reacts to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::SigId;
use signal_hook::consts::SIGHUP;
use signal_hook::flag::register;
use signal_hook::low_level::unregister;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To leave: SIGTERM, SIGINT.
    Stop,
    /// To read the configuration again: SIGHUP.
    Reload,
}

/// A SIGHUP that comes while the daemon starts: it does not end the daemon, and the configuration is read again once
/// that runs. To be had before the configuration is read for the first time.
#[derive(Debug)]
pub struct EarlyReload {
    has_come: Arc<AtomicBool>,
    id: SigId,
}

impl EarlyReload {
    /// Notes it from now on.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn watch() -> Result<Self> {
        let has_come = Arc::<AtomicBool>::default();
        let id = register(SIGHUP, Arc::clone(&has_come)).context("failed to catch SIGHUP")?;
        Ok(Self { has_come, id })
    }

    /// Whether one has come; the next ones are for others.
    fn end(self) -> bool {
        unregister(self.id);
        self.has_come.load(Ordering::Relaxed)
    }
}

/// One stream each for the whole time: a signal that comes between two waits is not lost.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// One has come before the streams were there.
    has_early_reload: bool,
}

impl Signals {
    /// From now on they are for this; a second one that asks to leave ends the program at once.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn catch(early: EarlyReload) -> Result<Self> {
        super::end_at_second_signal()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("failed to catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("failed to catch SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("failed to catch SIGHUP")?,
            // After its stream is there: between them none is lost.
            has_early_reload: early.end(),
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Asked {
        if std::mem::take(&mut self.has_early_reload) {
            return Asked::Reload;
        }
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}
