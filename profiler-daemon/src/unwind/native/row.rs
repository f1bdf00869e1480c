//! What the unwind information says about one address, and how it gives the caller's registers.
//!
//! In:  a row of gimli's unwind table; the registers of a frame
//! Out: [`Row`], small enough to be kept by the thousand; the registers of the calling frame
//! Lost: nothing

use std::ops::Range;

use gimli::{CfaRule, RegisterRule, UnwindExpression, UnwindTableRow};

use super::arch::{Arch, Registers};
use super::expression::evaluate;
use super::stack_memory::StackMemory;
use crate::model::UnwindEnd;

/// How to get from one frame to the one that called it.
#[derive(Debug)]
pub(super) struct Row {
    cfa: Cfa,
    /// Registers that do not keep their value. Those without a rule here do.
    rules: Box<[(u16, Rule)]>,
    /// The return address is undefined: nobody called.
    is_root: bool,
    /// The frame was pushed by the kernel for a signal: its caller was interrupted and did not call.
    pub(super) is_signal: bool,
}

/// Bytes of a DWARF expression in the object's `.eh_frame`.
type Expression = Range<u32>;

#[derive(Debug)]
enum Cfa {
    Register(u16, i64),
    Expression(Expression),
}

#[derive(Debug)]
enum Rule {
    Undefined,
    /// Saved at CFA + n.
    Saved(i64),
    /// Is CFA + n.
    Cfa(i64),
    Register(u16),
    SavedAt(Expression),
    Is(Expression),
    Constant(u64),
}

impl Row {
    /// Keeps what is needed of gimli's row.
    pub(super) fn new(arch: &Arch, row: &UnwindTableRow<usize>, is_signal: bool) -> Option<Self> {
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => Cfa::Register(register.0, *offset),
            CfaRule::Expression(expression) => Cfa::Expression(range(expression)?),
        };
        let mut rules = Vec::new();
        let mut is_root = false;
        for (register, rule) in row.registers() {
            if usize::from(register.0) >= arch.count {
                continue;
            }
            let rule = match rule {
                RegisterRule::Undefined => {
                    is_root |= register.0 == arch.return_address;
                    Rule::Undefined
                }
                RegisterRule::SameValue => continue,
                RegisterRule::Offset(offset) => Rule::Saved(*offset),
                RegisterRule::ValOffset(offset) => Rule::Cfa(*offset),
                RegisterRule::Register(other) => Rule::Register(other.0),
                RegisterRule::Expression(expression) => Rule::SavedAt(range(expression)?),
                RegisterRule::ValExpression(expression) => Rule::Is(range(expression)?),
                RegisterRule::Constant(value) => Rule::Constant(*value),
                RegisterRule::Architectural => return None,
            };
            rules.push((register.0, rule));
        }
        Some(Self {
            cfa,
            rules: rules.into_boxed_slice(),
            is_root,
            is_signal,
        })
    }

    /// Whether the stack pointer, from which the row counts, is not known: [`Arch::frame_record_is_last`].
    pub(super) fn lacks_sp(&self, registers: &Registers) -> bool {
        let sp = registers.arch.sp;
        matches!(self.cfa, Cfa::Register(register, _) if register == sp)
            && registers.get(sp).is_none()
    }

    /// The registers of the caller. `eh_frame` is the section that the row comes from.
    ///
    /// # Errors
    ///
    /// [`UnwindEnd::Root`] if there is no caller; otherwise what stands in the way.
    pub(super) fn caller(
        &self,
        registers: &Registers,
        memory: &StackMemory<'_>,
        eh_frame: &[u8],
    ) -> Result<Registers, UnwindEnd> {
        if self.is_root {
            return Err(UnwindEnd::Root);
        }
        let run = |expression: &Expression, initial| {
            let bytes = eh_frame
                .get(expression.start as usize..expression.end as usize)
                .ok_or(UnwindEnd::Unreadable)?;
            evaluate(bytes, initial, registers, memory)
        };
        let known = |number| registers.get(number).ok_or(UnwindEnd::Unreadable);
        let cfa = match &self.cfa {
            Cfa::Register(register, offset) => known(*register)?.wrapping_add_signed(*offset),
            Cfa::Expression(expression) => run(expression, None)?,
        };
        let arch = registers.arch;
        let mut caller = *registers;
        if !self.is_signal {
            caller.forget_scratch();
        }
        caller.set(arch.sp, Some(cfa));
        // Without a rule, the return address is where the architecture left it at the call.
        caller.set(arch.return_address, registers.get(arch.return_address));
        for (number, rule) in &self.rules {
            let read = match rule {
                Rule::Undefined => Ok(None),
                Rule::Saved(offset) => {
                    let slot = cfa.wrapping_add_signed(*offset);
                    match memory.read_u64(slot) {
                        // In epilogues the rule still stands when the register was popped.
                        Err(_) if slot < registers.sp() => Ok(registers.get(*number)),
                        read => read.map(Some),
                    }
                }
                Rule::Cfa(offset) => Ok(Some(cfa.wrapping_add_signed(*offset))),
                Rule::Register(other) => Ok(registers.get(*other)),
                Rule::SavedAt(expression) => run(expression, Some(cfa))
                    .and_then(|slot| memory.read_u64(slot))
                    .map(Some),
                Rule::Is(expression) => run(expression, Some(cfa)).map(Some),
                Rule::Constant(value) => Ok(Some(*value)),
            };
            let value = match read {
                Ok(value) => value,
                Err(end) if *number == arch.return_address => return Err(end),
                // Perhaps no caller needs it.
                Err(_) => None,
            };
            caller.set(*number, value);
        }
        let return_address = caller.get(arch.return_address);
        caller.pc = arch.code_address(return_address.ok_or(UnwindEnd::Unreadable)?);
        Ok(caller)
    }
}

fn range(expression: &UnwindExpression<usize>) -> Option<Expression> {
    let start = u32::try_from(expression.offset).ok()?;
    Some(start..start.checked_add(u32::try_from(expression.length).ok()?)?)
}

#[cfg(test)]
mod tests {
    use profiler_common::REGS_MAX;

    use super::*;

    fn row(cfa: Cfa) -> Row {
        Row {
            cfa,
            rules: Box::default(),
            is_root: false,
            is_signal: false,
        }
    }

    /// Check that a row that counts from the stack pointer is refused where only its bound is known, and no
    /// other row.
    #[test]
    fn a_row_needs_the_stack_pointer_it_counts_from() {
        let from_sp = row(Cfa::Register(Arch::HOST.sp, 16));
        let from_fp = row(Cfa::Register(Arch::HOST.fp, 16));
        let mut registers = Registers::from_pt_regs(Arch::HOST, &[0x1000; REGS_MAX]);
        assert!(!from_sp.lacks_sp(&registers));
        registers.set_least_sp(0x1000);
        assert!(from_sp.lacks_sp(&registers));
        assert!(!from_fp.lacks_sp(&registers));
    }
}
