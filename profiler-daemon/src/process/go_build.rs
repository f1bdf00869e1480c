//! Reads what the Go linker says of a program: the tool chain and the modules in it.
//!
//! In:  memory of the executable's data segment
//! Out: [`GoBuild`]
//! Lost: versions and modules of programs linked by Go before 1.18, which only points to them
//!
//! ```text
//! "\xff Go buildinf:" | pointer size 1 | flags 1 | 16 bytes | length | version | length | modules
//!                                        bit 1: texts follow in place; a length is a varint
//! modules: 16 bytes | "path\t..." "mod\t..." "dep\tMODULE\tVERSION\t..." by lines | 16 bytes
//! ```
//! <https://github.com/golang/go/blob/go1.22.0/src/debug/buildinfo/buildinfo.go>

use super::ReadMemory;
use super::image::{Headers, PF_W, PT_LOAD};

/// Build information stands at the start of the data segment, on a multiple of 16.
const MAGIC: &[u8] = b"\xff Go buildinf:";
const ALIGN: usize = 16;
/// As much of the data segment as Go's own reader searches first.
const SEARCH_BYTES: usize = 64 << 10;
/// Header before the version: magic, pointer size, flags, padding.
const HEADER_BYTES: usize = 32;
/// Bit of the flags byte: the texts follow in place (1.18 and later).
const INLINE: u8 = 2;
const VERSION_BYTES_MAX: usize = 64;
/// The modules of a large program are some 30 KiB.
const INFO_BYTES_MAX: usize = 256 << 10;

/// Build information of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoBuild {
    /// Version of the tool chain, such as `go1.22.1`.
    pub(crate) version: Option<String>,
    /// Where it stands.
    address: u64,
}

impl GoBuild {
    /// `Some` if the image at `base` was linked by Go.
    pub(crate) fn find(memory: &dyn ReadMemory, base: u64) -> Option<Self> {
        let headers = Headers::read(memory, base).ok()?;
        let data = headers
            .segments
            .iter()
            .find(|segment| segment.kind == PT_LOAD && segment.flags & PF_W != 0)?;
        let bytes = usize::try_from(data.bytes).map_or(SEARCH_BYTES, |n| n.min(SEARCH_BYTES));
        let start = read(memory, data.address, bytes)?;
        let skew = (ALIGN - data.address as usize % ALIGN) % ALIGN;
        let at = (skew..start.len())
            .step_by(ALIGN)
            .find(|&at| start[at..].starts_with(MAGIC))?;
        Some(Self {
            version: version(&start[at..]),
            address: data.address.checked_add(at as u64)?,
        })
    }

    /// Version of a module that the program was built with.
    pub(crate) fn module(&self, memory: &dyn ReadMemory, path: &str) -> Option<String> {
        module(&read(memory, self.address, INFO_BYTES_MAX)?, path)
    }
}

fn read(memory: &dyn ReadMemory, address: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let read = memory.read(address, &mut buffer).ok()?;
    buffer.truncate(read);
    Some(buffer)
}

/// The texts behind the header, if they are there.
fn texts(info: &[u8]) -> Option<&[u8]> {
    let flags = *info.get(MAGIC.len() + 1)?;
    (flags & INLINE != 0)
        .then(|| info.get(HEADER_BYTES..))
        .flatten()
}

fn version(info: &[u8]) -> Option<String> {
    let (text, _) = text(texts(info)?)?;
    let text = std::str::from_utf8(text).ok()?;
    let is_version = text.len() <= VERSION_BYTES_MAX && !text.contains(char::is_control);
    is_version.then(|| text.to_owned())
}

/// Version of the module `path` in build information.
pub(crate) fn module(info: &[u8], path: &str) -> Option<String> {
    let (_, rest) = text(texts(info)?)?;
    let (modules, _) = text(rest)?;
    let modules = String::from_utf8_lossy(modules);
    modules.lines().find_map(|line| {
        let mut fields = line.strip_prefix("dep\t")?.split('\t');
        (fields.next() == Some(path)).then(|| fields.next().unwrap_or_default().to_owned())
    })
}

/// A text behind its length, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (at, &byte) in bytes.iter().enumerate().take(4) {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let rest = bytes.get(at + 1..)?;
            return rest.split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u8, texts: &[u8]) -> Vec<u8> {
        let mut info = MAGIC.to_vec();
        info.extend([8, flags]);
        info.resize(HEADER_BYTES, 0);
        info.extend_from_slice(texts);
        info
    }

    /// Check the version in build information, and that other bytes have none.
    #[test]
    fn go_tells_its_version() {
        assert_eq!(
            version(&info(2, b"\x08go1.22.1\0")),
            Some("go1.22.1".into())
        );
        assert_eq!(version(&info(0, b"\x08go1.17.1\0")), None);
        assert_eq!(version(&info(2, b"\x40go1")), None);
        assert_eq!(version(&info(2, b"\xff\xff\xff\xff\xffgo1")), None);
        assert_eq!(version(&info(2, b"\x04go\x1b1")), None);
        assert_eq!(version(MAGIC), None);
    }

    /// Check that a module is found by its whole path.
    #[test]
    fn modules_have_versions() {
        let modules = format!(
            "{0}path\tshop\nmod\tshop\t(devel)\t\ndep\tgithub.com/a/b\tv0.6.0\th1:x=\ndep\tgithub.com/a/bc\tv1\n{0}",
            "#".repeat(16)
        );
        let mut texts = b"\x08go1.22.1".to_vec();
        let length = u8::try_from(modules.len()).unwrap();
        texts.extend([length & 0x7f | 0x80, length >> 7]);
        texts.extend(modules.as_bytes());
        let info = info(2, &texts);
        assert_eq!(module(&info, "github.com/a/b").as_deref(), Some("v0.6.0"));
        assert_eq!(module(&info, "github.com/a"), None);
        assert_eq!(module(&info[..60], "github.com/a/b"), None);
    }
}
