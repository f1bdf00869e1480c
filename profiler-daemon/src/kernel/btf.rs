//! Reads the kernel's own description of its types (BTF).
//!
//! In:  the bytes of `/sys/kernel/btf/vmlinux`
//! Out: offsets of structure members
//! Lost: nothing; a malformed file is an error
//!
//! # Layout
//!
//! ```text
//! | header 24 B | types: { name_off, info, size or type } + per-kind data ... | strings |
//! ```
//!
//! <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/btf.h>. Only what offsets need is
//! understood: structures, unions, enumerators and names of typedefs; every other kind is stepped over.

use std::collections::HashMap;

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// Anonymous structures are nested a few deep in the kernel; more is a broken file.
const NESTING_MAX: usize = 8;

/// Why BTF could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BtfError {
    /// The file does not begin with a BTF header.
    #[error("not a BTF file")]
    NotBtf,
    /// The file ends inside a type.
    #[error("the BTF file ends in the middle of type {0}")]
    Truncated(usize),
    /// A kind of type this parser does not know: its length is unknown, so the rest is lost.
    #[error("type {index} has unknown BTF kind {kind}")]
    UnknownKind {
        /// Number of the type.
        index: usize,
        /// Kind of the type, as the file has it.
        kind: u32,
    },
    /// No structure of that name.
    #[error("the kernel has no struct {0}")]
    NoStruct(String),
    /// The structure has no such member.
    #[error("the kernel's struct {name} has no member {member}")]
    NoMember {
        /// The structure.
        name: String,
        /// The member.
        member: String,
    },
}

/// Types of a kernel, borrowed from the bytes of its BTF.
#[derive(Debug)]
pub struct KernelTypes<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; type 0 is `void` and has no entry of its own.
    starts: Vec<u32>,
    /// Named structures, by name.
    structs: HashMap<&'a [u8], u32>,
}

/// One type's fixed part.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: usize,
    bitfields: bool,
    size: u32,
    /// Where the per-kind data begins.
    data: usize,
}

mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
}

impl<'a> KernelTypes<'a> {
    /// Indexes the types.
    ///
    /// # Errors
    ///
    /// The bytes are not BTF, are cut, or hold a kind this parser does not know.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let header = Header::parse(bytes)?;
        let section = |offset: u32, len: u32| {
            let begin = header.len.checked_add(offset as usize)?;
            bytes.get(begin..begin.checked_add(len as usize)?)
        };
        let types = section(header.type_off, header.type_len).ok_or(BtfError::NotBtf)?;
        let strings = section(header.str_off, header.str_len).ok_or(BtfError::NotBtf)?;
        let mut this = Self {
            types,
            strings,
            starts: Vec::with_capacity(types.len() / 24),
            structs: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let index = this.starts.len() + 1;
            let found = this.type_at(at).ok_or(BtfError::Truncated(index))?;
            if found.kind == kind::STRUCT && found.name != 0 {
                let name = this.string(found.name).ok_or(BtfError::Truncated(index))?;
                this.structs.entry(name).or_insert(at as u32);
            }
            this.starts.push(at as u32);
            at = found.data
                + data_len(&found).ok_or(BtfError::UnknownKind {
                    index,
                    kind: found.kind,
                })?;
        }
        if at == types.len() {
            Ok(this)
        } else {
            Err(BtfError::Truncated(this.starts.len()))
        }
    }

    /// Offset in bytes of a member, through anonymous structures and unions.
    ///
    /// # Errors
    ///
    /// The structure or the member does not exist.
    pub fn offset_of(&self, name: &str, member: &str) -> Result<u32, BtfError> {
        let found = self.named_struct(name)?;
        self.member(&found, member.as_bytes(), 0)
            .ok_or_else(|| BtfError::NoMember {
                name: name.to_owned(),
                member: member.to_owned(),
            })
    }

    /// Size of a structure in bytes.
    ///
    /// # Errors
    ///
    /// The structure does not exist.
    pub fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        Ok(self.named_struct(name)?.size)
    }

    /// Whether some enumeration has this enumerator: `BPF_FUNC_x` exists where helper `x` does.
    #[must_use]
    pub fn has_enumerator(&self, name: &str) -> bool {
        self.starts.iter().any(|&start| {
            let Some(found) = self.type_at(start as usize) else {
                return false;
            };
            found.kind == kind::ENUM
                && (0..found.members).any(|index| {
                    u32_at(self.types, found.data + 8 * index)
                        .and_then(|name| self.string(name))
                        .is_some_and(|string| string == name.as_bytes())
                })
        })
    }

    /// Whether a type has this other name: `btf_trace_x` exists where tracepoint `x` does.
    #[must_use]
    pub fn has_typedef(&self, name: &str) -> bool {
        self.starts.iter().any(|&start| {
            self.type_at(start as usize).is_some_and(|found| {
                found.kind == kind::TYPEDEF && self.string(found.name) == Some(name.as_bytes())
            })
        })
    }

    fn named_struct(&self, name: &str) -> Result<Type, BtfError> {
        self.structs
            .get(name.as_bytes())
            .and_then(|&start| self.type_at(start as usize))
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))
    }

    fn member(&self, found: &Type, wanted: &[u8], depth: usize) -> Option<u32> {
        if depth > NESTING_MAX {
            return None;
        }
        (0..found.members).find_map(|index| {
            let at = found.data + MEMBER_BYTES * index;
            let name = u32_at(self.types, at)?;
            let type_id = u32_at(self.types, at + 4)?;
            let bits = u32_at(self.types, at + 8)?;
            // With bit fields in the structure, the upper byte is the field's width.
            let bits = if found.bitfields {
                bits & 0xff_ffff
            } else {
                bits
            };
            if name == 0 {
                let start = *self.starts.get(type_id.checked_sub(1)? as usize)?;
                let inner = self.type_at(start as usize)?;
                return matches!(inner.kind, kind::STRUCT | kind::UNION)
                    .then(|| self.member(&inner, wanted, depth + 1))
                    .flatten()
                    .and_then(|offset| (bits / 8).checked_add(offset));
            }
            (self.string(name)? == wanted).then_some(bits / 8)
        })
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = u32_at(self.types, at + 4)?;
        let found = Type {
            name: u32_at(self.types, at)?,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            bitfields: info >> 31 == 1,
            size: u32_at(self.types, at + 8)?,
            data: at + TYPE_BYTES,
        };
        (found.data + data_len(&found).unwrap_or(0) <= self.types.len()).then_some(found)
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(offset as usize..)?;
        rest.split(|&byte| byte == 0).next()
    }
}

/// Bytes after a type's fixed part, `None` for an unknown kind.
fn data_len(found: &Type) -> Option<usize> {
    Some(match found.kind {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        kind::STRUCT | kind::UNION | 15 | 19 => 12 * found.members,
        // ENUM, FUNC_PROTO
        kind::ENUM | 13 => 8 * found.members,
        _ => return None,
    })
}

struct Header {
    len: usize,
    type_off: u32,
    type_len: u32,
    str_off: u32,
    str_len: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let header = || {
            Some(Self {
                len: u32_at(bytes, 4)? as usize,
                type_off: u32_at(bytes, 8)?,
                type_len: u32_at(bytes, 12)?,
                str_off: u32_at(bytes, 16)?,
                str_len: u32_at(bytes, 20)?,
            })
        };
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        header()
            .filter(|_| magic == Some(MAGIC))
            .ok_or(BtfError::NotBtf)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF file of the given types (as words) and strings.
    fn file(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let len = 4 * types.len() as u32;
        for word in [24, 0, len, len, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        types
            .iter()
            .for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    /// `struct a { u32 x; struct { u32 y; }; }` with an int and an enum before it.
    fn sample() -> Vec<u8> {
        // strings: 1 "a", 3 "x", 5 "y", 7 "E", 9 "int"
        let types = [
            9,
            1 << 24,
            4,
            32, // 1: int
            0,
            6 << 24 | 1,
            4,
            7,
            0, // 2: enum { E }
            0,
            4 << 24 | 1,
            4,
            5,
            1,
            0, // 3: struct { int y; }
            1,
            4 << 24 | 2,
            8,
            3,
            1,
            0,
            0,
            3,
            32, // 4: struct a
        ];
        file(&types, b"\0a\0x\0y\0E\0int\0")
    }

    /// Check that members are found, also those of anonymous structures.
    #[test]
    fn members_are_found_through_anonymous_structures() {
        let bytes = sample();
        let types = KernelTypes::parse(&bytes).unwrap();
        assert_eq!(types.offset_of("a", "x"), Ok(0));
        assert_eq!(types.offset_of("a", "y"), Ok(4));
        assert_eq!(types.size_of("a"), Ok(8));
        assert!(types.has_enumerator("E"));
        assert!(!types.has_enumerator("a"));
        assert!(matches!(
            types.offset_of("a", "z"),
            Err(BtfError::NoMember { .. })
        ));
        assert!(matches!(
            types.offset_of("b", "x"),
            Err(BtfError::NoStruct(_))
        ));
    }

    /// Check that a file cut anywhere, or with a flipped byte anywhere, is an error or harmless.
    #[test]
    fn a_damaged_file_never_panics() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(KernelTypes::parse(&bytes[..len]).is_err(), "cut at {len}");
        }
        for index in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[index] ^= flip;
                if let Ok(types) = KernelTypes::parse(&damaged) {
                    let _ = types.offset_of("a", "y");
                    let _ = types.has_enumerator("E");
                    let _ = types.has_typedef("E");
                }
            }
        }
    }

    /// Check that offsets of nested structures whose sum is no number of this size are nobody's.
    #[test]
    fn offsets_do_not_overflow() {
        let types = [1, 4 << 24 | 2, 8, 0, 1, u32::MAX, 3, 1, u32::MAX];
        let bytes = file(&types, b"\0a\0x\0");
        let types = KernelTypes::parse(&bytes).unwrap();
        assert!(
            types
                .offset_of("a", "x")
                .is_ok_and(|offset| offset >= u32::MAX / 8)
        );
    }

    /// Check that a structure that contains itself as an anonymous member ends the search.
    #[test]
    fn a_structure_inside_itself_ends_the_search() {
        let bytes = file(&[1, 4 << 24 | 1, 8, 0, 1, 0], b"\0a\0");
        let types = KernelTypes::parse(&bytes).unwrap();
        assert!(types.offset_of("a", "x").is_err());
    }

    /// Check the running kernel's BTF against offsets that never change.
    #[test]
    fn the_running_kernel_has_the_structures_we_need() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").expect("profilerd needs BTF");
        let types = KernelTypes::parse(&bytes).unwrap();
        assert_eq!(types.offset_of("upid", "nr"), Ok(0));
        assert_eq!(types.offset_of("list_head", "prev"), Ok(8));
        let pid = types.offset_of("task_struct", "pid").unwrap();
        assert_eq!(types.offset_of("task_struct", "tgid"), Ok(pid + 4));
        assert!(types.has_enumerator("BPF_FUNC_ringbuf_output"));
        assert!(types.has_typedef("btf_trace_sys_exit"));
        assert!(!types.has_typedef("btf_trace_no_such_event"));
    }
}
