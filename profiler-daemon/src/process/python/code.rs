//! Describes code objects: file, qualified name, first line, and the line of an instruction.
//!
//! In:  the address of a code object, from a [`PythonRef`]
//! Out: [`PythonCode`], remembered per process and address
//! Lost: unreadable or impossible objects are a [`CodeError`]
//!
//! # Why a fingerprint
//! A code object can be freed and its memory used for another one (lambdas, `exec`, reloaded
//! modules). Each lookup therefore reads the object's header again, one system call, and compares
//! the fields that tell code objects apart. Strings and line tables are read only when they differ.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::line_table::LineTable;
use super::modules::ProcessModules;
use super::string::read_unique_str;
use super::{CodeLayout, PythonRuntime, identity};
use crate::model::name::FUNCTION_MAX;
use crate::model::{ProcessKey, PythonRef};
use crate::process::ReadMemory;

/// Code objects remembered over all processes; about 300 bytes each.
const CODES_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
/// Longest file name kept whole, in UTF-16 units: `PATH_MAX`, so that each file that can be opened is found.
const FILE_UNITS_MAX: usize = 4096;
/// Largest line table decoded. Modules of generated tables reach 100 KB.
const LINE_TABLE_BYTES_MAX: usize = 1 << 20;
/// Longest header of a code object that a [`CodeLayout`] can ask for.
const HEADER_BYTES_MAX: usize = 1024;
/// Bytes of one code unit.
const CODE_UNIT_BYTES: u64 = 2;

/// What is known about a code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonCode {
    /// `co_filename`.
    pub file: Arc<str>,
    /// The module, derived from the file and from where the process imports; see `module.rs`.
    pub module: Arc<str>,
    /// `co_name`: the bare function name.
    pub name: Arc<str>,
    /// `co_qualname`: with classes and enclosing functions.
    pub qualname: Arc<str>,
    /// `co_firstlineno`: the line of `def`, or of its first decorator.
    pub first_line: u32,
    /// `<module>.<qualname>:<first line>`: names the function, whatever it is executing. Differs from
    /// that of every function of another file of the process.
    pub signature: Arc<str>,
}

impl PythonCode {
    /// Whether the interpreter made this code object for itself: the clean-up frame that 3.12 and
    /// later put around `__init__`, and the frame that stands for a call from C. CPython hides them
    /// from tracebacks, and so do we. Their file is no file: it repeats the name.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.file == self.qualname && matches!(&*self.file, "__init__" | "<interpreter trampoline>")
    }
}

/// Why a code object could not be described.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {field} of the code object at {address:#x}")]
pub struct CodeError {
    /// The field.
    pub field: &'static str,
    /// The code object.
    pub address: u64,
    /// The reason.
    #[source]
    pub source: io::Error,
}

/// What distinguishes a code object from another that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    identity: u32,
    flags: u32,
    argcount: u32,
    first_line: u32,
    file: u64,
    name: u64,
    qualname: u64,
    linetable: u64,
}

struct Entry {
    fingerprint: Fingerprint,
    code: Arc<PythonCode>,
    /// Decoded at the first question for a line.
    lines: Option<Arc<LineTable>>,
}

/// Code objects that were described before, of all processes.
pub struct CodeNames {
    entries: LruCache<(ProcessKey, u64), Entry>,
    modules: HashMap<ProcessKey, ProcessModules>,
}

impl Default for CodeNames {
    fn default() -> Self {
        Self {
            entries: LruCache::new(CODES_MAX),
            modules: HashMap::new(),
        }
    }
}

impl CodeNames {
    /// Describes the code object at `code`.
    ///
    /// # Errors
    ///
    /// The object or one of its strings cannot be read, for example because it was freed.
    pub fn describe(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        code: u64,
    ) -> Result<Arc<PythonCode>, CodeError> {
        Ok(Arc::clone(&self.entry(memory, runtime, code)?.code))
    }

    /// The source line of an instruction, `None` if the compiler gave it none or its table cannot
    /// be read.
    ///
    /// # Errors
    ///
    /// As for [`Self::describe`].
    pub fn line(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        python: PythonRef,
    ) -> Result<Option<u32>, CodeError> {
        let entry = self.entry(memory, runtime, python.code)?;
        let lines = match &entry.lines {
            Some(lines) => Arc::clone(lines),
            None => {
                let bytes = read_bytes(memory, &runtime.code, entry.fingerprint.linetable)
                    .map_err(|source| CodeError {
                        field: "co_linetable",
                        address: python.code,
                        source,
                    })?;
                let lines = Arc::new(LineTable::decode(&bytes, entry.code.first_line));
                entry.lines = Some(Arc::clone(&lines));
                lines
            }
        };
        let bytecode = python.code.wrapping_add(runtime.code.bytecode.into());
        // 3.11 and 3.12 keep the *previous* instruction, which is one unit before the first one in
        // a function that has not begun: its line is the `def`.
        let Some(bytes) = python.instr.checked_sub(bytecode) else {
            return Ok(Some(entry.code.first_line));
        };
        Ok(u32::try_from(bytes / CODE_UNIT_BYTES)
            .ok()
            .and_then(|unit| lines.line(unit)))
    }

    /// Drops what is remembered about a process.
    pub fn forget(&mut self, process: ProcessKey) {
        self.modules.remove(&process);
        let gone: Vec<_> = self
            .entries
            .iter()
            .filter(|((of, _), _)| *of == process)
            .map(|(&key, _)| key)
            .collect();
        for key in gone {
            self.entries.pop(&key);
        }
    }

    fn entry(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        code: u64,
    ) -> Result<&mut Entry, CodeError> {
        let failed = |field| {
            move |source| CodeError {
                field,
                address: code,
                source,
            }
        };
        let identity = identity::read(memory, &runtime.offsets, code);
        let fingerprint = Fingerprint::read(memory, &runtime.code, code, identity)
            .map_err(failed("the header"))?;
        let key = (runtime.process, code);
        let known = self
            .entries
            .get(&key)
            .is_some_and(|entry| entry.fingerprint == fingerprint);
        if !known {
            let text =
                |address, units_max| read_unique_str(memory, &runtime.code, address, units_max);
            let file: Arc<str> = text(fingerprint.file, FILE_UNITS_MAX)
                .map_err(failed("co_filename"))?
                .into();
            let name = text(fingerprint.name, FUNCTION_MAX).map_err(failed("co_name"))?;
            let qualname =
                text(fingerprint.qualname, FUNCTION_MAX).map_err(failed("co_qualname"))?;
            let first_line = fingerprint.first_line;
            let modules = self.modules.entry(runtime.process).or_default();
            let module = modules.name(memory, runtime, &file);
            let code = PythonCode {
                signature: modules.signature(&module, &qualname, first_line, &file),
                module,
                file,
                name: name.into(),
                qualname: qualname.into(),
                first_line,
            };
            let entry = Entry {
                fingerprint,
                code: Arc::new(code),
                lines: None,
            };
            self.entries.put(key, entry);
        }
        Ok(self.entries.get_mut(&key).expect("found or just inserted"))
    }
}

impl Fingerprint {
    fn read(
        memory: &dyn ReadMemory,
        layout: &CodeLayout,
        code: u64,
        identity: u32,
    ) -> Result<Self, io::Error> {
        let mut buffer = [0; HEADER_BYTES_MAX];
        let header = buffer
            .get_mut(..layout.bytecode as usize)
            .ok_or(io::ErrorKind::InvalidData)?;
        memory.read_exact(code, header)?;
        let field = |offset: u32, bytes: usize| {
            header
                .get(offset as usize..offset as usize + bytes)
                .ok_or(io::ErrorKind::InvalidData)
        };
        let int = |offset| {
            let mut word = [0; 4];
            word.copy_from_slice(field(offset, 4)?);
            Ok::<_, io::Error>(u32::from_ne_bytes(word))
        };
        let pointer = |offset| {
            let mut word = [0; 8];
            word.copy_from_slice(field(offset, 8)?);
            Ok::<_, io::Error>(u64::from_ne_bytes(word))
        };
        Ok(Self {
            identity,
            flags: int(layout.flags)?,
            argcount: int(layout.argcount)?,
            first_line: int(layout.firstlineno)?,
            file: pointer(layout.filename)?,
            name: pointer(layout.name)?,
            qualname: pointer(layout.qualname)?,
            linetable: pointer(layout.linetable)?,
        })
    }
}

/// The contents of a `bytes` object.
fn read_bytes(
    memory: &dyn ReadMemory,
    layout: &CodeLayout,
    address: u64,
) -> Result<Vec<u8>, io::Error> {
    let at = |offset: u32| {
        address
            .checked_add(offset.into())
            .ok_or(io::ErrorKind::InvalidData)
    };
    let size = memory.read_u64(at(layout.bytes_size)?)?;
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size <= LINE_TABLE_BYTES_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "too large"))?;
    let mut bytes = vec![0; size];
    memory.read_exact(at(layout.bytes_data)?, &mut bytes)?;
    Ok(bytes)
}
