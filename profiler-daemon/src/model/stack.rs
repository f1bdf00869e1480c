//! Stacks and frames, innermost first.

use std::sync::Arc;

use profiler_common::PythonFrameRecord;

/// Frames of one thread at one instant, innermost (leaf) first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stack<F> {
    /// The frames.
    pub frames: Vec<F>,
    /// How the walk ended.
    pub end: UnwindEnd,
}

/// Why unwinding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnwindEnd {
    /// The outermost frame was reached.
    Root,
    /// The stack bytes ran out before the outermost frame.
    StackCut,
    /// No unwind information covers an address.
    NoUnwindInfo,
    /// A rule needed memory or a register that was not there.
    Unreadable,
    /// The frame limit was reached.
    TooDeep,
}

/// A frame before symbolization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddrFrame {
    /// Kernel address.
    Kernel(u64),
    /// User address: the address to look up (a return address already minus one).
    Native(u64),
    /// CPython frame.
    Python(PythonRef),
}

/// Key of a Python frame: code object and instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PythonRef {
    /// Address of the code object.
    pub code: u64,
    /// Address of the last instruction.
    pub instr: u64,
    /// The code object's identity when the frame was read, 0 if unknown.
    pub identity: u32,
}

impl From<&PythonFrameRecord> for PythonRef {
    fn from(record: &PythonFrameRecord) -> Self {
        Self {
            code: record.code,
            instr: record.instr,
            identity: record.identity,
        }
    }
}

/// What kind of code a frame runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Kernel.
    Kernel,
    /// What the thread is in inside the kernel, in one frame: `[system call read]`.
    Activity,
    /// Machine code of the process.
    Native,
    /// Machine code that starts threads and enters the kernel for others: the C library, the vDSO.
    CLibrary,
    /// Machine code of an interpreter or virtual machine itself.
    RuntimeInternal,
    /// A function of the language that is machine code of the interpreter, under its name in the language.
    Builtin,
    /// CPython bytecode.
    Python,
    /// The mark that stands for frames left out (`...`).
    Elided,
}

/// A symbolized frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The code signature sent to OAP: stable while the function runs.
    pub signature: Arc<str>,
    /// Kind of code.
    pub kind: FrameKind,
    /// Name in the language of a function of the interpreter's own code, such as `time.sleep` for
    /// `time_sleep (libpython3.12.so.1.0)`: see [`crate::frames`].
    pub label: Option<Arc<str>>,
}

impl Frame {
    /// A frame without a label.
    #[must_use]
    pub fn new(signature: impl Into<Arc<str>>, kind: FrameKind) -> Self {
        Self {
            signature: signature.into(),
            kind,
            label: None,
        }
    }
}
