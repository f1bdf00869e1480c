//! Reads a `str` of another process.
//!
//! CPython stores a string in the narrowest of three fixed widths, right after the object's header
//! (PEP 393). Names of code objects are always in this "compact" form.
//!
//! ```text
//! | refcount, type | length 8 | hash 8 | state 4 | ... | characters: 1, 2 or 4 bytes each |
//! state: interned:2 kind:3 compact:1 ascii:1      a micro version of 3.14 may have interned:16
//! ```
//! <https://github.com/python/cpython/blob/v3.12.0/Include/cpython/unicodeobject.h>

use std::io::{Error, ErrorKind};

use super::PythonRuntime;
use crate::process::ReadMemory;

/// Covers the header and all of most names, so that one read does.
const FIRST_READ_BYTES: usize = 256;
const COMPACT: u32 = 1 << 3;
const ASCII: u32 = 1 << 4;
const KIND: u32 = 0b111;

/// Reads the string at `address`, at most its first `chars_max` characters. Characters that would
/// disturb a terminal or a log (controls, lone surrogates) become U+FFFD: names are chosen by
/// whoever owns the process.
pub(crate) fn read_str(
    memory: &dyn ReadMemory,
    runtime: &PythonRuntime,
    address: u64,
    chars_max: usize,
) -> Result<String, Error> {
    let layout = &runtime.code;
    let mut first = [0; FIRST_READ_BYTES];
    let used = memory.read(address, &mut first)?;
    let first = &first[..used];
    let field = |offset: u32, bytes: usize| {
        first
            .get(offset as usize..offset as usize + bytes)
            .ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))
    };
    let mut word = [0; 8];
    word.copy_from_slice(field(layout.str_length, 8)?);
    let length = usize::try_from(u64::from_ne_bytes(word)).unwrap_or(usize::MAX);
    let mut word = [0; 4];
    word.copy_from_slice(field(layout.str_state, 4)?);
    let state = state_bits(u32::from_ne_bytes(word));
    if state & COMPACT == 0 {
        return Err(Error::new(ErrorKind::InvalidData, "not a compact str"));
    }
    let data = if state & ASCII != 0 {
        layout.str_ascii_data
    } else {
        layout.str_compact_data
    };
    let width = match state & KIND {
        width @ (1 | 2 | 4) => width as usize,
        _ => return Err(Error::new(ErrorKind::InvalidData, "strange str kind")),
    };
    let bytes = length.min(chars_max) * width;
    let mut more = Vec::new();
    let characters = match first.get(data as usize..data as usize + bytes) {
        Some(characters) => characters,
        None => {
            more.resize(bytes, 0);
            let address = address
                .checked_add(data.into())
                .ok_or(ErrorKind::InvalidData)?;
            memory.read_exact(address, &mut more)?;
            &more
        }
    };
    Ok(characters.chunks_exact(width).map(to_char).collect())
}

/// The state from `kind` on. The width of `interned` before it is 2 bits, or 16 in newer sources;
/// `compact` is set in every string we accept and tells which.
fn state_bits(state: u32) -> u32 {
    match state >> 2 {
        bits if bits & COMPACT != 0 => bits,
        _ => state >> 16,
    }
}

fn to_char(bytes: &[u8]) -> char {
    let code = match *bytes {
        [a] => u32::from(a),
        [a, b] => u32::from(u16::from_ne_bytes([a, b])),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => u32::MAX,
    };
    match char::from_u32(code) {
        Some(c) if !c.is_control() => c,
        _ => char::REPLACEMENT_CHARACTER,
    }
}
