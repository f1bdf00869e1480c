//! Where CPython keeps what we read: offsets by version, from a table or from the process itself.
//!
//! In:  the interpreter's version and, from 3.13 on, the first bytes of its `_PyRuntime`
//! Out: [`Layout`]: [`PythonOffsets`] for the frame walks, [`CodeLayout`] for names and lines
//!
//! # Sources
//! 3.11, 3.12: DWARF of release builds for x86-64 (`ptype /o` in gdb); the structures consist of
//! pointers and ints and are the same on every LP64 Linux. They hold for all micro versions:
//! CPython freezes internal structures at the first release of a minor version.
//!
//! 3.13 and later describe themselves: `debug_offsets.rs`.

use profiler_common::PythonOffsets;

use super::PythonVersion;

/// All offsets for one interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// For the frame walks, here and in BPF.
    pub offsets: PythonOffsets,
    /// For code objects and strings.
    pub code: CodeLayout,
}

/// Offsets in bytes inside `PyCodeObject`, `str` and `bytes`, and of what leads to `sys.path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    /// `PyInterpreterState.sysdict`, a `dict *`.
    pub interp_sysdict: u32,
    /// `co_flags`, an `int`.
    pub flags: u32,
    /// `co_argcount`, an `int`.
    pub argcount: u32,
    /// `co_firstlineno`, an `int`.
    pub firstlineno: u32,
    /// `co_filename`, a `str *`.
    pub filename: u32,
    /// `co_name`, a `str *`.
    pub name: u32,
    /// `co_qualname`, a `str *`.
    pub qualname: u32,
    /// `co_linetable`, a `bytes *`.
    pub linetable: u32,
    /// `co_code_adaptive`: the first instruction. Also the length of the fields before it.
    pub bytecode: u32,
    /// `str`: number of characters.
    pub str_length: u32,
    /// `str`: the state bits.
    pub str_state: u32,
    /// `str`: characters of an ASCII string, `sizeof(PyASCIIObject)`.
    pub str_ascii_data: u32,
    /// `str`: characters of a compact string, `sizeof(PyCompactUnicodeObject)`.
    pub str_compact_data: u32,
    /// `bytes`: number of bytes.
    pub bytes_size: u32,
    /// `bytes`: the bytes.
    pub bytes_data: u32,
}

/// Why the offsets of an interpreter are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// There is no table for the version, and it does not describe itself.
    #[error("CPython {0} is not supported; 3.11 to 3.14 are")]
    Version(PythonVersion),
    /// A build without the global interpreter lock.
    #[error("CPython {0} is a free-threaded build; those are not supported yet")]
    FreeThreaded(PythonVersion),
    /// `_Py_DebugOffsets` does not look like it.
    #[error("_Py_DebugOffsets of CPython {0} is malformed: {1}")]
    DebugOffsets(PythonVersion, &'static str),
}

/// Distance from `co_firstlineno` to `co_version`, from 3.12 on.
/// <https://github.com/python/cpython/blob/v3.12.0/Include/cpython/code.h#L96>
pub(super) const LINE_TO_VERSION: u32 = 24;

const LAYOUT_3_11: Layout = Layout {
    offsets: PythonOffsets {
        interpreters_head: 40,
        interp_next: 0,
        interp_threads_head: 16,
        tstate_next: 8,
        tstate_native_thread_id: 160,
        tstate_frame: 56,
        cframe_indirect: 1,
        cframe_current_frame: 8,
        frame_previous: 48,
        frame_executable: 32,
        frame_instr: 56,
        frame_owner: 68,
        code_identity: 72,
        code_name: 120,
        str_hash: 24,
        pad: 0,
    },
    code: CodeLayout {
        interp_sysdict: 904,
        flags: 48,
        argcount: 56,
        firstlineno: 72,
        filename: 112,
        name: 120,
        qualname: 128,
        linetable: 136,
        bytecode: 184,
        str_length: 16,
        str_state: 32,
        str_ascii_data: 48,
        str_compact_data: 72,
        bytes_size: 16,
        bytes_data: 32,
    },
};

const LAYOUT_3_12: Layout = Layout {
    offsets: PythonOffsets {
        interpreters_head: 40,
        interp_next: 0,
        interp_threads_head: 72,
        tstate_next: 8,
        tstate_native_thread_id: 144,
        tstate_frame: 56,
        cframe_indirect: 1,
        cframe_current_frame: 0,
        frame_previous: 8,
        frame_executable: 0,
        frame_instr: 56,
        frame_owner: 70,
        code_identity: 68 + LINE_TO_VERSION,
        code_name: 0,
        str_hash: 24,
        pad: 0,
    },
    code: CodeLayout {
        interp_sysdict: 352,
        flags: 48,
        argcount: 52,
        firstlineno: 68,
        filename: 112,
        name: 120,
        qualname: 128,
        linetable: 136,
        bytecode: 192,
        str_length: 16,
        str_state: 32,
        str_ascii_data: 40,
        str_compact_data: 56,
        bytes_size: 16,
        bytes_data: 32,
    },
};

impl Layout {
    /// The offsets of a version that does not describe itself.
    ///
    /// # Errors
    ///
    /// The version is older than 3.11, or describes itself.
    pub fn from_table(version: PythonVersion) -> Result<Self, LayoutError> {
        match (version.major, version.minor) {
            (3, 11) => Ok(LAYOUT_3_11),
            (3, 12) => Ok(LAYOUT_3_12),
            _ => Err(LayoutError::Version(version)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that versions without a table are refused by a sentence that names what works.
    #[test]
    fn a_version_without_a_table_is_refused() {
        let version = PythonVersion {
            major: 3,
            minor: 9,
            micro: 0,
        };
        assert_eq!(
            Layout::from_table(version).unwrap_err().to_string(),
            "CPython 3.9 is not supported; 3.11 to 3.14 are"
        );
    }
}
