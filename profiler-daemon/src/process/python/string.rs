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

use super::CodeLayout;
use crate::model::name::{mark_of, marked, shorten};
use crate::model::plain::acts;
use crate::process::ReadMemory;

/// Bytes of a string's characters that [`read_unique_str`] reads.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
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
    layout: &CodeLayout,
    address: u64,
    chars_max: usize,
) -> Result<String, Error> {
    let characters = Characters::read(memory, layout, address, |_| chars_max)?;
    Ok(characters.text(chars_max))
}

/// Reads the string at `address` as a name of at most `units_max` UTF-16 units. Names that differ yield texts that
/// differ: one that is shortened or has replaced characters ends with a mark of the whole.
pub(crate) fn read_unique_str(
    memory: &dyn ReadMemory,
    layout: &CodeLayout,
    address: u64,
    units_max: usize,
) -> Result<String, Error> {
    let characters = Characters::read(memory, layout, address, |width| WHOLE_BYTES_MAX / width)?;
    let text = characters.text(usize::MAX);
    if characters.are_whole() && !text.contains(char::REPLACEMENT_CHARACTER) {
        return Ok(shorten(&text, units_max).into_owned());
    }
    let Characters { length, bytes, .. } = characters;
    let all = (length as u64).to_le_bytes().into_iter().chain(bytes);
    Ok(marked(&text, units_max, &mark_of(all)))
}

/// The characters of a `str`, as far as they were asked for.
struct Characters {
    /// Of the whole string, in characters.
    length: usize,
    /// Bytes of a character: 1, 2 or 4.
    width: usize,
    bytes: Vec<u8>,
}

impl Characters {
    /// Reads as many as `chars_max` allows for their width.
    fn read(
        memory: &dyn ReadMemory,
        layout: &CodeLayout,
        address: u64,
        chars_max: impl Fn(usize) -> usize,
    ) -> Result<Self, Error> {
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
        let bytes = length.min(chars_max(width)) * width;
        let bytes = match first.get(data as usize..data as usize + bytes) {
            Some(characters) => characters.to_vec(),
            None => {
                let mut more = vec![0; bytes];
                let address = address
                    .checked_add(data.into())
                    .ok_or(ErrorKind::InvalidData)?;
                memory.read_exact(address, &mut more)?;
                more
            }
        };
        Ok(Self {
            length,
            width,
            bytes,
        })
    }

    fn are_whole(&self) -> bool {
        self.bytes.len() / self.width == self.length
    }

    fn text(&self, chars_max: usize) -> String {
        let characters = self.bytes.chunks_exact(self.width).take(chars_max);
        characters.map(to_char).collect()
    }
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
        Some(c) if !acts(c) => c,
        _ => char::REPLACEMENT_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::python::{Layout, PythonVersion};

    /// One object at address 0x1000.
    struct Object(Vec<u8>);

    impl ReadMemory for Object {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            let bytes = address
                .checked_sub(0x1000)
                .and_then(|at| self.0.get(usize::try_from(at).ok()?..))
                .filter(|bytes| !bytes.is_empty())
                .ok_or(ErrorKind::InvalidInput)?;
            let n = buffer.len().min(bytes.len());
            buffer[..n].copy_from_slice(&bytes[..n]);
            Ok(n)
        }
    }

    fn layout(minor: u8) -> CodeLayout {
        let version = PythonVersion {
            major: 3,
            minor,
            micro: 0,
        };
        Layout::from_table(version).unwrap().code
    }

    /// A `str` object: header, state and characters where `layout` has them.
    fn object(layout: &CodeLayout, length: u64, state: u32, characters: &[u8]) -> Object {
        let data = if state_bits(state) & ASCII != 0 {
            layout.str_ascii_data
        } else {
            layout.str_compact_data
        };
        let mut bytes = vec![0; data as usize];
        bytes[16..24].copy_from_slice(&length.to_ne_bytes());
        bytes[32..36].copy_from_slice(&state.to_ne_bytes());
        bytes.extend_from_slice(characters);
        Object(bytes)
    }

    const fn state(kind: u32, ascii: bool) -> u32 {
        (kind | COMPACT | if ascii { ASCII } else { 0 }) << 2 | 0b11
    }

    /// Check all widths, on both layouts, and the wide `interned` of newer sources.
    #[test]
    fn every_width_is_read() {
        let ucs2: Vec<u8> = "да".encode_utf16().flat_map(u16::to_ne_bytes).collect();
        let ucs4: Vec<u8> = "𠀀a"
            .chars()
            .flat_map(|c| u32::from(c).to_ne_bytes())
            .collect();
        for layout in [layout(11), layout(12)] {
            for (length, state, characters, text) in [
                (4, state(1, true), &b"name"[..], "name"),
                (3, state(1, false), b"a\xef\xe4", "aïä"),
                (2, state(2, false), &ucs2, "да"),
                (2, state(4, false), &ucs4, "𠀀a"),
                (4, (1 | COMPACT | ASCII) << 16 | 1, b"wide", "wide"),
                (0, state(1, true), b"", ""),
            ] {
                let object = object(&layout, length, state, characters);
                let read = read_str(&object, &layout, 0x1000, 100).unwrap();
                assert_eq!(read, text);
            }
        }
    }

    /// Check that long strings are cut, disturbing characters replaced, and nonsense refused.
    #[test]
    fn hostile_strings_are_bounded() {
        let layout = layout(12);
        let read = |length, state, characters: &[u8], chars_max| {
            let object = object(&layout, length, state, characters);
            read_str(&object, &layout, 0x1000, chars_max)
        };
        let long = vec![b'x'; 1000];
        let ascii = state(1, true);
        assert_eq!(read(1000, ascii, &long, 600).unwrap(), "x".repeat(600));
        assert_eq!(read(u64::MAX, ascii, b"abc", 3).unwrap(), "abc");
        assert_eq!(read(4, ascii, b"a\x1b[m", 9).unwrap(), "a\u{fffd}[m");
        let surrogate = 0xdc80_u16.to_ne_bytes();
        assert_eq!(read(1, state(2, false), &surrogate, 9).unwrap(), "\u{fffd}");
        assert!(read(u64::MAX, ascii, b"abc", 1000).is_err());
        assert!(read(3, state(3, false), b"abc", 9).is_err());
        assert!(read(3, 0, b"abc", 9).is_err());
        assert!(read_str(&Object(vec![0; 8]), &layout, 0x1000, 9).is_err());
    }

    /// Check that strings whose texts would be the same are told apart by a mark.
    #[test]
    fn a_mark_tells_cut_strings_apart() {
        let layout = layout(12);
        let read = |state: u32, characters: &[u8]| {
            let length = characters.len() / if state >> 2 & KIND == 2 { 2 } else { 1 };
            let object = object(&layout, length as u64, state, characters);
            read_unique_str(&object, &layout, 0x1000, 20).unwrap()
        };
        let ascii = state(1, true);
        assert_eq!(read(ascii, b"whole"), "whole");
        let name = |middle: &str| format!("begin {middle} of a name, end");
        let [one, two] = ["1", "2"].map(|middle| read(ascii, name(middle).as_bytes()));
        assert!(one.starts_with("beg…me, end#"), "{one}");
        assert_ne!(one, two);
        // By the rule of all names.
        assert_eq!(one, shorten(&name("1"), 20));
        let surrogates =
            [0xdcff_u16, 0xdcfe].map(|code| read(state(2, false), &code.to_ne_bytes()));
        assert!(surrogates[0].starts_with("\u{fffd}#"), "{surrogates:?}");
        assert_ne!(surrogates[0], surrogates[1]);
        // Past the bound only the length tells.
        let huge = [100_000, 100_001].map(|length| read(ascii, &vec![b'x'; length]));
        assert_ne!(huge[0], huge[1]);
    }
}
