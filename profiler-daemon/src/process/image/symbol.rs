//! Looks up dynamic symbols by their hash tables.

use object::elf;

use super::{Image, u16_at, u32_at, u64_at};

const SECTION_UNDEFINED: u16 = 0;
const SYMBOL_BYTES: u64 = 24;
/// Longest hash chain followed. Chains of real tables are shorter than ten.
const CHAIN_MAX: u32 = 4096;

/// A dynamic symbol, at its address in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

impl Image<'_> {
    /// The defined dynamic symbol of this name.
    pub(crate) fn symbol(&self, name: &str) -> Option<Symbol> {
        let index = match (self.gnu_hash, self.hash) {
            (Some(table), _) => self.find_by_gnu_hash(table, name),
            (None, Some(table)) => self.find_by_hash(table, name),
            (None, None) => None,
        }?;
        let symbol = self.read_symbol(index)?;
        let section = u16_at(&symbol, 6);
        let address = self.bias.wrapping_add(u64_at(&symbol, 8));
        (section != SECTION_UNDEFINED && self.span.contains(&address)).then(|| Symbol {
            address,
            size: u64_at(&symbol, 16),
        })
    }

    /// `u32 nbuckets, symoffset, bloom_size, bloom_shift; u64 bloom[]; u32 buckets[]; u32 chain[]`
    fn find_by_gnu_hash(&self, table: u64, name: &str) -> Option<u32> {
        let hash = elf::gnu_hash(name.as_bytes());
        let buckets = self.read_u32(table)?;
        let first_symbol = self.read_u32(table.checked_add(4)?)?;
        let bloom_words = self.read_u32(table.checked_add(8)?)?;
        let bucket_table = table.checked_add(16 + 8 * u64::from(bloom_words))?;
        let chain_table = bucket_table.checked_add(4 * u64::from(buckets))?;
        let bucket = hash.checked_rem(buckets)?;
        let mut index = self.read_u32(bucket_table.checked_add(4 * u64::from(bucket))?)?;
        for _ in 0..CHAIN_MAX {
            let slot = index.checked_sub(first_symbol)?;
            let entry = self.read_u32(chain_table.checked_add(4 * u64::from(slot))?)?;
            if entry | 1 == hash | 1 && self.has_name(index, name) {
                return Some(index);
            }
            if entry & 1 == 1 {
                return None;
            }
            index = index.checked_add(1)?;
        }
        None
    }

    /// `u32 nbucket, nchain; u32 bucket[]; u32 chain[]`
    fn find_by_hash(&self, table: u64, name: &str) -> Option<u32> {
        let hash = elf::hash(name.as_bytes());
        let buckets = self.read_u32(table)?;
        let bucket_table = table.checked_add(8)?;
        let chain_table = bucket_table.checked_add(4 * u64::from(buckets))?;
        let bucket = hash.checked_rem(buckets)?;
        let mut index = self.read_u32(bucket_table.checked_add(4 * u64::from(bucket))?)?;
        for _ in 0..CHAIN_MAX {
            if index == 0 {
                return None;
            }
            if self.has_name(index, name) {
                return Some(index);
            }
            index = self.read_u32(chain_table.checked_add(4 * u64::from(index))?)?;
        }
        None
    }

    /// `u32 name; u8 info, other; u16 section; u64 value, size`
    fn read_symbol(&self, index: u32) -> Option<[u8; SYMBOL_BYTES as usize]> {
        let address = self
            .symtab
            .checked_add(SYMBOL_BYTES.checked_mul(u64::from(index))?)?;
        let mut symbol = [0; SYMBOL_BYTES as usize];
        self.in_image(address)?;
        self.memory.read_exact(address, &mut symbol).ok()?;
        Some(symbol)
    }

    fn has_name(&self, index: u32, name: &str) -> bool {
        let Some(symbol) = self.read_symbol(index) else {
            return false;
        };
        let Some(address) = self.strtab.checked_add(u64::from(u32_at(&symbol, 0))) else {
            return false;
        };
        let mut bytes = vec![0; name.len() + 1];
        self.span.contains(&address)
            && self.memory.read_exact(address, &mut bytes).is_ok()
            && bytes.strip_suffix(&[0]) == Some(name.as_bytes())
    }
}
