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

    /// The Python frames that the threads of a process are in, each innermost first. Threads run meanwhile, so
    /// this tells what is likely to be seen, and no more.
    #[must_use]
    pub fn python_stacks(&self, process: &Process) -> Vec<Stack<crate::model::AddrFrame>> {
        let Some(runtime) = &process.python else {
            return Vec::new();
        };
        let chains = python::walk_all(&process.memory, runtime);
        let stacks = chains.iter().map(|chain| Stack {
            frames: merge::merge(&[], UnwindEnd::StackCut, &[], Some((chain, runtime))).frames,
            end: UnwindEnd::StackCut,
        });
        stacks.collect()
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
            if chain.partial {
                losses.bump(Counter::PythonPartial);
            } else if chain.no_thread {
                losses.bump(Counter::PythonNoThread);
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

#[cfg(test)]
mod tests {
    use profiler_common::REGS_MAX;

    use super::*;
    use crate::model::{Pid, PythonChain, StackBytes};
    use crate::process::python::{Layout, PythonRuntime, PythonVersion};

    /// A process with CPython 3.12 whose memory is ours.
    fn python_process() -> Process {
        let version = PythonVersion {
            major: 3,
            minor: 12,
            micro: 0,
        };
        let layout = Layout::from_table(version).unwrap();
        let mut process = Process::open(Pid(std::process::id())).unwrap();
        process.python = Some(PythonRuntime {
            process: process.key,
            version,
            runtime: 0,
            offsets: layout.offsets,
            code: layout.code,
            loop_ranges: Vec::new(),
        });
        process
    }

    fn counts(chain: PythonChain) -> [u64; 2] {
        let mut captured = Captured {
            regs: [0; REGS_MAX],
            stack: StackBytes {
                sp: 0,
                skipped: 0,
                bytes: Vec::new(),
                cut: false,
            },
            kernel_frames: Vec::new(),
            python: Some(chain),
        };
        let mut losses = Coverage::default();
        Unwinder::default().unwind(&mut python_process(), &mut captured, &mut losses);
        [Counter::PythonPartial, Counter::PythonNoThread].map(|counter| losses.get(counter))
    }

    /// Check that a Python chain counts as partial once, and only if the process's memory does not
    /// complete it either; and that a thread without a thread state is no loss.
    #[test]
    fn a_chain_is_partial_only_if_it_cannot_be_completed() {
        let stopped_at = |next| PythonChain {
            next,
            partial: true,
            ..PythonChain::default()
        };
        // The outermost frame: no code, no previous one.
        let frame = [0_u64; 10];
        assert_eq!(counts(stopped_at(frame.as_ptr() as u64)), [0, 0]);
        assert_eq!(counts(stopped_at(8)), [1, 0]);
        assert_eq!(counts(stopped_at(0)), [1, 0]);
        let unknown = PythonChain {
            no_thread: true,
            ..PythonChain::default()
        };
        assert_eq!(counts(unknown.clone()), [0, 1]);
        let unsearched = PythonChain {
            partial: true,
            ..unknown
        };
        assert_eq!(counts(unsearched), [1, 0]);
        assert_eq!(counts(PythonChain::default()), [0, 0]);
    }
}
