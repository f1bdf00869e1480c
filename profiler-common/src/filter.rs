//! Filters: arrays in front of a hash map that the programs ask at every event of the machine.
//!
//! An entry is 1 where an id with this remainder may be in the map, so that an id which is not costs a
//! load instead of a lookup. What is left over costs a lookup and nothing else.

/// Entries of a filter, indexed by tgid or tid modulo this.
pub const FILTER_LEN: u32 = 4096;
