//! Filters: arrays that the programs read before they look into a hash map, at every event of the host.
//!
//! An entry is 1 if an id with this remainder may be in the map, so most ids that are not in it cost a
//! load instead of a lookup. A stale 1 costs a lookup and nothing else.

/// Entries of a filter, indexed by tgid or tid modulo this.
pub const FILTER_LEN: u32 = 4096;
