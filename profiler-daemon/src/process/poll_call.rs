//! The descriptors that a thread waits for in `poll` or `select`.
//!
//! In:  registers with which it entered the kernel, its process's memory; it must hold still meanwhile
//! Out: descriptors
//! Lost: those beyond a bound
//!
//! The arrays lie in the process's own memory: unlike an epoll set, nobody can ask the kernel for them.

use profiler_common::REGS_MAX;

use super::ReadMemory;

/// Descriptors that are looked at. Of a loop with more, most of these are its clients.
const DESCRIPTORS_MAX: usize = 256;
/// Entries of an array of `struct pollfd` that are read.
const ENTRIES_MAX: u64 = 1024;
/// Highest descriptor of a set of `select` that is looked at. glibc's and musl's sets end at 1024; a program may make
/// larger ones.
const SELECT_MAX: u64 = 4096;
/// Size of `struct pollfd`: descriptor, and two times 16 bits of events.
const ENTRY_BYTES: usize = 8;

/// Where the number and the first three arguments of a system call lie among the words of `struct pt_regs`, and the
/// numbers of the calls.
/// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/entry/syscalls/syscall_64.tbl>
#[cfg(target_arch = "x86_64")]
mod layout {
    pub(super) const NUMBER: usize = 15;
    pub(super) const ARGS: [usize; 3] = [14, 13, 12];
    /// `poll`, `ppoll`.
    pub(super) const POLLS: &[u32] = &[7, 271];
    /// `select`, `pselect6`.
    pub(super) const SELECTS: &[u32] = &[23, 270];
}

/// <https://github.com/torvalds/linux/blob/v6.12/scripts/syscall.tbl>
#[cfg(target_arch = "aarch64")]
mod layout {
    pub(super) const NUMBER: usize = 8;
    pub(super) const ARGS: [usize; 3] = [0, 1, 2];
    /// `ppoll`.
    pub(super) const POLLS: &[u32] = &[73];
    /// `pselect6`.
    pub(super) const SELECTS: &[u32] = &[72];
}

/// What a blocked thread waits for, if it is in one of the calls: in order, each once.
#[must_use]
pub(crate) fn polled(regs: &[u64; REGS_MAX], memory: &impl ReadMemory) -> Option<Vec<i32>> {
    // The low half of `orig_rax`: -1 after everything but a system call.
    let number = regs[layout::NUMBER] as u32;
    let [first, second, third] = layout::ARGS.map(|word| regs[word]);
    let mut descriptors = if layout::POLLS.contains(&number) {
        in_array(memory, first, second)
    } else if layout::SELECTS.contains(&number) {
        let mut descriptors = in_set(memory, first, second);
        descriptors.extend(in_set(memory, first, third));
        descriptors
    } else {
        return None;
    };
    descriptors.sort_unstable();
    descriptors.dedup();
    descriptors.truncate(DESCRIPTORS_MAX);
    Some(descriptors)
}

/// Those in an array of `count` elements `struct pollfd`. Negative ones are passed over by the kernel as well.
fn in_array(memory: &impl ReadMemory, address: u64, count: u64) -> Vec<i32> {
    let bytes = read(memory, address, count.min(ENTRIES_MAX) * ENTRY_BYTES as u64);
    let entries = bytes.chunks_exact(ENTRY_BYTES);
    let descriptors = entries.map(|it| i32::from_ne_bytes([it[0], it[1], it[2], it[3]]));
    descriptors.filter(|&fd| fd >= 0).collect()
}

/// Those below `end` in a set of bits; the kernel knows a set's length by its highest descriptor only.
fn in_set(memory: &impl ReadMemory, end: u64, address: u64) -> Vec<i32> {
    // `select` takes an `int`.
    let end = u64::from(end as u32).min(SELECT_MAX);
    let bytes = read(memory, address, end.div_ceil(8));
    let bits = (0..end as i32).zip(
        bytes
            .iter()
            .flat_map(|&byte| (0..8).map(move |bit| byte >> bit & 1)),
    );
    bits.filter_map(|(fd, bit)| (bit != 0).then_some(fd))
        .collect()
}

/// As much of some bytes as is readable; none at address 0, as sets that are not asked for have it.
fn read(memory: &impl ReadMemory, address: u64, len: u64) -> Vec<u8> {
    if address == 0 {
        return Vec::new();
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = memory.read(address, &mut bytes).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;
    use crate::process::ProcessMemory;

    fn regs(number: u32, args: [u64; 3]) -> [u64; REGS_MAX] {
        let mut regs = [0; REGS_MAX];
        regs[layout::NUMBER] = number.into();
        for (word, value) in layout::ARGS.into_iter().zip(args) {
            regs[word] = value;
        }
        regs
    }

    fn polled_in(number: u32, args: [u64; 3]) -> Option<Vec<i32>> {
        polled(
            &regs(number, args),
            &ProcessMemory::new(Pid(std::process::id())),
        )
    }

    fn address<T>(values: &[T]) -> u64 {
        values.as_ptr() as u64
    }

    /// Check that the descriptors of a poll's array are found, each once and without those that are passed over, and
    /// that a count beyond all memory gives no more than there is.
    #[test]
    fn an_array_is_read() {
        let poll = *layout::POLLS.last().unwrap();
        let entries = [[7_i32, 1], [-1, 1], [3, 5], [7, 0]];
        let found = polled_in(poll, [address(&entries), 4, 0]);
        assert_eq!(found, Some(vec![3, 7]));
        assert_eq!(polled_in(poll, [address(&entries), 1, 0]), Some(vec![7]));
        assert_eq!(polled_in(poll, [0, 4, 0]), Some(vec![]));
        assert_eq!(polled_in(poll, [8, u64::MAX, 0]), Some(vec![]));
        let many: Vec<[i32; 2]> = (0..5000).map(|fd| [fd, 1]).collect();
        let found = polled_in(poll, [address(&many), u64::MAX, 0]).unwrap();
        assert_eq!(found, (0..256).collect::<Vec<_>>());
    }

    /// Check that the sets of a select are read up to the highest descriptor, those to read from and those to write to.
    #[test]
    fn sets_are_read() {
        let select = *layout::SELECTS.last().unwrap();
        let (reads, writes) = ([1_u64 << 5 | 1 << 63, 1 << 2], [1_u64 << 9, 0]);
        let sets = [address(&reads), address(&writes)];
        let found = |end| polled_in(select, [end, sets[0], sets[1]]).unwrap();
        assert_eq!(found(67), [5, 9, 63, 66]);
        assert_eq!(found(63), [5, 9]);
        assert!(found(0).is_empty());
        assert_eq!(polled_in(select, [67, 0, 0]), Some(vec![]));
        assert_eq!(polled_in(select, [u64::MAX, 8, 8]), Some(vec![]));
    }

    /// Check that a thread in another call waits for nothing here.
    #[test]
    fn other_calls_have_no_descriptors() {
        assert_eq!(polled_in(0, [1, 1, 1]), None);
        assert_eq!(polled_in(u32::MAX, [1, 1, 1]), None);
    }
}
