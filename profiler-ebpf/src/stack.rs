//! Copies the user stack of the current thread.
//!
//! A read that crosses into an unreadable page fails as a whole, and every stack ends at one. So
//! the copy goes to the end of the first page and then page by page until a read fails or the cap is
//! reached.

use profiler_common::{STACK_COPY_MAX_BYTES, sample_flag};

use crate::read;
use crate::scratch::{SAMPLE_BYTES, SampleScratch};

/// Size of a page. With larger ones (aarch64) the steps are merely smaller than they could be.
const PAGE: u64 = 4096;
/// The first part of a page and as many whole ones as the cap allows.
const STEPS: u32 = (STACK_COPY_MAX_BYTES as u64 / PAGE) as u32 + 1;

/// Copies from `sp` upwards to `bytes[at..]`; returns the number of bytes and
/// [`sample_flag`]s about how the copy ended.
#[inline(always)]
pub fn copy_user_stack(scratch: &mut SampleScratch, at: u64, sp: u64) -> (u64, u32) {
    let bytes = scratch.bytes.as_mut_ptr();
    let mut copied = 0;
    let mut step = 0;
    while step < STEPS {
        let address = sp + copied;
        let mut chunk = PAGE - (address & (PAGE - 1));
        let left = STACK_COPY_MAX_BYTES as u64 - copied;
        if chunk > left {
            chunk = left;
        }
        let to = at + copied;
        if chunk == 0 || chunk > PAGE || to > SAMPLE_BYTES as u64 - PAGE {
            break;
        }
        // SAFETY: to + chunk <= SAMPLE_BYTES by the check above.
        if !unsafe { read::copy_user(bytes.add(to as usize), chunk, address) } {
            return (copied, sample_flag::STACK_PARTIAL);
        }
        copied += chunk;
        step += 1;
    }
    (copied, sample_flag::STACK_CUT)
}
