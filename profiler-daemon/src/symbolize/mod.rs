//! Turns stacks of addresses into stacks of names.
//!
//! In:  [`Stack`]s of [`AddrFrame`]s from [`crate::unwind`]; symbol tables, perf maps, kallsyms,
//!      Python code objects
//! Out: [`Stack`]s of [`Frame`]s, whose signatures OAP compares and people read
//! Lost: functions without a name, also those shown by their address -> `Counter::FramesUnknown`; the middle of deep stacks ->
//!       `Counter::StacksTooDeep`; Python frames without an interpreter ->
//!       `Counter::PythonNameUnreadable`
//!
//! Names are kept per process and address until its mappings change: a sampled thread visits the same
//! addresses again and again, and the second time costs one lookup.
//!
//! This is the only module that knows blazesym. It gets copies of symbol tables, never a file that
//! another user could truncate under it (`symbol_copy.rs`).
//!
//! # What stands for what
//! | code | signature |
//! |---|---|
//! | a function | `parse (server)`; `parse (a/x.so)` if the process has another `x.so` |
//! | a function that was inlined into the next one | `digit (inlined) (server)` |
//! | a function without a name | `libx.so+0x1234`, its first address in the object |
//! | code that nothing describes | `[unknown] (libx.so)`: an address of each instruction would make it many functions |
//! | generated code, with and without a perf map | `handler [jit]`, `[unknown] [jit]` |
//! | an address that is not mapped | `[unknown]` |

mod debug_file;
mod demangle;
mod depth;
mod dwarf;
mod kernel_symbols;
mod long_name;
mod object_name;
mod object_symbols;
mod perf_file;
mod perf_map;
mod signature;
mod symbol_copy;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

pub use depth::STACK_FRAMES_MAX;

use crate::frames::FrameSet;
use crate::model::{AddrFrame, Counter, Coverage, Frame, FrameKind, ProcessKey, Stack, UnwindEnd};
use crate::process::python::{CodeSignature, MethodTables, OwnCode, PythonNamer};
use crate::process::{Mapping, Process};
use kernel_symbols::KernelSymbols;
use object_name::ObjectNames;
use object_symbols::{CodeName, Function, ObjectSymbols};
use perf_file::PerfMaps;

#[cfg(feature = "fuzzing")]
pub(crate) use {dwarf::DebugInfo, perf_map::PerfMap};

/// The signature of a function with this symbol.
#[cfg(feature = "fuzzing")]
pub(crate) fn shown_symbol(symbol: &str) -> Arc<str> {
    signature::native(Some(&demangle::demangle(symbol)), "")
}

/// Names kept per process.
const NAMES_MAX: usize = 65_536;
/// Mappings read ahead by [`Symbolizer::prepare`].
const PREPARED_MAX: usize = 256;
/// Shown for kernel frames where the kernel hides its addresses.
const KERNEL_HIDDEN: &str = "[kernel]";
/// The object of generated code.
const JIT_OBJECT: &str = "[jit]";

/// Symbolizes the stacks of any number of processes. Belongs to one thread: blazesym's caches cannot
/// be sent to another.
pub struct Symbolizer {
    objects: ObjectSymbols,
    kernel: KernelSymbols,
    kernel_names: HashMap<u64, Name>,
    processes: HashMap<ProcessKey, ProcessNames>,
    perf_maps: PerfMaps,
    python: PythonNamer,
    methods: MethodTables,
    shown: FrameSet,
    deadline: Option<Instant>,
}

/// A name once found.
#[derive(Clone)]
struct Name {
    /// The function's, after those of functions inlined into it, innermost first.
    frames: Arc<[Frame]>,
    is_unknown: bool,
}

impl Name {
    fn new(signature: Arc<str>, kind: FrameKind, is_unknown: bool) -> Self {
        Self {
            frames: [Frame::new(signature, kind)].into(),
            is_unknown,
        }
    }

    /// Of code of an object. What is inlined into a function is of its kind.
    fn of_code(code: &CodeName, object: &str, kind: FrameKind, label: Option<Arc<str>>) -> Self {
        let signature = match &code.function {
            Function::Named(name) => signature::native(Some(name), object),
            Function::At(address) => signature::unnamed(object, *address),
            Function::Unknown => signature::native(None, object),
        };
        let function = Frame {
            label,
            ..Frame::new(signature, kind)
        };
        let inlined = code.inlined.iter();
        let inlined = inlined.map(|name| Frame::new(signature::inlined(name, object), kind));
        Self {
            frames: inlined.chain([function]).collect(),
            is_unknown: code.name().is_none(),
        }
    }
}

struct ProcessNames {
    generation: u64,
    names: HashMap<u64, Name>,
    objects: ObjectNames,
    /// The interpreter's own code, once an address was asked for.
    own_code: Option<OwnCode>,
}

impl ProcessNames {
    fn own_code(&mut self, process: &Process) -> &OwnCode {
        self.own_code.get_or_insert_with(|| {
            let python = process.python.as_ref();
            python.map_or_else(OwnCode::default, |python| OwnCode::read(process, python))
        })
    }
}

impl std::fmt::Debug for Symbolizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Symbolizer").finish_non_exhaustive()
    }
}

impl Symbolizer {
    /// A symbolizer that has seen nothing yet; `signature` is the form of Python frames.
    #[must_use]
    pub fn new(signature: CodeSignature) -> Self {
        Self {
            objects: ObjectSymbols::new(),
            kernel: KernelSymbols::default(),
            kernel_names: HashMap::new(),
            processes: HashMap::new(),
            perf_maps: PerfMaps::new(),
            python: PythonNamer::new(signature),
            methods: MethodTables::default(),
            shown: FrameSet::All,
            deadline: None,
        }
    }

    /// Sets when to stop looking for names: what has none by then stays without one for this time.
    pub fn stop_at(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Whether the time that [`Self::stop_at`] has set is over.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The frames that will be shown of the stacks; a name that is missing elsewhere is no loss.
    #[must_use]
    pub fn showing(self, shown: FrameSet) -> Self {
        Self { shown, ..self }
    }

    /// Whether frames of a kind are shown, as far as the kind alone decides.
    fn is_shown(&self, kind: FrameKind) -> bool {
        match self.shown {
            FrameSet::All => true,
            FrameSet::Application => kind == FrameKind::Native,
        }
    }

    /// Reads the symbols of the kernel and of what the process has mapped, so that the first stack
    /// does not wait for them, as far as there is time.
    pub fn prepare(&mut self, process: &Process) {
        // Tables are put into order at the first question.
        self.kernel.find(0);
        for mapping in process.mappings.as_slice().iter().take(PREPARED_MAX) {
            if self.is_late() {
                break;
            }
            self.objects.name(process, mapping, mapping.start);
        }
        self.check_names(process);
        if let Some(known) = self.processes.get_mut(&process.key) {
            let own_code = known.own_code(process);
            own_code.prepare(&process.memory, &mut self.methods);
        }
    }

    /// Drops what is remembered about a process. Symbols stay, for the next process with the same
    /// files.
    pub fn forget(&mut self, process: ProcessKey) {
        self.processes.remove(&process);
        self.perf_maps.forget(process);
        self.python.forget(process);
    }

    /// Drops all symbols and names: the last task has ended.
    pub fn release(&mut self) {
        self.objects.release();
        self.kernel = KernelSymbols::default();
        self.kernel_names = HashMap::new();
        let processes = std::mem::take(&mut self.processes);
        for process in processes.into_keys() {
            self.python.forget(process);
        }
        self.perf_maps = PerfMaps::new();
        self.methods = MethodTables::default();
    }

    /// Names the frames of a stack, and counts what could not be named or was left out.
    pub fn symbolize(
        &mut self,
        process: &Process,
        stack: &Stack<AddrFrame>,
        losses: &mut Coverage,
    ) -> Stack<Frame> {
        self.check_names(process);
        let mut frames = Vec::with_capacity(stack.frames.len());
        for frame in &stack.frames {
            let name = match *frame {
                AddrFrame::Kernel(address) => self.kernel_name(address, losses),
                AddrFrame::Native(address) => self.native_name(process, address),
                AddrFrame::Python(python) => {
                    match &process.python {
                        Some(runtime) => {
                            let memory = &process.memory;
                            frames.extend(self.python.frame(memory, runtime, python, losses));
                        }
                        None => losses.bump(Counter::PythonNameUnreadable),
                    }
                    continue;
                }
            };
            let function = name.frames.last();
            if name.is_unknown && function.is_some_and(|frame| self.is_shown(frame.kind)) {
                losses.bump(Counter::FramesUnknown);
            }
            frames.extend(name.frames.iter().cloned());
        }
        // A walk that did not reach the root for its depth was counted when it ended.
        if depth::limit(&mut frames) && stack.end != UnwindEnd::TooDeep {
            losses.bump(Counter::StacksTooDeep);
        }
        Stack {
            frames,
            end: stack.end,
        }
    }

    /// Throws away names that no longer hold.
    fn check_names(&mut self, process: &Process) {
        let generation = process.mappings.generation();
        let entry = self.processes.entry(process.key);
        let known = entry.or_insert_with(|| {
            let mut objects = ObjectNames::default();
            objects.add(process.mappings.as_slice());
            ProcessNames {
                generation,
                names: HashMap::new(),
                objects,
                own_code: None,
            }
        });
        if known.generation != generation {
            known.objects.add(process.mappings.as_slice());
        }
        let is_recompiled = self.perf_maps.refresh(process.key);
        if known.generation != generation || is_recompiled || known.names.len() >= NAMES_MAX {
            known.generation = generation;
            known.names.clear();
            known.own_code = None;
        }
    }

    fn kernel_name(&mut self, address: u64, losses: &mut Coverage) -> Name {
        if let Some(name) = self.kernel_names.get(&address) {
            return name.clone();
        }
        let name = match self.kernel.find(address) {
            Some(symbol) => {
                let signature = signature::kernel(&symbol.function, symbol.module.as_deref());
                Name::new(signature, FrameKind::Kernel, false)
            }
            None => {
                if self.kernel.are_hidden() {
                    losses.note(
                        "kernel frames have no names: /proc/kallsyms hides addresses \
                         (sysctl kernel.kptr_restrict, or CAP_SYSLOG is missing)",
                    );
                }
                Name::new(Arc::from(KERNEL_HIDDEN), FrameKind::Kernel, true)
            }
        };
        if self.kernel_names.len() >= NAMES_MAX {
            self.kernel_names.clear();
        }
        self.kernel_names.insert(address, name.clone());
        name
    }

    fn native_name(&mut self, process: &Process, address: u64) -> Name {
        let known = self.processes.get_mut(&process.key);
        if let Some(name) = known.as_ref().and_then(|known| known.names.get(&address)) {
            return name.clone();
        }
        if self.is_late() {
            return Name::new(signature::native(None, ""), FrameKind::Native, true);
        }
        let name = match process.mappings.find(address) {
            Some(mapping) if mapping.is_file() || mapping.is_vdso() => {
                let code = self.objects.name(process, mapping, address);
                let (kind, label) = self.kind(process, mapping, address, code.name());
                let known = self.processes.get(&process.key);
                let object = known.map_or(mapping.file_name(), |known| known.objects.of(mapping));
                Name::of_code(&code, object, kind, label)
            }
            // Anonymous memory: generated code.
            Some(_) => {
                let function = self.perf_maps.find(process.key, address);
                let signature = signature::native(function, JIT_OBJECT);
                Name::new(signature, FrameKind::Native, function.is_none())
            }
            None => Name::new(signature::native(None, ""), FrameKind::Native, true),
        };
        if let Some(known) = self.processes.get_mut(&process.key) {
            known.names.insert(address, name.clone());
        }
        name
    }

    /// What kind of code lies at an address of an object, and what its function is called in the language
    /// whose interpreter it belongs to.
    fn kind(
        &mut self,
        process: &Process,
        mapping: &Mapping,
        address: u64,
        function: Option<&str>,
    ) -> (FrameKind, Option<Arc<str>>) {
        if let Some(known) = self.processes.get_mut(&process.key) {
            let own_code = known.own_code(process);
            if own_code.contains(address) {
                let label = own_code.label(&process.memory, &mut self.methods, address, function);
                return (FrameKind::RuntimeInternal, label);
            }
        }
        if mapping.is_c_library() || mapping.is_vdso() {
            (FrameKind::CLibrary, None)
        } else {
            (FrameKind::Native, None)
        }
    }
}
