//! Evaluates the DWARF expressions of unwind rules.
//!
//! In:  expression bytes, registers, memory
//! Out: an address or a value
//! Lost: an operation that no unwind rule may use is [`UnwindEnd::NoUnwindInfo`]
//!
//! They appear where a register plus an offset is not enough: in procedure linkage tables, where the
//! offset depends on the pc; in functions that align their stack, which keep the caller's sp in
//! memory; in signal frames; in hand-written assembly of cryptographic libraries.

use gimli::{
    Encoding, EndianSlice, Evaluation, EvaluationResult, Expression, Format, Location,
    NativeEndian, Piece, Value,
};

use super::arch::Registers;
use super::stack_memory::StackMemory;
use crate::model::UnwindEnd;

/// Real expressions have at most a dozen operations; a loop must end.
const OPERATIONS_MAX: u32 = 256;

const ENCODING: Encoding = Encoding {
    address_size: 8,
    format: Format::Dwarf32,
    version: 4,
};

/// The result of an expression that starts with `initial` on its stack.
pub(super) fn evaluate(
    bytes: &[u8],
    initial: Option<u64>,
    registers: &Registers,
    memory: &StackMemory<'_>,
) -> Result<u64, UnwindEnd> {
    let malformed = |_| UnwindEnd::NoUnwindInfo;
    let expression = Expression(EndianSlice::new(bytes, NativeEndian));
    let mut evaluation = expression.evaluation(ENCODING);
    evaluation.set_max_iterations(OPERATIONS_MAX);
    if let Some(value) = initial {
        evaluation.set_initial_value(value);
    }
    let mut state = evaluation.evaluate().map_err(malformed)?;
    loop {
        state = match state {
            EvaluationResult::Complete => return result(&evaluation),
            EvaluationResult::RequiresMemory { address, size, .. } => {
                let value = Value::Generic(memory.read_uint(address, size)?);
                evaluation.resume_with_memory(value)
            }
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = registers.get(register.0).ok_or(UnwindEnd::Unreadable)?;
                evaluation.resume_with_register(Value::Generic(value))
            }
            _ => return Err(UnwindEnd::NoUnwindInfo),
        }
        .map_err(malformed)?;
    }
}

fn result(evaluation: &Evaluation<EndianSlice<'_, NativeEndian>>) -> Result<u64, UnwindEnd> {
    match evaluation.as_result() {
        [
            Piece {
                location:
                    Location::Address { address }
                    | Location::Value {
                        value: Value::Generic(address),
                    },
                ..
            },
        ] => Ok(*address),
        _ => Err(UnwindEnd::NoUnwindInfo),
    }
}

#[cfg(test)]
mod tests {
    use super::super::arch::Arch;
    use super::*;
    use crate::model::StackBytes;

    const DEREF: u8 = 0x06;
    const LIT0: u8 = 0x30;
    const BREG0: u8 = 0x70;
    const SKIP: u8 = 0x2f;
    const STACK_VALUE: u8 = 0x9f;
    const CALL_FRAME_CFA: u8 = 0x9c;

    fn run(bytes: &[u8], initial: Option<u64>) -> Result<u64, UnwindEnd> {
        let stack = StackBytes {
            sp: 0x1000,
            skipped: 0,
            bytes: [0x77_u64, 0x88].map(u64::to_ne_bytes).concat(),
            cut: false,
        };
        let mut registers = Registers::from_pt_regs(Arch::HOST, &[0; profiler_common::REGS_MAX]);
        registers.set(Arch::HOST.sp, Some(0x1000));
        registers.set(0, None);
        let memory = StackMemory::new(&stack, None);
        evaluate(bytes, initial, &registers, &memory)
    }

    /// Check that registers, memory and the initial value are used.
    #[test]
    fn registers_and_memory_are_read() {
        let sp = BREG0 + u8::try_from(Arch::HOST.sp).unwrap();
        assert_eq!(run(&[sp, 8], None), Ok(0x1008));
        assert_eq!(run(&[sp, 8, DEREF], None), Ok(0x88));
        assert_eq!(run(&[DEREF], Some(0x1000)), Ok(0x77));
        assert_eq!(run(&[LIT0 + 5, STACK_VALUE], None), Ok(5));
    }

    /// Check that what cannot be evaluated is an error, and that a loop ends.
    #[test]
    fn bad_expressions_are_errors() {
        let endless = [SKIP, 0xfd, 0xff];
        for bytes in [&[0xff][..], &[DEREF], &endless, &[CALL_FRAME_CFA], &[]] {
            assert_eq!(run(bytes, None), Err(UnwindEnd::NoUnwindInfo), "{bytes:?}");
        }
        assert_eq!(run(&[BREG0, 0], None), Err(UnwindEnd::Unreadable));
        assert_eq!(run(&[DEREF], Some(0x2000)), Err(UnwindEnd::Unreadable));
    }
}
