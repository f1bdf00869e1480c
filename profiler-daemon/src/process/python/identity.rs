//! Tells whether a code object is still the one that a frame ran.
//!
//! In:  addresses of code objects; what a walk noted of them when it met them
//! Out: their identity; [`holds`]
//! Lost: nothing; an identity that cannot be read is 0, which is compared with nothing
//!
//! A frame keeps its code object alive, but frames are named some milliseconds after they were met. By
//! then a function made by `exec`, `eval` or `lambda` may be freed, and the next one of its size lies at
//! its address, often with its strings at the addresses of the former ones.
//!
//! | version | identity | why |
//! |---|---|---|
//! | 3.12 and later | `co_version` | counts code objects, never used twice |
//! | 3.11 | `co_firstlineno` and the hash of `co_name` | the closest there is; addresses come again |

use profiler_common::PythonOffsets;

use super::PythonRuntime;
use crate::model::PythonRef;
use crate::process::ReadMemory;

/// `PyVarObject.ob_size`: of a code object the number of its code units.
const OB_SIZE: u64 = 16;
/// Bytes of one code unit.
const CODE_UNIT_BYTES: u64 = 2;

/// The identities of code objects, in their order.
pub(crate) fn read_all(
    memory: &dyn ReadMemory,
    offsets: &PythonOffsets,
    codes: &[u64],
) -> Vec<u32> {
    if offsets.code_identity == 0 {
        return vec![0; codes.len()];
    }
    let identities = fields(memory, codes, offsets.code_identity);
    if offsets.code_name == 0 {
        return identities.into_iter().map(low_half).collect();
    }
    let names = fields(memory, codes, offsets.code_name);
    let names: Vec<u64> = names.into_iter().map(Option::unwrap_or_default).collect();
    let hashes = fields(memory, &names, offsets.str_hash);
    let both = identities.into_iter().zip(hashes);
    both.map(|(line, hash)| match (line, hash) {
        (Some(line), Some(hash)) => line as u32 ^ hash as u32,
        _ => 0,
    })
    .collect()
}

fn fields(memory: &dyn ReadMemory, objects: &[u64], offset: u32) -> Vec<Option<u64>> {
    let addresses = objects
        .iter()
        .map(|object| object.wrapping_add(offset.into()));
    memory.read_words(&addresses.collect::<Vec<u64>>())
}

fn low_half(word: Option<u64>) -> u32 {
    word.unwrap_or(0) as u32
}

/// The identity of one code object.
pub(super) fn read(memory: &dyn ReadMemory, offsets: &PythonOffsets, code: u64) -> u32 {
    let identities = read_all(memory, offsets, &[code]);
    identities.first().copied().unwrap_or(0)
}

/// Whether the object at a frame's address is, as far as can be told, the one that the frame ran: it has
/// the identity that was noted, and the frame's instruction lies in its bytecode.
pub(super) fn holds(memory: &dyn ReadMemory, runtime: &PythonRuntime, python: PythonRef) -> bool {
    let noted = python.identity;
    if noted != 0 && read(memory, &runtime.offsets, python.code) != noted {
        return false;
    }
    let Ok(units) = memory.read_u64(python.code.wrapping_add(OB_SIZE)) else {
        return false;
    };
    let bytecode = python.code.wrapping_add(runtime.code.bytecode.into());
    // 3.11 and 3.12 keep the instruction before the next one: before the first one there is none.
    let begin = bytecode.wrapping_sub(CODE_UNIT_BYTES);
    let bytes = units.saturating_mul(CODE_UNIT_BYTES);
    python.instr.wrapping_sub(begin) <= bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{Error, ErrorKind};

    use super::*;
    use crate::model::{Pid, ProcessKey};
    use crate::process::python::{Layout, PythonVersion};

    /// Words by address.
    struct Words(HashMap<u64, u64>);

    impl ReadMemory for Words {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            let word = self.0.get(&address).ok_or(ErrorKind::NotFound)?;
            let n = buffer.len().min(8);
            buffer[..n].copy_from_slice(&word.to_ne_bytes()[..n]);
            Ok(n)
        }
    }

    const CODE: u64 = 0x1000;
    const NAME: u64 = 0x9000;

    fn runtime(minor: u8) -> PythonRuntime {
        let version = PythonVersion {
            major: 3,
            minor,
            micro: 0,
        };
        let layout = Layout::from_table(version).unwrap();
        PythonRuntime {
            process: ProcessKey {
                pid: Pid(1),
                start_ticks: 0,
            },
            version,
            runtime: 0,
            offsets: layout.offsets,
            code: layout.code,
            loop_ranges: Vec::new(),
        }
    }

    /// Four code units; line 7 and a name with hash 0x30 (3.11), version 9 (3.12).
    fn memory() -> Words {
        let words = [
            (CODE + 16, 4),
            (CODE + 72, 7),
            (CODE + 92, 9),
            (CODE + 120, NAME),
            (NAME + 24, 0xff_0000_0030),
        ];
        Words(words.into())
    }

    fn frame(identity: u32, instr: u64) -> PythonRef {
        PythonRef {
            code: CODE,
            instr,
            identity,
        }
    }

    /// Check what an identity is made of, and that one that cannot be read is unknown.
    #[test]
    fn an_identity_is_the_version_or_line_and_name() {
        let identities = |minor| read_all(&memory(), &runtime(minor).offsets, &[CODE, 0x2000]);
        assert_eq!(identities(11), [7 ^ 0x30, 0]);
        assert_eq!(identities(12), [9, 0]);
    }

    /// Check that an object with another identity is not the frame's, nor one whose bytecode does not have
    /// the frame's instruction, nor none at all; and that an unknown identity leaves the instruction to tell.
    #[test]
    fn an_object_holds_while_identity_and_instruction_fit() {
        for (minor, identity, first) in [(11, 0x37, CODE + 184), (12, 9, CODE + 192)] {
            let runtime = runtime(minor);
            let holds = |identity, instr| holds(&memory(), &runtime, frame(identity, instr));
            assert!(holds(identity, first) && holds(identity, first - 2));
            assert!(holds(identity, first + 6) && holds(0, first));
            assert!(!holds(identity + 1, first));
            assert!(!holds(identity, first - 4) && !holds(identity, first + 8));
            assert!(!holds(0, first + 8));
        }
        let gone = PythonRef {
            code: 0x2000,
            ..frame(9, 0x2000 + 192)
        };
        assert!(!holds(&memory(), &runtime(12), gone));
    }
}
