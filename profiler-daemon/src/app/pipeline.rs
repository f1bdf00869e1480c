//! Starts the two threads of the pipeline and talks to them.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use crossbeam_channel::{Sender, bounded, unbounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::capture::{Capture, Command};
use super::resolve::{PipelineEvent, Resolve};
use crate::config::{CodeSignature as Setting, Config};
use crate::kernel::LoadOptions;
use crate::process::python::CodeSignature;
use crate::request::TrackerLimits;

/// Events that may wait for the owner.
const EVENTS_MAX: usize = 1024;

/// The running pipeline.
pub(super) struct Pipeline {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts it; nothing is loaded yet.
    pub(super) fn spawn(config: &Config) -> Result<(Self, mpsc::Receiver<PipelineEvent>)> {
        // Commands come from our own control task, a few per task and process.
        let (commands, receive_commands) = unbounded();
        let (send_work, work) = bounded(config.limits.sample_queue as usize);
        let (send_events, events) = mpsc::channel(EVENTS_MAX);
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let options = LoadOptions {
            request_ring_bytes: config.limits.requests_ring_bytes,
            sample_ring_bytes: config.limits.samples_ring_bytes,
            ..LoadOptions::default()
        };
        let limits = TrackerLimits {
            max_open_requests: config.limits.max_open_requests as usize,
        };
        let capture = Capture::new(
            receive_commands,
            Arc::clone(&wake),
            send_work,
            options,
            limits,
        );
        let signature = match config.code_signature {
            Setting::Function => CodeSignature::Function,
            Setting::Line => CodeSignature::Line,
        };
        let capture = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                if let Err(error) = capture.run() {
                    tracing::error!(%error, "capturing stopped");
                }
            });
        let resolve = std::thread::Builder::new()
            .name("resolve".into())
            .spawn(move || {
                // Built here: symbol caches are not shared between threads.
                Resolve::new(work, send_events, signature).run();
            });
        let threads = vec![
            capture.context("thread capture")?,
            resolve.context("thread resolve")?,
        ];
        Ok((
            Self {
                commands,
                wake,
                threads,
            },
            events,
        ))
    }

    /// Gives a command.
    pub(super) fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // A full counter still wakes.
            let _ = self.wake.write(1);
        }
    }

    /// Ends all tasks. The event channel closes when everything is resolved.
    pub(super) fn shut_down(&self) {
        self.send(Command::Shutdown);
    }

    /// Waits for the threads; call it when the event channel is closed.
    pub(super) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a pipeline thread panicked");
            }
        }
    }
}
