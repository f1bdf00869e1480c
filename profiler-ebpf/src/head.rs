//! Is this the head of an HTTP/1 request? Judges the first bytes in the scratch's `data`.

use crate::{maps, scratch::RequestScratch};

/// Bytes of a request line that are looked at; a longer one counts as whole.
pub(crate) const LINE_MAX: u64 = 256;

/// What the bytes are. Low byte of what [`line`] returns; the others are [`method`] and
/// [`target_offset`].
pub(crate) mod status {
    /// Not the beginning of a request.
    pub(crate) const NO: u64 = 0;
    /// The beginning of a method token.
    pub(crate) const TOKEN: u64 = 1;
    /// A method token and the beginning of a target.
    pub(crate) const TARGET: u64 = 2;
    /// A method token and a target up to its end, or up to [`super::LINE_MAX`].
    pub(crate) const WHOLE: u64 = 3;
}

/// Low byte of a result of [`line`], see [`status`].
#[inline(always)]
pub(crate) fn line_status(line: u64) -> u64 {
    line & 0xff
}

/// Index of the method, as in `profiler_common::Method`.
#[inline(always)]
pub(crate) fn method(line: u64) -> u64 {
    line >> 8 & 0xf
}

/// Where the target begins.
#[inline(always)]
pub(crate) fn target_offset(line: u64) -> u64 {
    line >> 16 & 0xf
}

/// Byte at `index` of the scratch's data; the index wraps at 512 to satisfy the verifier.
#[inline(always)]
pub(crate) fn byte(scratch: &RequestScratch, index: u64) -> u8 {
    // SAFETY: the index is below 512, and `data` is longer.
    unsafe { *scratch.data.as_ptr().add((index & 0x1ff) as usize) }
}

/// Method tokens with the space that follows, as little-endian words, in the order of
/// `profiler_common::Method`.
const TOKENS: [&[u8]; 9] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"PATCH ",
    b"DELETE ",
    b"HEAD ",
    b"OPTIONS ",
    b"TRACE ",
    b"CONNECT ",
];
const CONNECT: u64 = 8;

const fn word(token: &[u8]) -> u64 {
    let mut word = 0;
    let mut index = 0;
    while index < token.len() {
        word |= (token[index] as u64) << (8 * index);
        index += 1;
    }
    word
}

const fn mask(len: u64) -> u64 {
    if len >= 8 {
        u64::MAX
    } else {
        (1 << (8 * len)) - 1
    }
}

/// `token length << 8 | method` of the token the word begins with, 0 if none.
#[inline(always)]
fn whole_token(first: u64) -> u64 {
    macro_rules! tokens {
        ($($index:literal)+) => {$({
            const LEN: u64 = TOKENS[$index].len() as u64;
            const WORD: u64 = word(TOKENS[$index]);
            if first & mask(LEN) == WORD {
                return LEN << 8 | $index;
            }
        })+};
    }
    tokens!(0 1 2 3 4 5 6 7 8);
    0
}

/// Whether `len` bytes, at most 8, could be the beginning of a token.
#[inline(always)]
fn token_prefix(first: u64, len: u64) -> bool {
    macro_rules! tokens {
        ($($index:literal)+) => {$({
            const LEN: u64 = TOKENS[$index].len() as u64;
            const WORD: u64 = word(TOKENS[$index]);
            if len <= LEN && (first ^ WORD) & mask(len) == 0 {
                return true;
            }
        })+};
    }
    tokens!(0 1 2 3 4 5 6 7 8);
    false
}

/// Judges `data[..len]`: [`status`], method and where the target begins.
///
/// A token must be followed by `/` (origin form), `http` (absolute form), `*`, or by anything if it
/// is `CONNECT`; RFC 9112 §3.2.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn line(len: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return status::NO;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &*scratch };
    if len == 0 {
        return status::NO;
    }
    // SAFETY: `data` is longer than a word and the struct aligns it.
    let first = unsafe { *scratch.data.as_ptr().cast::<u64>() };
    let token = whole_token(first);
    let (method, offset) = (token & 0xff, token >> 8);
    if offset == 0 || len <= offset {
        return if len <= 8 && token_prefix(first, len) {
            status::TOKEN
        } else {
            status::NO
        };
    }
    let form = byte(scratch, offset);
    let next = byte(scratch, offset + 1);
    let plausible = match form {
        b'/' | b'*' => true,
        b'h' | b'H' => len == offset + 1 || next == b't' || next == b'T',
        _ => method == CONNECT,
    };
    if !plausible {
        return status::NO;
    }
    let found = offset << 16 | method << 8;
    // Counts from 0, so that the verifier sees an end, although the first byte is further on.
    let mut count = 0;
    while count < LINE_MAX {
        let index = offset + 1 + count;
        if index >= LINE_MAX {
            break;
        }
        if index >= len {
            return found | status::TARGET;
        }
        let byte = byte(scratch, index);
        if byte <= b' ' {
            return match byte {
                b' ' | b'\r' | b'\n' => found | status::WHOLE,
                _ => status::NO,
            };
        }
        count += 1;
    }
    found | status::WHOLE
}
