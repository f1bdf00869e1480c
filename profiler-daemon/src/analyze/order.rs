//! The order in which OAP lists trees: the iteration order of a Java `HashMap` with string keys.
//!
//! OAP groups snapshots with `Collectors.groupingBy`, so the map is filled by `computeIfAbsent`,
//! once per snapshot. That call doubles a table that is too full before it looks for the key, and
//! puts a new key first in its bucket; doubling keeps the order inside a bucket.
//!
//! Compared with OAP 10.1.0 on generated stacks: the same order for 200 segments of up to three
//! root frames and for 30 of 40 of up to forty. The other ten differed inside a bucket only, but
//! for one whose table had not been doubled: OAP seems to fill partial maps in parallel and to
//! merge them, which depends on its processors. Buckets of eight and more keys become search trees
//! in Java, whose order differs as well. A real segment has one root frame, or a few.

/// Buckets of a `HashMap` while it is filled.
#[derive(Debug)]
pub(super) struct Buckets {
    count: u32,
    keys: u32,
}

impl Buckets {
    pub(super) fn new() -> Self {
        Self { count: 16, keys: 0 }
    }

    /// One `computeIfAbsent`.
    pub(super) fn compute_if_absent(&mut self, is_new: bool) {
        if u64::from(self.keys) > u64::from(self.count) * 3 / 4 && self.count < 1 << 30 {
            self.count *= 2;
        }
        self.keys += u32::from(is_new);
    }

    /// Sorts first-seen keys as the map iterates over them.
    pub(super) fn sort<'k, T>(&self, items: &mut [T], key: impl Fn(&T) -> &'k str) {
        items.reverse();
        items.sort_by_cached_key(|item| {
            let hash = java_hash(key(item));
            (hash ^ (hash >> 16)) & (self.count - 1)
        });
    }
}

/// `String.hashCode`, over UTF-16 units.
fn java_hash(text: &str) -> u32 {
    text.encode_utf16().fold(0_u32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(u32::from(unit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted<'a>(keys: &[&'a str]) -> Vec<&'a str> {
        let mut keys = keys.to_vec();
        let mut buckets = Buckets::new();
        for _ in &keys {
            buckets.compute_if_absent(true);
        }
        buckets.sort(&mut keys, |key| *key);
        keys
    }

    /// Check the hash against values of Java's documentation formula, worked by hand.
    #[test]
    fn the_hash_is_javas() {
        assert_eq!(java_hash(""), 0);
        assert_eq!(java_hash("a"), 97);
        assert_eq!(java_hash("ab"), 97 * 31 + 98);
        assert_eq!(java_hash("hello"), 99_162_322);
        assert_eq!(java_hash("ä"), 0xe4);
        assert_eq!(java_hash("😀"), 0xd83d * 31 + 0xde00);
    }

    /// Check that single letters come in the order of their codes modulo the table size.
    #[test]
    fn keys_are_sorted_by_bucket() {
        // m = 109, n = 110, o = 111, p = 112: buckets 13, 14, 15 and 0 of 16.
        assert_eq!(sorted(&["n", "m", "p", "o"]), ["p", "m", "n", "o"]);
    }

    /// Check that of two keys in one bucket the later one comes first ("Aa" and "BB" have equal
    /// hashes).
    #[test]
    fn the_later_key_comes_first_in_a_bucket() {
        assert_eq!(sorted(&["BB", "Aa"]), ["Aa", "BB"]);
        assert_eq!(sorted(&["Aa", "BB"]), ["BB", "Aa"]);
    }

    /// Check that the table doubles with the call after the thirteenth key, new key or not.
    #[test]
    fn the_table_doubles_with_the_next_call() {
        let mut buckets = Buckets::new();
        for _ in 0..13 {
            buckets.compute_if_absent(true);
        }
        assert_eq!(buckets.count, 16);
        buckets.compute_if_absent(false);
        assert_eq!(buckets.count, 32);
        buckets.compute_if_absent(false);
        assert_eq!(buckets.count, 32);
    }
}
