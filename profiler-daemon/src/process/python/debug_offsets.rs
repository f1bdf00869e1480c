//! Reads the offsets that CPython 3.13 and later publish about themselves.
//!
//! `_Py_DebugOffsets` is placed at the start of `_PyRuntime` for tools
//! like this one. It is a list of `u64` in groups, and *the groups grow between versions*, so the
//! index of a field belongs to the version.
//! <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_runtime.h>,
//! <https://github.com/python/cpython/blob/v3.14.0/Include/internal/pycore_debug_offsets.h>

use profiler_common::PythonOffsets;

use super::PythonVersion;
use super::layout::{CodeLayout, LINE_TO_VERSION, Layout, LayoutError};

/// Bytes of `_Py_DebugOffsets` that [`Layout::from_debug_offsets`] wants to see.
pub const DEBUG_OFFSETS_BYTES: usize = 81 * 8;
const DEBUG_COOKIE: [u8; 8] = *b"xdebugpy";

/// Offsets of fields inside frames, code objects and strings grow slowly; a larger one is not an
/// offset but garbage, and would make us read far away from the object.
const OBJECT_OFFSET_MAX: u64 = 1024;
/// The same for `PyInterpreterState` and `_PyRuntime`, which are hundreds of kilobytes long.
const STATE_OFFSET_MAX: u64 = 1 << 20;

/// Index of the needed fields in `_Py_DebugOffsets`, counted in `u64`.
struct DebugFields {
    interpreters_head: usize,
    interp_next: usize,
    interp_threads_head: usize,
    interp_sysdict: usize,
    tstate_next: usize,
    tstate_current_frame: usize,
    tstate_native_thread_id: usize,
    frame_previous: usize,
    frame_executable: usize,
    frame_instr_ptr: usize,
    frame_owner: usize,
    code_filename: usize,
    code_name: usize,
    code_qualname: usize,
    code_linetable: usize,
    code_firstlineno: usize,
    code_argcount: usize,
    code_adaptive: usize,
    bytes_ob_size: usize,
    bytes_ob_sval: usize,
    unicode_state: usize,
    unicode_length: usize,
    unicode_asciiobject_size: usize,
}

const FREE_THREADED_FIELD: usize = 2;

const FIELDS_3_13: DebugFields = DebugFields {
    interpreters_head: 5,
    interp_next: 8,
    interp_threads_head: 9,
    interp_sysdict: 12,
    tstate_next: 21,
    tstate_current_frame: 23,
    tstate_native_thread_id: 25,
    frame_previous: 29,
    frame_executable: 30,
    frame_instr_ptr: 31,
    frame_owner: 33,
    code_filename: 35,
    code_name: 36,
    code_qualname: 37,
    code_linetable: 38,
    code_firstlineno: 39,
    code_argcount: 40,
    code_adaptive: 43,
    bytes_ob_size: 65,
    bytes_ob_sval: 66,
    unicode_state: 68,
    unicode_length: 69,
    unicode_asciiobject_size: 70,
};

/// 3.14 added `threads_main`, `code_object_generation` and `tlbc_generation` to the interpreter,
/// `stackpointer` and `tlbc_index` to the frame, `co_tlbc` to the code object and a group for `set`.
const FIELDS_3_14: DebugFields = DebugFields {
    interpreters_head: 5,
    interp_next: 8,
    interp_threads_head: 9,
    interp_sysdict: 13,
    tstate_next: 24,
    tstate_current_frame: 26,
    tstate_native_thread_id: 28,
    frame_previous: 32,
    frame_executable: 33,
    frame_instr_ptr: 34,
    frame_owner: 36,
    code_filename: 40,
    code_name: 41,
    code_qualname: 42,
    code_linetable: 43,
    code_firstlineno: 44,
    code_argcount: 45,
    code_adaptive: 48,
    bytes_ob_size: 75,
    bytes_ob_sval: 76,
    unicode_state: 78,
    unicode_length: 79,
    unicode_asciiobject_size: 80,
};

impl Layout {
    /// The offsets from the first bytes of `_PyRuntime` of CPython 3.13 or later.
    ///
    /// # Errors
    ///
    /// The version's list is not known, the build is free-threaded, or the bytes are not the list.
    pub fn from_debug_offsets(
        version: PythonVersion,
        bytes: &[u8; DEBUG_OFFSETS_BYTES],
    ) -> Result<Self, LayoutError> {
        let fields = match (version.major, version.minor) {
            (3, 13) => &FIELDS_3_13,
            (3, 14) => &FIELDS_3_14,
            _ => return Err(LayoutError::Version(version)),
        };
        let malformed = |reason| LayoutError::DebugOffsets(version, reason);
        if bytes[..8] != DEBUG_COOKIE {
            return Err(malformed("no cookie"));
        }
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            u64::from_ne_bytes(word)
        };
        if word(FREE_THREADED_FIELD) != 0 {
            return Err(LayoutError::FreeThreaded(version));
        }
        let state = |index| match word(index) {
            offset if offset < STATE_OFFSET_MAX => Ok(offset as u32),
            _ => Err(malformed("an offset of a state structure is out of range")),
        };
        let object = |index| match word(index) {
            offset if offset < OBJECT_OFFSET_MAX => Ok(offset as u32),
            _ => Err(malformed("an offset of an object is out of range")),
        };
        let argcount = object(fields.code_argcount)?;
        let str_ascii_data = object(fields.unicode_asciiobject_size)?;
        Ok(Self {
            offsets: PythonOffsets {
                interpreters_head: state(fields.interpreters_head)?,
                interp_next: state(fields.interp_next)?,
                interp_threads_head: state(fields.interp_threads_head)?,
                tstate_next: object(fields.tstate_next)?,
                tstate_native_thread_id: object(fields.tstate_native_thread_id)?,
                tstate_frame: object(fields.tstate_current_frame)?,
                cframe_indirect: 0,
                cframe_current_frame: 0,
                frame_previous: object(fields.frame_previous)?,
                frame_executable: object(fields.frame_executable)?,
                frame_instr: object(fields.frame_instr_ptr)?,
                frame_owner: object(fields.frame_owner)?,
                code_identity: object(fields.code_firstlineno)? + LINE_TO_VERSION,
                code_name: 0,
                str_hash: 24,
                pad: 0,
            },
            code: CodeLayout {
                interp_sysdict: state(fields.interp_sysdict)?,
                // Not in the list; `int co_flags` has stood before `int co_argcount` since 3.12.
                flags: argcount
                    .checked_sub(4)
                    .ok_or_else(|| malformed("co_argcount is at 0"))?,
                argcount,
                firstlineno: object(fields.code_firstlineno)?,
                filename: object(fields.code_filename)?,
                name: object(fields.code_name)?,
                qualname: object(fields.code_qualname)?,
                linetable: object(fields.code_linetable)?,
                bytecode: object(fields.code_adaptive)?,
                str_length: object(fields.unicode_length)?,
                str_state: object(fields.unicode_state)?,
                str_ascii_data,
                // PyCompactUnicodeObject adds `utf8_length` and `utf8`.
                str_compact_data: str_ascii_data + 16,
                bytes_size: object(fields.bytes_ob_size)?,
                bytes_data: object(fields.bytes_ob_sval)?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(minor: u8) -> PythonVersion {
        PythonVersion {
            major: 3,
            minor,
            micro: 0,
        }
    }

    fn debug_offsets(words: &[(usize, u64)]) -> [u8; DEBUG_OFFSETS_BYTES] {
        let mut bytes = [0; DEBUG_OFFSETS_BYTES];
        bytes[..8].copy_from_slice(b"xdebugpy");
        for &(index, word) in words {
            bytes[index * 8..index * 8 + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The values Debian's CPython 3.14 has in `_Py_DebugOffsets`, at that version's indices.
    const WORDS_3_14: &[(usize, u64)] = &[
        (5, 808),
        (8, 7272),
        (9, 7344),
        (13, 7672),
        (24, 8),
        (26, 72),
        (28, 160),
        (32, 8),
        (33, 0),
        (34, 56),
        (36, 74),
        (40, 112),
        (41, 120),
        (42, 128),
        (43, 136),
        (44, 68),
        (45, 52),
        (48, 208),
        (75, 16),
        (76, 32),
        (78, 32),
        (79, 16),
        (80, 40),
    ];

    /// Check that 3.14's list is read at its own indices, which differ from 3.13's.
    #[test]
    fn debug_offsets_of_3_14_are_read_by_version() {
        let layout = Layout::from_debug_offsets(version(14), &debug_offsets(WORDS_3_14)).unwrap();
        assert_eq!(
            layout.offsets,
            PythonOffsets {
                interpreters_head: 808,
                interp_next: 7272,
                interp_threads_head: 7344,
                tstate_next: 8,
                tstate_native_thread_id: 160,
                tstate_frame: 72,
                cframe_indirect: 0,
                cframe_current_frame: 0,
                frame_previous: 8,
                frame_executable: 0,
                frame_instr: 56,
                frame_owner: 74,
                code_identity: 92,
                code_name: 0,
                str_hash: 24,
                pad: 0,
            }
        );
        assert_eq!(layout.code.interp_sysdict, 7672);
        assert_eq!(layout.code.flags, 48);
        assert_eq!(layout.code.bytecode, 208);
        assert_eq!(layout.code.str_compact_data, 56);
        assert_eq!(layout.code.bytes_data, 32);
    }

    /// Check that free-threaded builds, other versions and garbage are refused with a reason.
    #[test]
    fn unusable_debug_offsets_are_refused() {
        let mut words = WORDS_3_14.to_vec();
        words.push((FREE_THREADED_FIELD, 1));
        assert_eq!(
            Layout::from_debug_offsets(version(14), &debug_offsets(&words)),
            Err(LayoutError::FreeThreaded(version(14)))
        );
        assert_eq!(
            Layout::from_debug_offsets(version(15), &debug_offsets(WORDS_3_14)),
            Err(LayoutError::Version(version(15)))
        );
        for index in [5, 34, 45] {
            let mut words = WORDS_3_14.to_vec();
            words.push((index, u64::MAX));
            assert!(matches!(
                Layout::from_debug_offsets(version(14), &debug_offsets(&words)),
                Err(LayoutError::DebugOffsets(..))
            ));
        }
        assert!(matches!(
            Layout::from_debug_offsets(version(13), &[0; DEBUG_OFFSETS_BYTES]),
            Err(LayoutError::DebugOffsets(_, "no cookie"))
        ));
    }
}
