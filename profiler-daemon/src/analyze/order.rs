//! The order in which OAP lists trees: the iteration order of a Java `HashMap` with string keys.

/// Sorts first-seen keys as `java.util.HashMap` would iterate over them.
///
/// Keys of one bucket keep the order of insertion. Buckets of eight and more keys in a large table
/// become search trees in Java, whose order differs; no real set of root frames gets there.
pub(super) fn sort_like_java<'k, T>(items: &mut [T], key: impl Fn(&T) -> &'k str) {
    let buckets = table_size(items.len());
    items.sort_by_cached_key(|item| {
        let hash = java_hash(key(item));
        (hash ^ (hash >> 16)) & (buckets - 1)
    });
}

/// `String.hashCode`, over UTF-16 units.
fn java_hash(text: &str) -> u32 {
    text.encode_utf16().fold(0_u32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(u32::from(unit))
    })
}

/// Buckets of a `HashMap` that grew to `len` keys: 16, doubled whenever it is over 3/4 full.
fn table_size(len: usize) -> u32 {
    let mut size = 16_u32;
    while len as u64 > u64::from(size) * 3 / 4 && size < 1 << 30 {
        size *= 2;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut keys = ["n", "m", "p", "o"];
        sort_like_java(&mut keys, |key| *key);
        assert_eq!(keys, ["p", "m", "n", "o"]);
    }

    /// Check that a table of more than twelve keys has 32 buckets.
    #[test]
    fn the_table_doubles_above_three_quarters() {
        assert_eq!(table_size(0), 16);
        assert_eq!(table_size(12), 16);
        assert_eq!(table_size(13), 32);
        assert_eq!(table_size(25), 64);
    }

    /// Check that keys of one bucket stay in first-seen order ("Aa" and "BB" have equal hashes).
    #[test]
    fn equal_buckets_keep_their_order() {
        let mut keys = ["BB", "Aa"];
        sort_like_java(&mut keys, |key| *key);
        assert_eq!(keys, ["BB", "Aa"]);
    }
}
