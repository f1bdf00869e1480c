//! Turns registers and memory of a thread into the addresses of its frames.
//!
//! In:  [`Captured`] + [`Process`]
//! Out: [`Stack<AddrFrame>`](crate::model::Stack) to [`crate::symbolize`]
//! Lost: a walk that ends before the root says why in [`crate::model::UnwindEnd`]
//!
//! [`native`] follows `.eh_frame`, [`python`] the interpreter's frames, [`merge`] puts both together.

pub mod merge;
pub mod native;
pub mod python;

use crate::model::{Captured, Counter, Coverage, ProcessKey, Stack, UnwindEnd};
use crate::process::Process;
pub use native::{AARCH64, Arch, NativeFrame, NativeUnwinder, Unwound, X86_64};

/// Unwinds samples; keeps what it learned about objects and addresses.
#[derive(Debug, Default)]
pub struct Unwinder {
    native: NativeUnwinder,
}

impl Unwinder {
    /// Reads the unwind information of what the process has mapped, so that the first stack does not
    /// wait for it.
    pub fn prepare(&mut self, process: &Process) {
        self.native.prepare(process);
    }

    /// The frames of one sample, kernel, native and Python, innermost first.
    ///
    /// What the copied bytes lack is read from the process as it is now. For a blocked thread that is
    /// the same memory. For a running one it holds callers that are more than 16 KiB of stack away:
    /// they wait for what they called, and change while a request is served only if it leaves and
    /// re-enters them within the milliseconds since the sample.
    pub fn unwind(
        &mut self,
        process: &mut Process,
        captured: &mut Captured,
        losses: &mut Coverage,
    ) -> Stack<crate::model::AddrFrame> {
        let memory = process.memory;
        let native = self.native.unwind(process, captured, Some(&memory));
        let end = native.end;
        match end {
            UnwindEnd::Root => {}
            UnwindEnd::StackCut => losses.bump(Counter::StacksCut),
            UnwindEnd::NoUnwindInfo => losses.bump(Counter::StacksNoUnwindInfo),
            UnwindEnd::Unreadable => losses.bump(Counter::StacksUnreadable),
            UnwindEnd::TooDeep => losses.bump(Counter::StacksTooDeep),
        }
        if let (Some(runtime), Some(chain)) = (&process.python, &mut captured.python) {
            python::extend_chain(&process.memory, runtime, chain);
            if chain.partial || chain.no_thread {
                losses.bump(Counter::PythonPartial);
            }
        }
        let python = captured.python.as_ref().zip(process.python.as_ref());
        let merged = merge::merge(&native.addresses(), end, &captured.kernel_frames, python);
        if merged.mismatch {
            losses.bump(Counter::PythonMergeMismatch);
        }
        Stack {
            frames: merged.frames,
            end,
        }
    }

    /// Forgets a process that is gone or runs another program.
    pub fn forget(&mut self, process: ProcessKey) {
        self.native.forget(process);
    }
}
