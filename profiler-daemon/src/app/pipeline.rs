//! Starts the two threads of the pipeline, talks to them, and says why they ended.
//!
//! When either thread ends, for whatever reason, the event channel closes: the capture thread holds the
//! only way to give the resolve thread work, and the resolve thread the only way to give events. Their
//! owner sees the channel close, learns the reason from [`Pipeline::join`], and leaves.

use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::{bounded, unbounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::capture::{Capture, CaptureState, Command, Commands, WaitingBytes};
use super::relay::Watchdog;
use super::resolve::{PipelineEvent, Resolve};
use super::worker::Worker;
use crate::config::{CodeSignature as Setting, Config};
use crate::kernel::LoadOptions;
use crate::model::CaptureObservation;
use crate::process::python::CodeSignature;
use crate::request::RequestTracker;

/// Events that may wait for the owner.
const EVENTS_MAX: usize = 1024;

/// The running pipeline.
pub(super) struct Pipeline {
    commands: Commands,
    capture: Arc<CaptureState>,
    /// In the order in which one's end leads to the other's.
    workers: Vec<Worker>,
    watchdog: Arc<Watchdog>,
}

impl Pipeline {
    /// Starts it; nothing is loaded yet.
    pub(super) fn spawn(config: &Config) -> Result<(Self, mpsc::Receiver<PipelineEvent>)> {
        // Commands come from our own control task, a few per task and process.
        let (commands, receive_commands) = unbounded();
        let (send_work, work) = bounded(config.limits.sample_queue as usize);
        let waiting = Arc::new(WaitingBytes::default());
        let (send_events, events) = mpsc::channel(EVENTS_MAX);
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let commands = Commands {
            sender: commands,
            wake: Arc::clone(&wake),
        };
        let options = LoadOptions {
            request_ring_bytes: config.limits.requests_ring_bytes,
            sample_ring_bytes: config.limits.samples_ring_bytes,
            ..LoadOptions::default()
        };
        let tracker = RequestTracker::new(config.tracker_limits())
            .with_templates(Arc::new(config.templates()?));
        let state = Arc::new(CaptureState::new(
            config.limits.requests_ring_bytes,
            config.limits.samples_ring_bytes,
            config.limits.sample_queue,
        ));
        let capture = Capture::new(
            receive_commands,
            wake,
            send_work,
            Arc::clone(&waiting),
            options,
            tracker,
            Arc::clone(&state),
        )?;
        let signature = match config.code_signature {
            Setting::Function => CodeSignature::Function,
            Setting::Line => CodeSignature::Line,
        };
        let frames = config.frames;
        let resolve = Resolve::new(
            work,
            waiting,
            commands.clone(),
            send_events,
            signature,
            frames,
        );
        let watchdog = Watchdog::start()?;
        let capture = Worker::spawn("capture", capture, &watchdog)?;
        let resolve = Worker::spawn("resolve", resolve, &watchdog)?;
        let pipeline = Self {
            commands,
            capture: state,
            workers: vec![capture, resolve],
            watchdog,
        };
        Ok((pipeline, events))
    }

    /// The state of the capture thread; does not wake it.
    pub(super) fn observe(&self) -> CaptureObservation {
        self.capture.observe()
    }

    /// Gives a command.
    pub(super) fn send(&self, command: Command) {
        self.commands.send(command);
    }

    /// Ends all tasks. The event channel closes when everything is resolved.
    pub(super) fn shut_down(&self) {
        self.send(Command::Shutdown);
    }

    /// Waits for the threads; call it when the event channel is closed.
    ///
    /// # Errors
    ///
    /// A thread had ended before its time, and why.
    pub(super) fn join(self) -> Result<()> {
        let mut result = Ok(());
        for worker in self.workers {
            match worker.join() {
                Err(error) if result.is_ok() => result = Err(error),
                Err(error) => tracing::error!(error = format!("{error:#}")),
                Ok(()) => {}
            }
        }
        self.watchdog.stop();
        result
    }
}

#[cfg(test)]
use super::worker::Body;

#[cfg(test)]
impl Pipeline {
    /// A pipeline whose resolve thread does only `body`, and whose capture thread ends with it.
    pub(super) fn with_resolve(
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(Self, mpsc::Receiver<PipelineEvent>)> {
        let (commands, receive_commands) = unbounded::<Command>();
        let (send_events, events) = mpsc::channel(EVENTS_MAX);
        let watchdog = Watchdog::start()?;
        let capture = Body(move || {
            while !matches!(receive_commands.recv(), Ok(Command::Shutdown) | Err(_)) {}
            Ok(())
        });
        let resolve = Body(move || {
            let _events = send_events; // closes with the thread
            body();
            Ok(())
        });
        let capture = Worker::spawn("capture", capture, &watchdog)?;
        let resolve = Worker::spawn("resolve", resolve, &watchdog)?;
        let pipeline = Self {
            commands: Commands {
                sender: commands,
                wake: Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?),
            },
            capture: Arc::new(CaptureState::new(0, 0, 0)),
            workers: vec![capture, resolve],
            watchdog,
        };
        Ok((pipeline, events))
    }
}
