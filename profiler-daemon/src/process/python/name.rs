//! Names Python frames: the code signatures that OAP compares and people read.
//!
//! In:  [`PythonRef`]
//! Out: [`Frame`]
//! Lost: an unreadable code object -> `Counter::PythonNameUnreadable`; one that was freed since the sample
//!       -> `Counter::PythonCodeGone`. The frame of both is `[unknown] (python)`
//!
//! # Why the line of `def`
//! OAP merges neighbouring snapshots by the text of their frames, so the text must not change while
//! a function runs: with the line being executed, a loop over two lines falls apart into many nodes
//! with durations near zero. [`CodeSignature::Line`] is for comparing with the Python agent, which
//! prints that line.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::code::{CodeError, CodeNames};
use super::{PythonRuntime, identity};
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

/// Signatures remembered over all processes.
const SIGNATURES_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");

/// Turns Python frames into signatures, for all processes.
pub struct PythonNamer {
    names: CodeNames,
    signature: CodeSignature,
    /// By process and frame, the form [`CodeSignature::Function`] by code object only; `None` for a frame
    /// that is hidden. Frames whose identity is known need not be looked at again: also a code object that
    /// is freed by now was named when it was there.
    known: LruCache<(ProcessKey, PythonRef), Option<Arc<str>>>,
}

impl Default for PythonNamer {
    fn default() -> Self {
        Self::new(CodeSignature::default())
    }
}

/// Why a frame has no name.
#[derive(Debug, thiserror::Error)]
enum Unnamed {
    #[error(transparent)]
    Unreadable(#[from] CodeError),
    #[error("the code object at {0:#x} is not the one that was running")]
    Gone(u64),
}

impl PythonNamer {
    /// A namer that has seen nothing yet.
    #[must_use]
    pub fn new(signature: CodeSignature) -> Self {
        Self {
            names: CodeNames::default(),
            signature,
            known: LruCache::new(SIGNATURES_MAX),
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
                losses.bump(match error {
                    Unnamed::Unreadable(_) => Counter::PythonNameUnreadable,
                    Unnamed::Gone(_) => Counter::PythonCodeGone,
                });
                Arc::from("[unknown] (python)")
            }
        };
        Some(Frame::new(signature, FrameKind::Python))
    }

    /// Drops what is remembered about a process.
    pub fn forget(&mut self, process: ProcessKey) {
        self.names.forget(process);
        let keys = self.known.iter().map(|(&key, _)| key);
        let gone: Vec<_> = keys.filter(|&(of, _)| of == process).collect();
        for key in gone {
            self.known.pop(&key);
        }
    }

    fn signature(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        python: PythonRef,
    ) -> Result<Option<Arc<str>>, Unnamed> {
        let key = match self.signature {
            CodeSignature::Function => (runtime.process, PythonRef { instr: 0, ..python }),
            CodeSignature::Line => (runtime.process, python),
        };
        if python.identity != 0
            && let Some(signature) = self.known.get(&key)
        {
            return Ok(signature.clone());
        }
        let signature = self.read_signature(memory, runtime, python);
        // After it was read: then all that was read is of this object.
        if !identity::holds(memory, runtime, python) {
            return Err(Unnamed::Gone(python.code));
        }
        let signature = signature?;
        if python.identity != 0 {
            self.known.put(key, signature.clone());
        }
        Ok(signature)
    }

    fn read_signature(
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
