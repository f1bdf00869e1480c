//! The functions that a runtime has described in a perf map.
//!
//! In:  whole lines of the map, in the order in which they were written
//! Out: the name of the function at an address
//! Lost: lines that make no sense
//!
//! ```text
//! 7f3a14d50360 80 LazyCompile:*handler /srv/app.js:12
//! start        size (both hexadecimal)  name, to the end of the line
//! ```
//! <https://github.com/torvalds/linux/blob/v6.12/tools/perf/Documentation/jit-interface.txt>
//!
//! # Which line holds
//! The format has no line for code that is gone: its memory is described again when other code takes its place. The
//! later line holds, for all of its range.
//!
//! # Why not by blazesym
//! It maps the file, which the process may truncate under us, and refuses all of a map whose last
//! line is just being written.

use std::collections::BTreeMap;

/// Functions by address.
#[derive(Default)]
pub(crate) struct PerfMap {
    /// Names, one behind the other.
    text: String,
    /// By first address; ranges do not overlap.
    functions: BTreeMap<u64, Function>,
}

struct Function {
    end: u64,
    /// In `text`.
    name_start: u32,
    name_bytes: u32,
}

impl PerfMap {
    /// Adds what lines describe.
    pub(crate) fn append(&mut self, lines: &[u8]) {
        for line in String::from_utf8_lossy(lines).lines() {
            if let Some((start, end, name)) = parse(line) {
                self.insert(start, end, name);
            }
        }
    }

    /// The function at an address.
    pub(crate) fn find(&self, address: u64) -> Option<&str> {
        let (_, function) = self.functions.range(..=address).next_back()?;
        if address >= function.end {
            return None;
        }
        let start = function.name_start as usize;
        self.text.get(start..start + function.name_bytes as usize)
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        // A node of the tree is between half full and full.
        let entry_bytes = 3 * size_of::<(u64, Function)>() / 2;
        self.text.capacity() + self.functions.len() * entry_bytes
    }

    fn insert(&mut self, start: u64, end: u64, name: &str) {
        let (Ok(name_start), Ok(name_bytes)) = (self.text.len().try_into(), name.len().try_into())
        else {
            return;
        };
        if let Some((_, before)) = self.functions.range_mut(..start).next_back() {
            before.end = before.end.min(start);
        }
        while let Some((&covered, _)) = self.functions.range(start..end).next() {
            self.functions.remove(&covered);
        }
        self.text.push_str(name);
        let function = Function {
            end,
            name_start,
            name_bytes,
        };
        self.functions.insert(start, function);
    }
}

/// First address, address after the last, name.
fn parse(line: &str) -> Option<(u64, u64, &str)> {
    let (start, rest) = line.split_once(' ')?;
    let (size, name) = rest.split_once(' ')?;
    let number = |digits: &str| u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok();
    let start = number(start)?;
    let end = start.checked_add(number(size)?)?;
    (end > start).then_some((start, end, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that functions are found by address, that a later description replaces an earlier one,
    /// and that bad lines are skipped.
    #[test]
    fn functions_are_found() {
        let mut map = PerfMap::default();
        map.append(
            concat!(
                "2000 10 second with spaces\n",
                "1000 10 first\n",
                "zz 10 bad\n",
                "\n",
                "3000\n",
                "ffffffffffffffff 10 wraps\n",
                "0x4000 0x8 prefixed\n",
                "1000 20 first, recompiled\n",
            )
            .as_bytes(),
        );
        assert_eq!(map.find(0x1000), Some("first, recompiled"));
        assert_eq!(map.find(0x101f), Some("first, recompiled"));
        assert_eq!(map.find(0x1020), None);
        assert_eq!(map.find(0x2008), Some("second with spaces"));
        assert_eq!(map.find(0x4007), Some("prefixed"));
        assert_eq!(map.find(0xfff), None);
        assert_eq!(map.find(u64::MAX), None);
    }

    /// Check that code which took the place of other code is not shadowed by what is left of it.
    #[test]
    fn later_code_takes_the_place_of_earlier_code() {
        let mut map = PerfMap::default();
        map.append(b"1000 100 a\n1100 100 b\n1200 100 c\n");
        map.append(b"1080 100 d\n5000 0 empty\n");
        let names: Vec<_> = [0x1000, 0x107f, 0x1080, 0x117f, 0x1180, 0x1200]
            .map(|address| map.find(address))
            .into();
        let (a, d, c) = (Some("a"), Some("d"), Some("c"));
        assert_eq!(names, [a, a, d, d, None, c]);
        assert_eq!(map.find(0x5000), None);
    }
}
