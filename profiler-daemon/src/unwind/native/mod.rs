//! Walks native stacks: registers and stack bytes become lookup addresses.
//!
//! In:  [`Captured`] registers and stack, [`Process`]; live memory, if the caller allows it
//! Out: [`Unwound`]
//! Lost: nothing here; a stack that ends before its root says why in [`Unwound::end`]
//!
//! # How a caller is found, per frame
//! 1. `.eh_frame` of the object that contains the pc: exact, also in functions without frame
//!    pointers, in procedure linkage tables and through signal handlers.
//! 2. The code that returns from a signal handler, where it has no unwind information (musl): the
//!    registers that the kernel saved.
//! 3. Frame pointers, where nothing covers the pc: generated code, Go, V8. On aarch64 they do not tell the
//!    caller's stack pointer; a caller whose rules count from it is left by its frame pointer as well.
//!
//! A return address is looked up at the byte before it: a call may be the last instruction of its
//! function. The leaf and a frame interrupted by a signal are looked up where they are; a leaf in the
//! system call that ends a signal handler, where the code before that call begins.
//!
//! # Termination
//! Each frame must lie above the one before. Only a signal may move to another stack. In any case
//! the walk ends after [`FRAMES_MAX`] frames.
//!
//! # Why not framehop
//! It knows three registers and no memory in expressions, so that stacks end at signal frames and in
//! hand-written assembly.

mod arch;
mod expression;
mod module;
mod row;
mod stack_memory;
mod table;

use std::collections::HashMap;
use std::sync::Arc;

use gimli::UnwindContext;

use crate::model::{Captured, ProcessKey, UnwindEnd};
use crate::process::{Process, ReadMemory};
use arch::Registers;
pub use arch::{AARCH64, Arch, X86_64};
use module::Modules;
use row::Row;
use stack_memory::StackMemory;
use table::UnwindTable;

/// Most native frames of a stack. Deep enough that a stack that fits into the copied bytes keeps its
/// root: [`crate::symbolize`] leaves out the middle of deep stacks, and needs both ends for that.
pub const FRAMES_MAX: usize = 2048;
/// Rows kept. A row takes about 150 bytes; a large service visits some thousands of addresses.
const ROWS_MAX: usize = 32_768;
/// Mappings opened ahead by [`NativeUnwinder::prepare`].
const PREPARED_MAX: usize = 256;

/// A native frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NativeFrame {
    /// The address to look up: a return address already minus one.
    pub address: u64,
    /// The frame is at this very instruction: the leaf, a frame interrupted by a signal, or the code
    /// that a signal handler returns to.
    pub is_exact: bool,
}

/// A native stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwound {
    /// The frames, innermost first.
    pub frames: Vec<NativeFrame>,
    /// How the walk ended.
    pub end: UnwindEnd,
}

impl Unwound {
    /// The lookup addresses, innermost first.
    #[must_use]
    pub fn addresses(&self) -> Vec<u64> {
        self.frames.iter().map(|frame| frame.address).collect()
    }
}

/// Unwinds the native stacks of any number of processes.
pub struct NativeUnwinder {
    arch: &'static Arch,
    modules: Modules,
    /// By table and address; `None` where no unwind information covers the address.
    rows: HashMap<(u32, u64), Option<Row>>,
    context: Box<UnwindContext<usize>>,
}

impl Default for NativeUnwinder {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for NativeUnwinder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeUnwinder").finish_non_exhaustive()
    }
}

impl NativeUnwinder {
    /// An unwinder that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::for_arch(Arch::HOST)
    }

    /// An unwinder for stacks that were recorded on some machine.
    #[must_use]
    pub fn for_arch(arch: &'static Arch) -> Self {
        Self {
            arch,
            modules: Modules::default(),
            rows: HashMap::new(),
            context: Box::default(),
        }
    }

    /// Reads the unwind information of what the process has mapped, so that the first stack does not
    /// wait for it.
    pub fn prepare(&mut self, process: &Process) {
        for index in 0..process.mappings.as_slice().len().min(PREPARED_MAX) {
            self.modules.table(process, index);
        }
    }

    /// Drops what is remembered about a process.
    pub fn forget(&mut self, process: ProcessKey) {
        self.modules.forget(process);
    }

    /// Walks a stack from its leaf to its root.
    ///
    /// `beyond` serves what the copied bytes lack: the rest of a cut stack, other stacks. Allow it
    /// for threads that have not run since their registers were stored, or where a stack that is
    /// wrong near its root is better than one that lacks it.
    pub fn unwind(
        &mut self,
        process: &mut Process,
        captured: &Captured,
        beyond: Option<&dyn ReadMemory>,
    ) -> Unwound {
        let arch = self.arch;
        let mut walk = Walk {
            arch,
            unwinder: self,
            process,
            memory: StackMemory::new(&captured.stack, beyond),
            registers: Registers::from_pt_regs(arch, &captured.regs),
            is_exact: true,
            frames: Vec::with_capacity(64),
        };
        let end = if arch.is_native(&captured.regs) {
            if arch.may_be_in_sigreturn(&captured.regs) {
                walk.back_to_sigreturn();
            }
            walk.run()
        } else {
            walk.push(walk.registers.pc, true);
            UnwindEnd::NoUnwindInfo
        };
        Unwound {
            frames: walk.frames,
            end,
        }
    }

    /// Makes sure that the row is in `rows`.
    fn cache_row(&mut self, table: &UnwindTable, address: u64) {
        if self.rows.len() >= ROWS_MAX {
            self.rows.clear();
        }
        self.rows
            .entry((table.id, address))
            .or_insert_with(|| table.row(self.arch, &mut self.context, address));
    }
}

/// One walk.
struct Walk<'w> {
    arch: &'static Arch,
    unwinder: &'w mut NativeUnwinder,
    process: &'w mut Process,
    memory: StackMemory<'w>,
    registers: Registers,
    /// `registers.pc` is where the frame is, not where it will return to.
    is_exact: bool,
    frames: Vec<NativeFrame>,
}

impl Walk<'_> {
    fn run(&mut self) -> UnwindEnd {
        loop {
            if self.frames.len() >= FRAMES_MAX {
                return UnwindEnd::TooDeep;
            }
            if let Err(end) = self.step() {
                return end;
            }
        }
    }

    fn push(&mut self, address: u64, is_exact: bool) {
        self.frames.push(NativeFrame { address, is_exact });
    }

    /// Adds the current frame and moves to its caller.
    fn step(&mut self) -> Result<(), UnwindEnd> {
        let pc = self.registers.pc;
        let is_leaf = self.frames.is_empty();
        let lookup = if self.is_exact {
            pc
        } else {
            pc.wrapping_sub(1)
        };
        let Some((table, address)) = self.locate(lookup) else {
            // Not code: the leaf may have jumped there, a return address is misread.
            if is_leaf {
                self.push(pc, true);
            }
            return Err(UnwindEnd::NoUnwindInfo);
        };
        if let Some(table) = &table {
            self.unwinder.cache_row(table, address);
        }
        let row = table.as_ref().and_then(|table| {
            let row = self.unwinder.rows.get(&(table.id, address))?;
            row.as_ref().map(|row| (row, table))
        });
        let row = row.filter(|(row, _)| !row.lacks_sp(&self.registers));
        let (caller, is_signal) = match row {
            Some((row, table)) => {
                let is_signal = row.is_signal;
                let caller = row.caller(&self.registers, &self.memory, table.eh_frame());
                (caller, is_signal)
            }
            None if self.is_sigreturn(pc) => (self.interrupted(), true),
            None => (self.frame_pointer_caller(), false),
        };
        // The return address of a signal handler is the first byte of the code that ends it.
        if is_signal {
            self.push(pc, true);
        } else {
            self.push(lookup, self.is_exact);
        }
        let caller = caller?;
        if caller.pc == 0 {
            return Err(UnwindEnd::Root);
        }
        let sp = self.registers.sp();
        // A function that a signal interrupted may be a leaf as well.
        let may_be_empty = self.arch.leaf_may_be_empty && self.is_exact && caller.pc != pc;
        if caller.sp() < sp && !is_signal || caller.sp() == sp && !is_signal && !may_be_empty {
            return Err(UnwindEnd::Unreadable);
        }
        self.registers = caller;
        self.is_exact = is_signal;
        Ok(())
    }

    /// The unwind table for a pc, if there is one, and the pc's address in the object; `None` if the
    /// pc is not in executable memory.
    fn locate(&mut self, pc: u64) -> Option<(Option<Arc<UnwindTable>>, u64)> {
        let index = match self.process.mappings.index_of(pc) {
            Some(index) => index,
            None if self.process.refresh_mappings() => self.process.mappings.index_of(pc)?,
            None => return None,
        };
        let mapping = &self.process.mappings.as_slice()[index];
        let file_offset = (pc - mapping.start).wrapping_add(mapping.file_offset);
        let table = self.unwinder.modules.table(self.process, index);
        match table.and_then(|table| Some((table.address_of(file_offset)?, table))) {
            Some((address, table)) => Some((Some(table), address)),
            None => Some((None, pc)),
        }
    }

    /// In `rt_sigreturn` the saved pc points past the restorer, into an unrelated function that the thread never
    /// runs: looks up the restorer instead.
    fn back_to_sigreturn(&mut self) {
        let code_bytes = self.arch.sigreturn_code.len() as u64;
        let start = self.registers.pc.wrapping_sub(code_bytes);
        if self.is_sigreturn(start) {
            self.registers.pc = start;
        }
    }

    /// Whether the code that ends a signal handler begins there.
    fn is_sigreturn(&self, pc: u64) -> bool {
        let expected = self.arch.sigreturn_code;
        let mut buffer = [0; 16];
        let code = &mut buffer[..expected.len()];
        // Code does not change: live memory will do.
        let is_read =
            self.memory.read(pc, code).is_ok() || self.process.memory.read_exact(pc, code).is_ok();
        is_read && code == expected
    }

    /// The registers that the kernel saved when it ran a signal handler.
    fn interrupted(&self) -> Result<Registers, UnwindEnd> {
        let mut registers = self.registers;
        let start = self.registers.sp().wrapping_add(self.arch.signal_registers);
        for (index, &number) in self.arch.signal_order.iter().enumerate() {
            let value = self.memory.read_u64(start.wrapping_add(8 * index as u64))?;
            registers.set(number, Some(value));
            // The pc is the last one.
            registers.pc = value;
        }
        Ok(registers)
    }

    /// The frame record that the frame pointer points to: the caller's, and the return address.
    fn frame_pointer_caller(&self) -> Result<Registers, UnwindEnd> {
        let fp = self.registers.get(self.arch.fp);
        let fp = fp.ok_or(UnwindEnd::NoUnwindInfo)?;
        if fp == 0 {
            return Err(UnwindEnd::Root);
        }
        if fp < self.registers.sp() || fp % 8 != 0 {
            return Err(UnwindEnd::NoUnwindInfo);
        }
        let read = |offset| match self.memory.read_u64(fp.wrapping_add(offset)) {
            // It was not a frame pointer.
            Err(UnwindEnd::Unreadable) => Err(UnwindEnd::NoUnwindInfo),
            read => read,
        };
        let (caller_fp, return_address) = (read(0)?, read(8)?);
        let arch = self.arch;
        let mut caller = Registers::unknown(arch);
        caller.set(arch.fp, Some(caller_fp));
        let record_end = fp.wrapping_add(16);
        if arch.frame_record_is_last {
            caller.set(arch.sp, Some(record_end));
        } else {
            caller.set_least_sp(record_end);
        }
        caller.set(arch.return_address, Some(return_address));
        caller.pc = arch.code_address(return_address);
        Ok(caller)
    }
}
