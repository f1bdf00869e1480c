//! Walks machine code frames by `.eh_frame`, with frame pointers where nothing covers an address.
//!
//! In:  [`Captured`] registers and stack bytes; memory of the process beyond them
//! Out: lookup addresses, innermost first, and why the walk ended
//! Lost: nothing; an early end is in the result
//!
//! # Why all registers
//! Signal frames, PLT stubs and hand-written assembly describe their caller by expressions that read
//! memory and by registers other than `rbp`; a walk that follows only three registers ends there.

mod frame;
mod object;

use std::collections::HashMap;

use profiler_common::REGS_MAX;

use crate::model::{Captured, Pid, StackBytes, UnwindEnd};
use crate::process::{Process, ProcessMemory, ReadMemory};
use frame::{Registers, Row, SP, Step};
use object::{Object, ObjectCache};

/// Most native frames of one stack.
const FRAMES_MAX: usize = 512;
/// Rows remembered; each is about 100 bytes.
const ROWS_MAX: usize = 65_536;

/// Memory as it was at the sample: copied stack bytes first, the process's own beyond them.
struct SampleMemory<'a> {
    stack: &'a StackBytes,
    process: ProcessMemory,
}

impl SampleMemory<'_> {
    fn read_u64(&self, address: u64) -> Option<u64> {
        if let Some(offset) = address.checked_sub(self.stack.sp)
            && let Ok(offset) = usize::try_from(offset)
            && let Some(bytes) = self.stack.bytes.get(offset..offset.saturating_add(8))
        {
            return Some(u64::from_ne_bytes(bytes.try_into().ok()?));
        }
        self.process.read_u64(address).ok()
    }
}

/// The native unwinder with its caches.
#[derive(Debug, Default)]
pub struct NativeUnwinder {
    objects: ObjectCache,
    /// Rules by (object, address in the object).
    rows: HashMap<(usize, u64), Row>,
}

impl NativeUnwinder {
    /// The lookup addresses of a sample (return addresses less one), innermost first.
    pub fn unwind(&mut self, process: &mut Process, captured: &Captured) -> (Vec<u64>, UnwindEnd) {
        let Some(mut registers) = Registers::from_pt_regs(&captured.regs) else {
            return (Vec::new(), UnwindEnd::Unreadable);
        };
        let mut frames = Vec::with_capacity(64);
        // The sampled address is exact; a return address points behind its call.
        let mut exact = true;
        loop {
            let Some(ip) = registers.ip().filter(|&ip| ip != 0) else {
                return (frames, UnwindEnd::Root);
            };
            let lookup = if exact { ip } else { ip - 1 };
            if frames.len() >= FRAMES_MAX {
                return (frames, UnwindEnd::TooDeep);
            }
            frames.push(lookup);
            let memory = SampleMemory {
                stack: &captured.stack,
                process: process.memory,
            };
            let before = registers.get(SP);
            let step = match self.row(process, lookup) {
                Some(row) => {
                    exact = row.is_signal;
                    registers.apply(&row, |address| memory.read_u64(address))
                }
                None => {
                    exact = false;
                    let cut = registers.step_frame_pointer(|address| memory.read_u64(address));
                    if matches!(cut, Step::Failed) {
                        return (frames, UnwindEnd::NoUnwindInfo);
                    }
                    cut
                }
            };
            match step {
                Step::Root => return (frames, UnwindEnd::Root),
                Step::Failed => {
                    let end = if captured.stack.cut {
                        UnwindEnd::StackCut
                    } else {
                        UnwindEnd::Unreadable
                    };
                    return (frames, end);
                }
                Step::Caller => {}
            }
            // The stack grows down: a caller's frame lies above, except below a signal's.
            if !exact && registers.get(SP) <= before {
                return (frames, UnwindEnd::Unreadable);
            }
        }
    }

    fn row(&mut self, process: &mut Process, address: u64) -> Option<Row> {
        if process.mappings.find(address).is_none() {
            process.refresh_mappings();
        }
        let mapping = process.mappings.find(address)?;
        let id = self.objects.of(process.pid, process.memory, mapping)?;
        let object: &Object = self.objects.get(id);
        let relative = object.to_object_address(mapping, address)?;
        if let Some(row) = self.rows.get(&(id, relative)) {
            return Some(row.clone());
        }
        let row = object.row(relative)?;
        if self.rows.len() >= ROWS_MAX {
            self.rows.clear();
        }
        self.rows.insert((id, relative), row.clone());
        Some(row)
    }

    /// Forgets a process that is gone or runs another program.
    pub fn forget(&mut self, pid: Pid) {
        self.objects.forget(pid);
    }
}

const _: () = assert!(REGS_MAX >= 21);
