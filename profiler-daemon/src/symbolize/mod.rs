//! Turns addresses into frames with names. The only door to blazesym.
//!
//! In:  [`Stack<AddrFrame>`]
//! Out: [`Stack<Frame>`], shared: equal stacks of a process are symbolized once
//! Lost: address without a symbol -> `[unknown]`, [`Counter::FramesUnknown`]
//!
//! # Signatures
//! | frame | text |
//! |---|---|
//! | Python | `module.qualname:line of def` |
//! | native | `function (object)` |
//! | kernel | `function [kernel]` |
//!
//! They hold no address and no line that moves while the function runs: OAP compares them as text.

use std::collections::HashMap;
use std::sync::Arc;

use blazesym::symbolize::source::{Kernel, Process as ProcessSource, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer as Blazesym};
use blazesym::{MaybeDefault, Pid as BlazePid};

use crate::model::{AddrFrame, Counter, Coverage, Frame, FrameKind, Pid, Stack, UnwindEnd};
use crate::process::Process;
use crate::process::python::{CodeSignature, PythonNamer};

/// Most frames of a stack, as in the agents (`MAX_STACK_DEPTH`).
const FRAMES_MAX: usize = 500;
/// Of those, frames kept at the root side of a deeper stack.
const ROOT_FRAMES: usize = 100;
/// Addresses and stacks remembered per process.
const MEMO_MAX: usize = 32_768;

/// What is remembered of one process, while its mappings stay the same.
#[derive(Debug, Default)]
struct Memo {
    generation: u64,
    frames: HashMap<u64, (Frame, bool)>,
    stacks: HashMap<(Vec<AddrFrame>, UnwindEnd), Arc<Stack<Frame>>>,
}

/// Names addresses; keeps what it learned until told to forget.
pub struct Symbolizer {
    blazesym: Option<Blazesym>,
    namer: PythonNamer,
    kernel: HashMap<u64, (Frame, bool)>,
    processes: HashMap<Pid, Memo>,
}

impl Symbolizer {
    /// A symbolizer that has read nothing yet.
    #[must_use]
    pub fn new(code_signature: CodeSignature) -> Self {
        Self {
            blazesym: None,
            namer: PythonNamer::new(code_signature),
            kernel: HashMap::new(),
            processes: HashMap::new(),
        }
    }

    /// Names the frames of a stack.
    pub fn symbolize(
        &mut self,
        process: &mut Process,
        stack: Stack<AddrFrame>,
        losses: &mut Coverage,
    ) -> Arc<Stack<Frame>> {
        let memo = self.processes.entry(process.pid).or_default();
        if memo.generation != process.mappings.generation() || memo.stacks.len() > MEMO_MAX {
            *memo = Memo {
                generation: process.mappings.generation(),
                ..Memo::default()
            };
        }
        // A Python frame may be another function at the same address: its namer checks on each use.
        let has_python = stack
            .frames
            .iter()
            .any(|f| matches!(f, AddrFrame::Python(_)));
        let key = (stack.frames, stack.end);
        if !has_python && let Some(known) = memo.stacks.get(&key) {
            return Arc::clone(known);
        }
        let mut frames = Vec::with_capacity(key.0.len());
        for &frame in &key.0 {
            match frame {
                AddrFrame::Kernel(address) => frames.push(self.kernel_frame(address, losses)),
                AddrFrame::Native(address) => {
                    frames.push(self.native_frame(process, address, losses));
                }
                AddrFrame::Python(python) => {
                    if let Some(runtime) = &process.python {
                        let named = self.namer.frame(&process.memory, runtime, python, losses);
                        frames.extend(named);
                    }
                }
            }
        }
        let named = Arc::new(Stack {
            frames: shorten(frames),
            end: key.1,
        });
        if !has_python && let Some(memo) = self.processes.get_mut(&process.pid) {
            memo.stacks.insert(key, Arc::clone(&named));
        }
        named
    }

    fn kernel_frame(&mut self, address: u64, losses: &mut Coverage) -> Frame {
        let (frame, known) = match self.kernel.get(&address) {
            Some(known) => known.clone(),
            None => {
                let source = Source::Kernel(Kernel {
                    vmlinux: MaybeDefault::None,
                    ..Kernel::default()
                });
                let name = self.lookup(&source, address);
                let text = name.as_ref().map_or_else(
                    || "[unknown] [kernel]".to_owned(),
                    |name| format!("{} [kernel]", base_name(name)),
                );
                let frame = Frame {
                    signature: text.into(),
                    kind: FrameKind::Kernel,
                };
                self.kernel.insert(address, (frame.clone(), name.is_some()));
                (frame, name.is_some())
            }
        };
        if !known {
            losses.bump(Counter::FramesUnknown);
        }
        frame
    }

    fn native_frame(
        &mut self,
        process: &mut Process,
        address: u64,
        losses: &mut Coverage,
    ) -> Frame {
        let memo = self.processes.entry(process.pid).or_default();
        let (frame, known) = match memo.frames.get(&address) {
            Some(known) => known.clone(),
            None => {
                let object = process
                    .mappings
                    .find(address)
                    .map(|m| m.file_name().to_owned());
                let mut source = ProcessSource::new(BlazePid::from(process.pid.0));
                source.debug_syms = false;
                let name = self.lookup(&Source::Process(source), address);
                let known = name.is_some();
                let name =
                    name.map_or_else(|| "[unknown]".to_owned(), |n| base_name(&n).to_owned());
                let text = match object {
                    Some(object) if !object.is_empty() => format!("{name} ({object})"),
                    _ => name,
                };
                let frame = Frame {
                    signature: text.into(),
                    kind: FrameKind::Native,
                };
                let memo = self.processes.entry(process.pid).or_default();
                if memo.frames.len() < MEMO_MAX {
                    memo.frames.insert(address, (frame.clone(), known));
                }
                (frame, known)
            }
        };
        if !known {
            losses.bump(Counter::FramesUnknown);
        }
        frame
    }

    fn lookup(&mut self, source: &Source<'_>, address: u64) -> Option<String> {
        let blazesym = self.blazesym.get_or_insert_with(|| {
            Blazesym::builder()
                .enable_code_info(false)
                .enable_inlined_fns(false)
                .build()
        });
        match blazesym.symbolize_single(source, Input::AbsAddr(address)) {
            Ok(Symbolized::Sym(symbol)) => Some(symbol.name.into_owned()),
            Ok(Symbolized::Unknown(_)) => None,
            Err(error) => {
                tracing::debug!(%error, "no symbol");
                None
            }
        }
    }

    /// Forgets a process that is gone or runs another program.
    pub fn forget(&mut self, pid: Pid) {
        self.processes.remove(&pid);
        self.namer.forget(pid);
    }

    /// Gives back symbol tables: no task is live.
    pub fn release(&mut self) {
        self.blazesym = None;
        self.processes.clear();
        self.kernel.clear();
    }
}

/// A function's name without what compilers append to its parts, so that one function is one node.
fn base_name(name: &str) -> &str {
    let end = [".cold", ".part.", ".isra.", ".constprop.", ".llvm."]
        .iter()
        .filter_map(|mark| name.find(mark))
        .min();
    match end {
        Some(end) if end > 0 => &name[..end],
        _ => name,
    }
}

/// Cuts a deep stack in the middle: leaf and root stay.
fn shorten(mut frames: Vec<Frame>) -> Vec<Frame> {
    if frames.len() > FRAMES_MAX {
        let root = frames.split_off(frames.len() - ROOT_FRAMES);
        frames.truncate(FRAMES_MAX - ROOT_FRAMES - 1);
        frames.push(Frame {
            signature: "...".into(),
            kind: FrameKind::Elided,
        });
        frames.extend(root);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that parts of one function share its name and that names may begin with a mark.
    #[test]
    fn parts_of_a_function_share_its_name() {
        for (name, base) in [
            ("f.cold", "f"),
            ("f.isra.0", "f"),
            ("f.part.1.constprop.0", "f"),
            ("f", "f"),
            (".cold", ".cold"),
        ] {
            assert_eq!(base_name(name), base);
        }
    }

    /// Check that a deep stack keeps leaf and root around one mark.
    #[test]
    fn a_deep_stack_keeps_leaf_and_root() {
        let frame = |i: usize| Frame {
            signature: i.to_string().into(),
            kind: FrameKind::Native,
        };
        let short = shorten((0..700).map(frame).collect());
        assert_eq!(short.len(), FRAMES_MAX);
        assert_eq!((&*short[0].signature, &*short[499].signature), ("0", "699"));
        assert_eq!(
            short.iter().filter(|f| f.kind == FrameKind::Elided).count(),
            1
        );
    }
}
