//! Walks the CPython frames of a thread.
//!
//! In:  memory of a process whose thread does not run, and the thread's id in its pid namespace
//! Out: [`PythonChain`], the same records that the BPF walker copies for running threads
//! Lost: an unreadable frame ends the chain: `partial`; a thread unknown to the interpreter:
//!       `no_thread`
//!
//! The chain is what CPython links: it contains the shim frames that mark a call from C. They are
//! needed to find each frame's place among the native frames; [`super::merge`] removes them.
//!
//! # Consistency
//! Only the thread itself changes its frames, so they hold still while it is off-CPU. The caller
//! proves that it was, by the sequence number of its switches. The list of threads may change while
//! it is followed; the id found at its end is checked, and a wrong turn ends in an error.

mod walker;

use std::io::{Error, ErrorKind};
use std::ops::ControlFlow;

use profiler_common::{PythonFrameRecord, PythonOffsets, python_flag};

use crate::model::PythonChain;
use crate::process::ReadMemory;
use crate::process::page_cache::PageCache;
use crate::process::python::{PythonRuntime, read_all, visit_threads};

pub use walker::PythonWalker;

/// Most frames in a chain. CPython's own recursion limit is 1,000 unless changed; a list longer than
/// this is a cycle or not worth its memory.
const FRAMES_MAX: usize = 4096;
/// Room for the fields of a frame that we read.
const FRAME_BYTES_MAX: usize = 1032;
/// A `_PyStackRef` (3.14) keeps flags in the two low bits; they are 0 in the pointers of older ones.
const TAG_BITS: u64 = 0b11;
/// The frames of one blocked thread, for a caller that asks once. See [`PythonWalker::walk`].
#[must_use]
pub fn walk_chain(
    memory: &dyn ReadMemory,
    runtime: &PythonRuntime,
    native_tid: u32,
) -> PythonChain {
    PythonWalker::default().walk(memory, runtime, native_tid)
}

/// Most threads whose frames [`walk_all`] reads.
const THREADS_MAX: usize = 64;

/// The chains of the first threads that are in Python. Those that run meanwhile may show anything.
pub(super) fn walk_all(memory: &dyn ReadMemory, runtime: &PythonRuntime) -> Vec<PythonChain> {
    let memory = PageCache::new(memory);
    let mut chains = Vec::new();
    let visited = visit_threads(&memory, runtime.runtime, &runtime.offsets, |state| {
        if let Ok(next @ 1..) = state.first_frame(&memory, &runtime.offsets) {
            let mut chain = PythonChain {
                next,
                ..PythonChain::default()
            };
            extend(&memory, runtime, &mut chain);
            chains.push(chain);
        }
        if chains.len() < THREADS_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    if let Err(error) = visited {
        tracing::trace!(pid = %runtime.process, %error, "some threads were not searched");
    }
    chains
}

/// Continues a chain at [`PythonChain::next`]: one that the BPF walker cut, or stopped at a page that
/// was not resident, which reading from here brings in. The thread may have run since: its outer
/// frames, which these are, seldom changed.
pub fn extend_chain(memory: &dyn ReadMemory, runtime: &PythonRuntime, chain: &mut PythonChain) {
    if chain.next != 0 {
        chain.partial = false;
        extend(&PageCache::new(memory), runtime, chain);
    }
}

fn extend(memory: &dyn ReadMemory, runtime: &PythonRuntime, chain: &mut PythonChain) {
    let known = chain.frames.len();
    follow(memory, runtime, chain);
    let codes: Vec<u64> = chain.frames[known..].iter().map(|it| it.code).collect();
    let identities = read_all(memory, &runtime.offsets, &codes);
    for (frame, identity) in chain.frames[known..].iter_mut().zip(identities) {
        frame.identity = identity;
    }
}

fn follow(memory: &dyn ReadMemory, runtime: &PythonRuntime, chain: &mut PythonChain) {
    while chain.next != 0 && chain.frames.len() < FRAMES_MAX {
        match read_frame(memory, &runtime.offsets, chain.next) {
            Ok((record, previous)) => {
                chain.frames.push(record);
                chain.next = previous;
            }
            Err(error) => {
                tracing::trace!(pid = %runtime.process, frame = chain.next, %error, "python frame");
                chain.frames.push(PythonFrameRecord {
                    flags: python_flag::UNREADABLE,
                    ..PythonFrameRecord::default()
                });
                chain.partial = true;
                chain.next = 0;
            }
        }
    }
}

/// Reads a frame; returns it and the address of its caller.
fn read_frame(
    memory: &dyn ReadMemory,
    offsets: &PythonOffsets,
    address: u64,
) -> Result<(PythonFrameRecord, u64), Error> {
    let words = [
        offsets.frame_previous,
        offsets.frame_executable,
        offsets.frame_instr,
    ];
    let end = words
        .iter()
        .map(|offset| offset + 8)
        .chain([offsets.frame_owner + 1])
        .max()
        .unwrap_or(0);
    let mut buffer = [0; FRAME_BYTES_MAX];
    let frame = buffer
        .get_mut(..end as usize)
        .ok_or(ErrorKind::InvalidData)?;
    memory.read_exact(address, frame)?;
    let [previous, executable, instr] = words.map(|offset| {
        let mut word = [0; 8];
        word.copy_from_slice(&frame[offset as usize..offset as usize + 8]);
        u64::from_ne_bytes(word)
    });
    let record = PythonFrameRecord {
        code: executable & !TAG_BITS,
        instr,
        owner: frame[offsets.frame_owner as usize].into(),
        flags: 0,
        identity: 0,
    };
    Ok((record, previous))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Pid, ProcessKey};
    use crate::process::python::{Layout, PythonVersion, ThreadIds};

    /// Memory made of words, readable only where one was written.
    #[derive(Default)]
    struct Words(BTreeMap<u64, u64>);

    impl Words {
        fn set(&mut self, address: u64, word: u64) {
            self.0.insert(address, word);
        }

        /// A 3.12 frame in 80 bytes of zeros.
        fn frame(&mut self, address: u64, code: u64, previous: u64, instr: u64, owner: u8) {
            for offset in (0..80).step_by(8) {
                self.set(address + offset, 0);
            }
            self.set(address, code);
            self.set(address + 8, previous);
            self.set(address + 56, instr);
            self.set(address + 64, u64::from(owner) << 48);
        }

        /// A thread state with its `_PyCFrame`, linked behind `previous`.
        fn tstate(&mut self, address: u64, previous: u64, tid: u32, frame: u64) {
            for offset in (0..168).step_by(8) {
                self.set(address + offset, 0);
            }
            self.set(address, previous);
            self.set(address + 16, INTERPRETER);
            self.set(address + 56, address + 0x200);
            self.set(address + 136, pthread_of(tid));
            self.set(address + 144, tid.into());
            self.set(address + 0x200, frame);
            if previous != 0 {
                self.set(previous + 8, address);
            }
        }
    }

    impl ReadMemory for Words {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            let mut read = 0;
            for (at, byte) in (address..).zip(buffer.iter_mut()) {
                let Some(word) = self.0.get(&(at & !7)) else {
                    break;
                };
                *byte = word.to_ne_bytes()[(at & 7) as usize];
                read += 1;
            }
            if read == 0 {
                return Err(Error::from(ErrorKind::InvalidInput));
            }
            Ok(read)
        }
    }

    /// A made-up `pthread_t`.
    fn pthread_of(tid: u32) -> u64 {
        0x7000_0000 + 0x10000 * u64::from(tid)
    }

    const RUNTIME: u64 = 0x1000;
    const INTERPRETER: u64 = 0x2000;
    const FIRST: u64 = 0x3000;
    const SECOND: u64 = 0x4000;

    fn runtime() -> PythonRuntime {
        let version = PythonVersion {
            major: 3,
            minor: 12,
            micro: 1,
        };
        let layout = Layout::from_table(version).unwrap();
        PythonRuntime {
            process: ProcessKey {
                pid: Pid(1),
                start_ticks: 0,
            },
            version,
            runtime: RUNTIME,
            offsets: layout.offsets,
            code: layout.code,
            loop_ranges: Vec::new(),
        }
    }

    /// Two threads; the second one is in `0x50` called by `0x51`, called from C.
    fn process() -> Words {
        let mut memory = Words::default();
        memory.set(RUNTIME + 40, INTERPRETER);
        memory.set(INTERPRETER, 0);
        memory.set(INTERPRETER + 72, FIRST);
        memory.tstate(FIRST, 0, 100, 0);
        memory.tstate(SECOND, FIRST, 101, 0x8000);
        memory.frame(0x8000, 0x50, 0x8100, 0x1111, 0);
        memory.frame(0x8100, 0x53, 0x8200, 0x2222, 1);
        memory.frame(0x8200, 0x60, 0, 0x3333, 3);
        memory
    }

    fn record(code: u64, instr: u64, owner: u16) -> PythonFrameRecord {
        PythonFrameRecord {
            code,
            instr,
            owner,
            flags: 0,
            identity: 0,
        }
    }

    /// Check that the right thread is found, frames come innermost first, tags are removed, and the
    /// shim frame is kept.
    #[test]
    fn a_chain_is_walked_from_the_leaf_to_the_root() {
        let chain = walk_chain(&process(), &runtime(), 101);
        assert_eq!(
            chain,
            PythonChain {
                frames: vec![
                    record(0x50, 0x1111, 0),
                    record(0x50, 0x2222, 1),
                    record(0x60, 0x3333, 3)
                ],
                ..PythonChain::default()
            }
        );
    }

    /// Check that a thread outside Python has no frames, and an unknown one is reported as such.
    #[test]
    fn idle_and_unknown_threads_have_no_frames() {
        assert_eq!(
            walk_chain(&process(), &runtime(), 100),
            PythonChain::default()
        );
        let unknown = walk_chain(&process(), &runtime(), 102);
        assert!(unknown.no_thread && !unknown.partial && unknown.frames.is_empty());
    }

    /// Check that the chains of all threads that are in Python are found.
    #[test]
    fn all_threads_in_python_are_walked() {
        let mut memory = process();
        let chain = |tid, memory: &Words| walk_chain(memory, &runtime(), tid);
        assert_eq!(walk_all(&memory, &runtime()), [chain(101, &memory)]);
        memory.tstate(FIRST, 0, 100, 0x8200);
        memory.tstate(SECOND, FIRST, 101, 0x8000);
        let both = [chain(100, &memory), chain(101, &memory)];
        assert_eq!(walk_all(&memory, &runtime()), both);
    }

    /// Check that an unreadable frame leaves a mark at the end of what could be read.
    #[test]
    fn an_unreadable_frame_ends_the_chain() {
        let mut memory = process();
        memory.set(0x8108, 0xdead_0000);
        let chain = walk_chain(&memory, &runtime(), 101);
        assert!(chain.partial);
        assert_eq!(chain.next, 0);
        assert_eq!(chain.frames.len(), 3);
        assert_eq!(chain.frames[2].flags, python_flag::UNREADABLE);
    }

    /// Check that a cycle ends at the limit and says where it would go on.
    #[test]
    fn a_cycle_is_cut() {
        let mut memory = process();
        memory.set(0x8208, 0x8000);
        let chain = walk_chain(&memory, &runtime(), 101);
        assert_eq!(chain.frames.len(), FRAMES_MAX);
        assert_ne!(chain.next, 0);
    }

    /// Check that a chain that was cut or met a missing page is continued where it stopped, and that
    /// one without a place to continue stays as it is.
    #[test]
    fn a_cut_chain_is_extended() {
        let whole = walk_chain(&process(), &runtime(), 101);
        for partial in [false, true] {
            let mut cut = PythonChain {
                frames: whole.frames[..1].to_vec(),
                next: 0x8100,
                partial,
                ..PythonChain::default()
            };
            extend_chain(&process(), &runtime(), &mut cut);
            assert_eq!(cut, whole);
        }
        let mut lost = PythonChain {
            partial: true,
            ..PythonChain::default()
        };
        extend_chain(&process(), &runtime(), &mut lost);
        assert!(lost.partial && lost.frames.is_empty());
    }

    /// Check that a remembered thread state is not used after it left the list, although its memory
    /// still has the thread's id.
    #[test]
    fn a_stale_thread_state_is_not_trusted() {
        let mut memory = process();
        let mut walker = PythonWalker::default();
        assert_eq!(walker.walk(&memory, &runtime(), 101).frames.len(), 3);
        memory.tstate(0x5000, FIRST, 101, 0x8200);
        let chain = walker.walk(&memory, &runtime(), 101);
        assert_eq!(chain.frames, [record(0x60, 0x3333, 3)]);
    }

    fn walk_by(memory: &Words, native_tid: u32, thread_pointer: u64) -> PythonChain {
        let ids = ThreadIds {
            native_tid,
            thread_pointer,
        };
        PythonWalker::default().walk_by(memory, &runtime(), ids)
    }

    /// Check that a thread whose id is not in the list, as after a fork by C, is found by its thread
    /// pointer, that the id goes first, and that an unknown thread pointer finds nothing.
    #[test]
    fn a_thread_of_a_process_forked_by_c_is_found_by_its_thread_pointer() {
        let memory = process();
        let whole = walk_chain(&memory, &runtime(), 101);
        assert_eq!(walk_by(&memory, 7, pthread_of(101)), whole);
        assert_eq!(walk_by(&memory, 101, pthread_of(100)), whole);
        assert!(walk_by(&memory, 7, pthread_of(102)).no_thread);
        assert!(walk_by(&memory, 7, 0).no_thread);
        let mut unknown = process();
        unknown.set(SECOND + 136, 0);
        assert!(walk_by(&unknown, 7, 0).no_thread);
    }

    /// Check that what is remembered of such a thread is checked like that of any other.
    #[test]
    fn a_thread_found_by_its_thread_pointer_is_remembered_while_it_is_listed() {
        let mut memory = process();
        let mut walker = PythonWalker::default();
        let ids = ThreadIds {
            native_tid: 7,
            thread_pointer: pthread_of(101),
        };
        assert_eq!(walker.walk_by(&memory, &runtime(), ids).frames.len(), 3);
        // It has got another thread state, by its own id.
        memory.tstate(0x5000, FIRST, 7, 0x8200);
        let chain = walker.walk_by(&memory, &runtime(), ids);
        assert_eq!(chain.frames, [record(0x60, 0x3333, 3)]);
    }
}
