//! Copies the user stack of the current thread.
//!
//! A read that crosses into an unreadable page fails as a whole, and every stack ends at one. So
//! the copy goes to the end of the first page and then page by page until a read fails or the cap is
//! reached.
//!
//! The first pages may be unreadable as well: a function that has just made room for its variables moved
//! `sp` to pages that nobody has written yet. A tick finds it there while the kernel serves the fault,
//! or for longer if the room is left unused. All that tells the callers lies above; such pages are skipped.

use profiler_common::{STACK_COPY_MAX_BYTES, sample_flag};

use crate::scratch::SAMPLE_BYTES;
use crate::{maps, read};

/// Size of a page. With larger ones (aarch64) the steps are merely smaller than they could be.
const PAGE: u64 = 4096;
/// Unwritten pages for which the copy does not become shorter. Buffers for a path have one, rarely more.
const SKIPPED_PAGES: u32 = 4;
/// The first part of a page and as many whole ones as the cap allows.
const STEPS: u32 = SKIPPED_PAGES + (STACK_COPY_MAX_BYTES as u64 / PAGE) as u32 + 1;

/// Copies from `sp` upwards to `bytes[at..]` of the sample's scratch, from the first readable page on: the
/// bytes before it are left in `stack_skipped_bytes`. Returns the number of bytes copied in the low half and
/// [`sample_flag`]s about how the copy ended in the high half.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn copy_user_stack(at: u64, sp: u64) -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let bytes = scratch.bytes.as_mut_ptr();
    let mut skipped = 0;
    let mut copied = 0;
    let mut end = sample_flag::STACK_CUT;
    let mut step = 0;
    while step < STEPS {
        let address = sp + skipped + copied;
        let mut chunk = PAGE - (address & (PAGE - 1));
        let left = STACK_COPY_MAX_BYTES as u64 - copied;
        if chunk > left {
            chunk = left;
        }
        let to = read::opaque(at + copied);
        let chunk = read::opaque(chunk);
        if chunk == 0 || chunk > PAGE || to > SAMPLE_BYTES as u64 - PAGE {
            break;
        }
        // SAFETY: to + chunk <= SAMPLE_BYTES by the check above.
        if unsafe { read::copy_user(bytes.add(to as usize), chunk, address) } {
            copied += chunk;
        } else if copied == 0 {
            skipped += chunk;
        } else {
            end = sample_flag::STACK_PARTIAL;
            break;
        }
        step += 1;
    }
    scratch.stack_skipped_bytes = skipped;
    if copied == 0 {
        end = sample_flag::STACK_PARTIAL;
    }
    u64::from(end) << 32 | copied
}
