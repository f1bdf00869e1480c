//! The last bytes of a response: they tell the end of a chunked body, which no number at its beginning does.

use crate::{maps, read};

/// `\r\n\r\n`, the latest bytes of a tail.
pub(crate) const EMPTY_LINE: u64 = u32::from_le_bytes(*b"\r\n\r\n") as u64;

/// Buffers of a write that are looked at. Of a write with more the last bytes are not known.
const BUFFERS_MAX: u64 = 8;

/// The last bytes of a response (`Conn::tail`) after the write in the scratch, from those before it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tail(before: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &*scratch };
    // Interim responses in front of it, which are left out, may be in other buffers.
    let len = scratch.skip + scratch.len;
    if scratch.iovec_count == 0 {
        return append(before, scratch.base, len);
    }
    // A write may have taken less than its buffers hold.
    let mut left = len;
    let mut tail = before;
    let mut index = 0;
    while index < BUFFERS_MAX {
        if left == 0 || index >= scratch.iovec_count {
            return tail;
        }
        let Some([base, len]) = read::user::<[u64; 2]>(scratch.base + 16 * index) else {
            return 0;
        };
        let taken = if len < left { len } else { left };
        tail = append(tail, base, taken);
        left -= taken;
        index += 1;
    }
    if left == 0 { tail } else { 0 }
}

/// A tail and the last of `len` bytes behind it; 0 if they are not readable.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn append(tail: u64, base: u64, len: u64) -> u64 {
    if len == 0 {
        return tail;
    }
    if len >= 8 {
        return read::user::<u64>(base + len - 8).unwrap_or(0);
    }
    // One by one: eight bytes that begin before the buffer may not be readable.
    let mut tail = tail;
    let mut index = 0;
    while index < 8 {
        if index >= len {
            return tail;
        }
        let Some(byte) = read::user::<u8>(base + index) else {
            return 0;
        };
        tail = tail >> 8 | u64::from(byte) << 56;
        index += 1;
    }
    tail
}
