//! Call frame tables of the objects mapped into processes: `.eh_frame` and its `.eh_frame_hdr`.
//!
//! Sections are copied, not mapped: a file that its owner truncates would kill a daemon that maps it.

use std::collections::HashMap;
use std::fs::File;

use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, NativeEndian, UnwindContext, UnwindSection,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Object as _, ObjectSection as _, ReadCache};

use super::frame::Row;
use crate::model::Pid;
use crate::process::{Mapping, ProcessMemory, ReadMemory};

/// Largest section copied. libLLVM, one of the largest, has 8 MiB.
const SECTION_MAX_BYTES: u64 = 64 << 20;
/// Largest vDSO image read.
const VDSO_MAX_BYTES: u64 = 64 << 10;
/// Objects kept; more are forgotten all at once.
const OBJECTS_MAX: usize = 1024;

type Slice<'a> = EndianSlice<'a, NativeEndian>;

/// Unwind information of one ELF object.
#[derive(Debug)]
pub(super) struct Object {
    eh_frame: Vec<u8>,
    eh_frame_hdr: Vec<u8>,
    bases: BaseAddresses,
    /// Loadable code segments: file offset, address, size in the file.
    segments: Vec<(u64, u64, u64)>,
}

/// Which object a mapping shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    File { device: u64, inode: u64 },
    Vdso(Pid),
}

/// Objects by file; one that cannot be read is remembered as such.
#[derive(Debug, Default)]
pub(super) struct ObjectCache {
    ids: HashMap<Key, Option<usize>>,
    objects: Vec<Object>,
}

impl ObjectCache {
    /// The object behind a mapping.
    pub(super) fn of(
        &mut self,
        pid: Pid,
        memory: ProcessMemory,
        mapping: &Mapping,
    ) -> Option<usize> {
        let key = if mapping.is_vdso() {
            Key::Vdso(pid)
        } else if mapping.is_file() {
            Key::File {
                device: mapping.device,
                inode: mapping.inode,
            }
        } else {
            return None;
        };
        if let Some(&known) = self.ids.get(&key) {
            return known;
        }
        let read = match key {
            Key::Vdso(_) => Object::from_memory(memory, mapping),
            Key::File { .. } => Object::from_file(pid, mapping),
        };
        let id = read.map(|object| {
            self.objects.push(object);
            self.objects.len() - 1
        });
        if id.is_none() {
            tracing::debug!(tgid = pid.0, path = mapping.path, "no unwind information");
        }
        if self.ids.len() < OBJECTS_MAX {
            self.ids.insert(key, id);
        }
        id
    }

    pub(super) fn get(&self, id: usize) -> &Object {
        &self.objects[id]
    }

    /// A process is gone; files stay, they are shared.
    pub(super) fn forget(&mut self, pid: Pid) {
        self.ids.remove(&Key::Vdso(pid));
    }
}

impl Object {
    fn from_file(pid: Pid, mapping: &Mapping) -> Option<Self> {
        // map_files survives deletion and needs no path; the path works without CAP_CHECKPOINT_RESTORE.
        let by_range = format!(
            "/proc/{}/map_files/{:x}-{:x}",
            pid.0, mapping.start, mapping.end
        );
        let by_path = format!("/proc/{}/root{}", pid.0, mapping.path);
        let file = File::open(by_range).or_else(|_| File::open(by_path)).ok()?;
        Self::parse(&ReadCache::new(file))
    }

    fn from_memory(memory: ProcessMemory, mapping: &Mapping) -> Option<Self> {
        let size = mapping.end.checked_sub(mapping.start)?.min(VDSO_MAX_BYTES);
        let mut image = vec![0; usize::try_from(size).ok()?];
        memory.read_exact(mapping.start, &mut image).ok()?;
        Self::parse(image.as_slice())
    }

    fn parse<'data, R: object::ReadRef<'data>>(data: R) -> Option<Self> {
        let file = object::read::elf::ElfFile64::<object::NativeEndian, R>::parse(data).ok()?;
        let mut bases = BaseAddresses::default();
        let section = |name: &str| {
            let section = file.section_by_name(name)?;
            if section.size() > SECTION_MAX_BYTES {
                return None;
            }
            Some((
                section.address(),
                section.uncompressed_data().ok()?.into_owned(),
            ))
        };
        let (eh_frame_address, eh_frame) = section(".eh_frame")?;
        bases = bases.set_eh_frame(eh_frame_address);
        let mut eh_frame_hdr = Vec::new();
        if let Some((address, bytes)) = section(".eh_frame_hdr") {
            bases = bases.set_eh_frame_hdr(address);
            eh_frame_hdr = bytes;
        }
        for (name, text) in [(".text", true), (".got", false)] {
            if let Some(section) = file.section_by_name(name) {
                bases = if text {
                    bases.set_text(section.address())
                } else {
                    bases.set_got(section.address())
                };
            }
        }
        let endian = file.endian();
        let segments = file
            .elf_header()
            .program_headers(endian, data)
            .ok()?
            .iter()
            .filter(|p| p.p_type(endian) == object::elf::PT_LOAD)
            .map(|p| (p.p_offset(endian), p.p_vaddr(endian), p.p_filesz(endian)))
            .collect();
        Some(Self {
            eh_frame,
            eh_frame_hdr,
            bases,
            segments,
        })
    }

    /// Address in the object's own terms.
    pub(super) fn to_object_address(&self, mapping: &Mapping, address: u64) -> Option<u64> {
        let offset = address
            .checked_sub(mapping.start)?
            .checked_add(mapping.file_offset)?;
        self.segments
            .iter()
            .find(|(start, _, size)| offset >= *start && offset - start < *size)
            .map(|(start, vaddr, _)| vaddr.wrapping_add(offset - start))
    }

    /// The rule for an address; `None` if nothing covers it.
    pub(super) fn row(&self, address: u64) -> Option<Row> {
        let eh_frame = EhFrame::from(Slice::new(&self.eh_frame, NativeEndian));
        let fde = self.fde(&eh_frame, address)?;
        let mut context = UnwindContext::new();
        let row = fde
            .unwind_info_for_address(&eh_frame, &self.bases, &mut context, address)
            .ok()?;
        let expression =
            |e: &gimli::UnwindExpression<usize>| Some(e.get(&eh_frame).ok()?.0.slice().to_vec());
        Row::from_gimli(
            row,
            expression,
            fde.is_signal_trampoline(),
            fde.cie().encoding(),
        )
    }

    fn fde<'a>(
        &'a self,
        eh_frame: &EhFrame<Slice<'a>>,
        address: u64,
    ) -> Option<gimli::FrameDescriptionEntry<Slice<'a>>> {
        if !self.eh_frame_hdr.is_empty() {
            let header = EhFrameHdr::from(Slice::new(&self.eh_frame_hdr, NativeEndian));
            if let Ok(parsed) = header.parse(&self.bases, 8)
                && let Some(table) = parsed.table()
            {
                let fde = table
                    .fde_for_address(eh_frame, &self.bases, address, EhFrame::cie_from_offset)
                    .ok()?;
                return fde.contains(address).then_some(fde);
            }
        }
        eh_frame
            .fde_for_address(&self.bases, address, EhFrame::cie_from_offset)
            .ok()
    }
}
