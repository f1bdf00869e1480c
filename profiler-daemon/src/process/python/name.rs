//! Names Python frames: the code signatures that OAP compares and people read.
//!
//! In:  [`PythonRef`]
//! Out: [`Frame`]
//! Lost: an unreadable code object -> `Counter::PythonNameUnreadable`, frame `[unknown] (python)`
//!
//! # Why the line of `def`
//! OAP merges neighbouring snapshots by the text of their frames, so the text must not change while
//! a function runs: with the line being executed, a loop over two lines falls apart into many nodes
//! with durations near zero. [`CodeSignature::Line`] is for comparing with the Python agent, which
//! prints that line.

use std::sync::Arc;

use super::PythonRuntime;
use super::code::{CodeError, CodeNames};
use crate::model::{Counter, Coverage, Frame, FrameKind, ProcessKey, PythonRef};
use crate::process::ReadMemory;

/// The form of a Python frame's signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodeSignature {
    /// `<module>.<qualname>:<line of def>`, for example `http.server.HTTPServer.server_bind:134`. Functions
    /// of different files of a process have different signatures.
    #[default]
    Function,
    /// `<file>.<function>: <current line>`, as SkyWalking's Python agent prints it, for example
    /// `/usr/lib/python3.11/http/server.py.server_bind: 136`.
    Line,
}

/// Turns Python frames into signatures, for all processes.
#[derive(Default)]
pub struct PythonNamer {
    names: CodeNames,
    signature: CodeSignature,
}

impl PythonNamer {
    /// A namer that has seen nothing yet.
    #[must_use]
    pub fn new(signature: CodeSignature) -> Self {
        Self {
            names: CodeNames::default(),
            signature,
        }
    }

    /// The frame to show, `None` for one that the interpreter uses internally and hides from
    /// tracebacks.
    pub fn frame(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        python: PythonRef,
        losses: &mut Coverage,
    ) -> Option<Frame> {
        let signature = match self.signature(memory, runtime, python) {
            Ok(signature) => signature?,
            Err(error) => {
                tracing::trace!(pid = %runtime.process, %error, "python frame without a name");
                losses.bump(Counter::PythonNameUnreadable);
                Arc::from("[unknown] (python)")
            }
        };
        Some(Frame::new(signature, FrameKind::Python))
    }

    /// Drops what is remembered about a process.
    pub fn forget(&mut self, process: ProcessKey) {
        self.names.forget(process);
    }

    fn signature(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        python: PythonRef,
    ) -> Result<Option<Arc<str>>, CodeError> {
        let code = self.names.describe(memory, runtime, python.code)?;
        if code.is_internal() {
            return Ok(None);
        }
        Ok(Some(match self.signature {
            CodeSignature::Function => Arc::clone(&code.signature),
            CodeSignature::Line => {
                let line = self.names.line(memory, runtime, python)?;
                let line = line.unwrap_or(code.first_line);
                format!("{}.{}: {}", code.file, code.name, line).into()
            }
        }))
    }
}
