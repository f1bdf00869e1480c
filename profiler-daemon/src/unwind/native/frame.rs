//! One step of the walk: registers of a frame to registers of its caller.

use gimli::{
    CfaRule, EndianSlice, EvaluationResult, Location, NativeEndian, Register, RegisterRule, Value,
};
use profiler_common::REGS_MAX;

/// DWARF registers of x86_64 followed here: `rax` (0) to `r15` (15) and the return address (16),
/// System V ABI AMD64, figure 3.36.
const REGISTERS: usize = 17;
/// `rbp`.
const BP: usize = 6;
/// `rsp`.
pub(super) const SP: usize = 7;
/// Return address column.
const RA: usize = 16;
/// Word of `struct pt_regs` for each DWARF register (arch/x86/include/asm/ptrace.h, v6.1).
const PT_REGS_WORD: [usize; REGISTERS] = [10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16];
/// Most operations of one DWARF expression.
const EXPRESSION_STEPS_MAX: u32 = 256;

/// How to find the caller from an address: a row of the call frame table, detached from its section.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) cfa: Cfa,
    pub(super) rules: Vec<(usize, Rule)>,
    /// The frame is that of a signal: its caller's address is exact.
    pub(super) is_signal: bool,
    pub(super) encoding: gimli::Encoding,
}

#[derive(Clone, Debug)]
pub(super) enum Cfa {
    Offset(usize, i64),
    Expression(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) enum Rule {
    Undefined,
    Offset(i64),
    ValOffset(i64),
    Register(usize),
    Expression(Vec<u8>),
    ValExpression(Vec<u8>),
    Constant(u64),
}

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Caller,
    Root,
    Failed,
}

/// Registers of a frame; `None` is not known.
#[derive(Clone, Debug)]
pub(super) struct Registers([Option<u64>; REGISTERS]);

impl Row {
    /// Copies a row out of its section; `None` if it needs what is not followed here.
    pub(super) fn from_gimli(
        row: &gimli::UnwindTableRow<usize>,
        expression: impl Fn(&gimli::UnwindExpression<usize>) -> Option<Vec<u8>>,
        is_signal: bool,
        encoding: gimli::Encoding,
    ) -> Option<Self> {
        let index = |register: Register| Some(usize::from(register.0)).filter(|&r| r < REGISTERS);
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                Cfa::Offset(index(*register)?, *offset)
            }
            CfaRule::Expression(e) => Cfa::Expression(expression(e)?),
        };
        let mut rules = Vec::new();
        for (register, rule) in row.registers() {
            let Some(register) = index(*register) else {
                continue;
            };
            let rule = match rule {
                RegisterRule::Undefined => Rule::Undefined,
                RegisterRule::Offset(n) => Rule::Offset(*n),
                RegisterRule::ValOffset(n) => Rule::ValOffset(*n),
                RegisterRule::Register(r) => Rule::Register(index(*r)?),
                RegisterRule::Expression(e) => Rule::Expression(expression(e)?),
                RegisterRule::ValExpression(e) => Rule::ValExpression(expression(e)?),
                RegisterRule::Constant(n) => Rule::Constant(*n),
                _ => continue,
            };
            rules.push((register, rule));
        }
        Some(Self {
            cfa,
            rules,
            is_signal,
            encoding,
        })
    }
}

impl Registers {
    /// User registers of a sample. `None` on an architecture whose frames are not followed.
    pub(super) fn from_pt_regs(words: &[u64; REGS_MAX]) -> Option<Self> {
        cfg!(target_arch = "x86_64").then(|| Self(PT_REGS_WORD.map(|word| Some(words[word]))))
    }

    pub(super) fn ip(&self) -> Option<u64> {
        self.0[RA]
    }

    pub(super) fn get(&self, register: usize) -> Option<u64> {
        self.0[register]
    }

    /// Goes to the caller by a row.
    pub(super) fn apply(&mut self, row: &Row, read: impl Fn(u64) -> Option<u64>) -> Step {
        let cfa = match &row.cfa {
            Cfa::Offset(register, offset) => {
                self.0[*register].map(|base| base.wrapping_add_signed(*offset))
            }
            Cfa::Expression(bytes) => self.evaluate(bytes, row.encoding, None, &read),
        };
        let Some(cfa) = cfa else { return Step::Failed };
        let mut caller = self.clone();
        caller.0[RA] = None;
        caller.0[SP] = Some(cfa);
        let mut undefined_return = false;
        for (register, rule) in &row.rules {
            let value = match rule {
                Rule::Undefined => {
                    undefined_return |= *register == RA;
                    None
                }
                Rule::Offset(n) => read(cfa.wrapping_add_signed(*n)),
                Rule::ValOffset(n) => Some(cfa.wrapping_add_signed(*n)),
                Rule::Register(other) => self.0[*other],
                Rule::Expression(bytes) => self
                    .evaluate(bytes, row.encoding, Some(cfa), &read)
                    .and_then(&read),
                Rule::ValExpression(bytes) => self.evaluate(bytes, row.encoding, Some(cfa), &read),
                Rule::Constant(n) => Some(*n),
            };
            caller.0[*register] = value;
        }
        if undefined_return {
            return Step::Root;
        }
        let Some(ip) = caller.0[RA] else {
            return Step::Failed;
        };
        *self = caller;
        if ip == 0 { Step::Root } else { Step::Caller }
    }

    /// Goes to the caller by the frame record at `rbp`: saved `rbp`, then the return address.
    pub(super) fn step_frame_pointer(&mut self, read: impl Fn(u64) -> Option<u64>) -> Step {
        let (Some(bp), Some(sp)) = (self.0[BP], self.0[SP]) else {
            return Step::Failed;
        };
        if bp == 0 {
            return Step::Root;
        }
        if bp < sp || bp % 8 != 0 {
            return Step::Failed;
        }
        let (Some(caller_bp), Some(ip)) = (read(bp), read(bp.wrapping_add(8))) else {
            return Step::Failed;
        };
        self.0 = [None; REGISTERS];
        self.0[BP] = Some(caller_bp);
        self.0[SP] = Some(bp.wrapping_add(16));
        self.0[RA] = Some(ip);
        if ip == 0 { Step::Root } else { Step::Caller }
    }

    fn evaluate(
        &self,
        bytes: &[u8],
        encoding: gimli::Encoding,
        initial: Option<u64>,
        read: &impl Fn(u64) -> Option<u64>,
    ) -> Option<u64> {
        let expression = gimli::Expression(EndianSlice::new(bytes, NativeEndian));
        let mut evaluation = expression.evaluation(encoding);
        evaluation.set_max_iterations(EXPRESSION_STEPS_MAX);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut result = evaluation.evaluate().ok()?;
        // Each request for memory or a register is one operation, so the limit above bounds this too.
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory {
                    address, size: 8, ..
                } => evaluation
                    .resume_with_memory(Value::Generic(read(address)?))
                    .ok()?,
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = self.0.get(usize::from(register.0)).copied().flatten()?;
                    evaluation
                        .resume_with_register(Value::Generic(value))
                        .ok()?
                }
                _ => return None,
            };
        }
        match evaluation.result().first()?.location {
            Location::Address { address } => Some(address),
            _ => None,
        }
    }
}
