//! The part of the resolve thread that reads processes: unwinds and names stacks, with all caches for that.
//!
//! In:  a process, [`Captured`] registers and memory
//! Out: [`Stack<Frame>`]
//! Lost: stacks of processes that cannot be read -> [`Counter::SamplesOrphaned`], [`Counter::SamplesNoStack`]
//!
//! A read may never return. Another thread goes on then ([`super::relay`]), with a namer of its own: caches of symbols cannot be
//! given from thread to thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::frames::{FrameSet, activity};
use crate::kernel;
use crate::model::{Captured, Counter, Coverage, Frame, FrameKind, ProcessKey, Stack};
use crate::process::Process;
use crate::process::procfs::{Procfs, Stat};
use crate::process::python::{CodeSignature, PythonRuntime};
use crate::symbolize::Symbolizer;
use crate::unwind::Unwinder;

/// Reads processes.
pub(super) struct Namer {
    unwinder: Unwinder,
    symbolizer: Symbolizer,
    processes: HashMap<ProcessKey, Process>,
}

/// What a stack was captured with, and how.
pub(super) struct Sampled {
    pub(super) process: ProcessKey,
    pub(super) python: Option<Arc<PythonRuntime>>,
    pub(super) captured: Box<Captured>,
    pub(super) is_off_cpu: bool,
    /// When it is no longer worth it.
    pub(super) deadline: Instant,
}

impl Namer {
    pub(super) fn new(code_signature: CodeSignature, frames: FrameSet) -> Self {
        Self {
            unwinder: Unwinder::default(),
            symbolizer: Symbolizer::new(code_signature).showing(frames),
            processes: HashMap::new(),
        }
    }

    /// Reads what stacks of a process need, before there are any, for so long at most; with no time that is left to the
    /// first stacks. Whether it still runs this program.
    pub(super) fn prepare(
        &mut self,
        key: ProcessKey,
        python: Option<&Arc<PythonRuntime>>,
        program: &Stat,
        time_max: Duration,
    ) -> bool {
        let start = Instant::now();
        self.symbolizer.stop_at(start + time_max);
        if !time_max.is_zero()
            && let Err(error) = self.open_process(key, python)
        {
            tracing::debug!(pid = %key, %error, "process cannot be opened");
        }
        if let Some(process) = self.processes.get(&key) {
            self.unwinder.prepare(process);
            self.symbolizer.prepare(process);
            // Most of what a request's stacks will have below its handler.
            let mut unwanted = Coverage::default();
            for stack in self.unwinder.python_stacks(process) {
                self.symbolizer.symbolize(process, &stack, &mut unwanted);
            }
        }
        tracing::debug!(pid = %key, elapsed = ?start.elapsed(), "process prepared");
        // Whether it has ended is checked when it is watched.
        !Procfs::default()
            .stat(key.pid)
            .is_ok_and(|now| now.key(key.pid) == key && !now.is_same_program(program))
    }

    /// Unwinds and names.
    ///
    /// # Errors
    ///
    /// The process cannot be read any more, or its stack takes too much time; the counter that says why.
    pub(super) fn name(
        &mut self,
        sampled: Sampled,
        losses: &mut Coverage,
    ) -> Result<Stack<Frame>, Counter> {
        let Sampled {
            process: key,
            python,
            mut captured,
            is_off_cpu,
            deadline,
        } = sampled;
        let start = Instant::now();
        self.symbolizer.stop_at(deadline);
        self.open_process(key, python.as_ref())
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => Counter::SamplesNoStack,
                _ => Counter::SamplesOrphaned,
            })?;
        let process = self
            .processes
            .get_mut(&key)
            .ok_or(Counter::SamplesOrphaned)?;
        let stack = self.unwinder.unwind(process, &mut captured, losses);
        let mut stack = self.symbolizer.symbolize(process, &stack, losses);
        if self.symbolizer.is_late() {
            return Err(Counter::SamplesTooDear);
        }
        if !stack.frames.is_empty()
            && let Some(activity) = activity_of(&stack, &captured, is_off_cpu)
        {
            stack.frames.insert(0, activity);
        }
        tracing::trace!(pid = %key, elapsed = ?start.elapsed(), "stack resolved");
        Ok(stack)
    }

    /// A process is gone, or runs another program.
    pub(super) fn forget(&mut self, key: ProcessKey) {
        self.processes.remove(&key);
        self.unwinder.forget(key);
        self.symbolizer.forget(key);
    }

    /// Gives up everything that is known of processes.
    pub(super) fn release(&mut self) {
        self.processes.clear();
        self.symbolizer.release();
        self.unwinder = Unwinder::default();
    }

    fn open_process(
        &mut self,
        key: ProcessKey,
        python: Option<&Arc<PythonRuntime>>,
    ) -> io::Result<()> {
        if let Entry::Vacant(vacant) = self.processes.entry(key) {
            let process = vacant.insert(Process::open_same(key)?);
            process.python = python.map(|python| (**python).clone());
        }
        Ok(())
    }
}

/// What the thread is in inside the kernel, as the innermost frame.
fn activity_of(stack: &Stack<Frame>, captured: &Captured, is_off_cpu: bool) -> Option<Frame> {
    let kernel = stack.frames.iter().filter(|f| f.kind == FrameKind::Kernel);
    let names: Vec<&str> = kernel.map(|f| &*f.signature).collect();
    let call = kernel::system_call(&captured.regs);
    let activity = activity::of_thread(&names, call, is_off_cpu)?;
    Some(Frame::new(activity.to_string(), FrameKind::Activity))
}
