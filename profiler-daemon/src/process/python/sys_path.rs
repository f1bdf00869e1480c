//! Reads `sys.path` of another process.
//!
//! In:  `_PyRuntime`
//! Out: the entries that are strings, of all interpreters, in their order
//! Lost: what cannot be read; the process may change the list meanwhile
//!
//! ```text
//! _PyRuntime.interpreters.head -> PyInterpreterState.sysdict -> dict
//! dict:  ... | 32 keys |                           keys of the dict, not its values: sys is no class
//! keys:  8 log2_size u8 | 9 log2_index_bytes u8 | 10 kind u8 | 24 entries used i64 | 32 index | entries
//! entry: key, value              kind 1: all keys are strings
//!        hash, key, value        kind 0
//! list:  ... | 16 length | 24 items -> str *, ...
//! ```
//! The same from 3.11 to 3.14, in builds with the global interpreter lock:
//! <https://github.com/python/cpython/blob/v3.14.0/Include/internal/pycore_dict.h>,
//! <https://github.com/python/cpython/blob/v3.14.0/Include/cpython/listobject.h>

use std::io::{Error, ErrorKind};

use super::string::read_str;
use super::{CodeLayout, PythonRuntime};
use crate::process::ReadMemory;
use crate::process::page_cache::PageCache;

/// Interpreters that are asked; mod_wsgi has one for each application.
const INTERPRETERS_MAX: usize = 16;
/// Entries that are taken, of all interpreters.
const ENTRIES_MAX: usize = 256;
/// Most keys of `sys.__dict__` that are read, of all interpreters; it has about 100.
const KEYS_MAX: u64 = 2048;
/// Longest entry, in characters: `PATH_MAX`.
const ENTRY_CHARS_MAX: usize = 4096;
const KEY: &str = "path";

const DICT_KEYS: u64 = 32;
const KEYS_LOG2_INDEX_BYTES: u64 = 9;
const KEYS_KIND: u64 = 10;
const KEYS_USED: u64 = 24;
const KEYS_INDEX: u64 = 32;
/// `DICT_KEYS_GENERAL`.
const KIND_GENERAL: u8 = 0;
/// `DICT_KEYS_UNICODE`.
const KIND_STRINGS: u8 = 1;
const LIST_LENGTH: u64 = 16;
const LIST_ITEMS: u64 = 24;

/// `sys.path`, empty if it cannot be read.
pub(super) fn read(memory: &dyn ReadMemory, runtime: &PythonRuntime) -> Vec<String> {
    let memory = PageCache::new(memory);
    let mut entries = Vec::new();
    let mut keys_left = KEYS_MAX;
    let head = runtime.offsets.interpreters_head;
    let mut interpreter = at(runtime.runtime, head).and_then(|head| memory.read_u64(head));
    for _ in 0..INTERPRETERS_MAX {
        let Ok(state @ 1..) = interpreter else {
            break;
        };
        if let Err(error) = read_one(&memory, &runtime.code, state, &mut keys_left, &mut entries) {
            tracing::debug!(pid = %runtime.process.pid, %error, "sys.path is not readable");
        }
        interpreter = at(state, runtime.offsets.interp_next).and_then(|next| memory.read_u64(next));
    }
    entries
}

/// Adds the entries of one interpreter that are new.
fn read_one(
    memory: &dyn ReadMemory,
    layout: &CodeLayout,
    interpreter: u64,
    keys_left: &mut u64,
    entries: &mut Vec<String>,
) -> Result<(), Error> {
    let dict = memory.read_u64(at(interpreter, layout.interp_sysdict)?)?;
    let list = find(memory, layout, dict, keys_left)?;
    let length = memory.read_u64(at(list, LIST_LENGTH)?)?;
    let items = memory.read_u64(at(list, LIST_ITEMS)?)?;
    for index in 0..length.min(ENTRIES_MAX as u64) {
        let item = memory.read_u64(at(items, 8 * index)?)?;
        // Anything may be in the list; what is no string is skipped by Python, too.
        let Ok(entry) = read_str(memory, layout, item, ENTRY_CHARS_MAX) else {
            continue;
        };
        if entries.len() < ENTRIES_MAX && !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    Ok(())
}

/// The value of [`KEY`] in a dict.
fn find(
    memory: &dyn ReadMemory,
    layout: &CodeLayout,
    dict: u64,
    keys_left: &mut u64,
) -> Result<u64, Error> {
    let keys = memory.read_u64(at(dict, DICT_KEYS)?)?;
    let byte = |offset| {
        let mut byte = [0];
        memory.read_exact(at(keys, offset)?, &mut byte)?;
        Ok::<u8, Error>(byte[0])
    };
    let (key_at, entry_bytes) = match byte(KEYS_KIND)? {
        KIND_GENERAL => (8, 24),
        KIND_STRINGS => (0, 16),
        _ => return Err(invalid("a dict of an unknown kind")),
    };
    let index_bytes = 1_u64
        .checked_shl(byte(KEYS_LOG2_INDEX_BYTES)?.into())
        .ok_or_else(|| invalid("a dict of an impossible size"))?;
    let first = at(at(keys, KEYS_INDEX)?, index_bytes)?;
    let used = memory.read_u64(at(keys, KEYS_USED)?)?;
    for index in 0..used.min(*keys_left) {
        *keys_left -= 1;
        let entry = at(first, index * entry_bytes + key_at)?;
        let key = memory.read_u64(entry)?;
        // One character more than wanted shows longer keys.
        if read_str(memory, layout, key, KEY.len() + 1).is_ok_and(|key| key == KEY) {
            return memory.read_u64(at(entry, 8_u64)?);
        }
    }
    Err(invalid("sys has no path"))
}

fn at(base: u64, offset: impl Into<u64>) -> Result<u64, Error> {
    base.checked_add(offset.into())
        .ok_or_else(|| ErrorKind::InvalidData.into())
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
