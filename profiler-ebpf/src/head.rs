//! Is this the head of an HTTP/1 request? Asks `profiler_common::line` about the first bytes in the scratch's
//! `data`.

use profiler_common::{LINE_MAX_BYTES, Line, SKIPS_MAX};

use crate::maps;
use crate::scratch::{RequestScratch, fetch};

pub(crate) use profiler_common::line_status as status;

/// Bytes of a request line that are looked at.
pub(crate) const LINE_MAX: u64 = LINE_MAX_BYTES as u64;

/// Byte at `index` of the scratch's data; the index wraps at 512 to satisfy the verifier.
#[inline(always)]
pub(crate) fn byte(scratch: &RequestScratch, index: u64) -> u8 {
    // SAFETY: the index is below 512, and `data` is longer.
    unsafe { *scratch.data.as_ptr().add((index & 0x1ff) as usize) }
}

/// Makes a step of `profiler_common::line` a function of integers.
macro_rules! step {
    ($name:ident($($argument:ident),*) => $step:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name($($argument: u64),*) -> u64 {
            let Some(scratch) = maps::request_scratch() else {
                return status::NO;
            };
            // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
            let scratch = unsafe { &*scratch };
            $step(|index| byte(scratch, index))
        }
    };
}

step!(line_token(len) => |byte| profiler_common::token(len, byte).0);
step!(line_before(len) => |byte| profiler_common::before(len, byte).0);
step!(line_version(len, at) => |byte| profiler_common::version(len, at, byte));
step!(line_target(len, line) => |byte| {
    profiler_common::target(len, Line(line), byte, |at| line_version(len, at)).0
});

/// Judges `data[..len]`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn line(len: u64) -> u64 {
    let line = profiler_common::line(
        Line(line_token(len)),
        |line| Line(line_target(len, line.0)),
        || Line(line_before(len)),
    );
    line.0
}

/// Low byte of a result of [`line`] or [`read_line`], see [`status`].
#[inline(always)]
pub(crate) fn line_status(line: u64) -> u64 {
    Line(line).status()
}

/// Copies the beginning of what a call has read to `data`, without what stands before a request line, and judges it.
///
/// Of a line, `Line::skip` is the number of bytes copied: 0 if they are not readable. If all that was read stands before a line,
/// it is what later reads will bring of that, perhaps 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn read_line() -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return status::NO;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let mut skips = 0;
    while skips <= SKIPS_MAX {
        let copied = fetch(0, LINE_MAX);
        let found = Line(line(copied));
        if found.status() != status::SKIP {
            return found.with_skip(copied).0;
        }
        if found.skip() >= scratch.len {
            return found.with_skip(found.skip() - scratch.len).0;
        }
        scratch.advance(found.skip());
        skips += 1;
    }
    Line(status::NO).with_skip(1).0
}
