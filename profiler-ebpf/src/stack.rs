//! Copies the user stack of the current thread.
//!
//! A read that crosses into an unreadable page fails as a whole, and every stack ends at one. So
//! the copy goes to the end of the first page and then page by page until a read fails or the cap is
//! reached.

use profiler_common::{STACK_COPY_MAX_BYTES, sample_flag};

use crate::scratch::SAMPLE_BYTES;
use crate::{maps, read};

/// Size of a page. With larger ones (aarch64) the steps are merely smaller than they could be.
const PAGE: u64 = 4096;
/// The first part of a page and as many whole ones as the cap allows.
const STEPS: u32 = (STACK_COPY_MAX_BYTES as u64 / PAGE) as u32 + 1;

/// Copies from `sp` upwards to `bytes[at..]` of the sample's scratch. Returns the number of bytes in
/// the low half and [`sample_flag`]s about how the copy ended in the high half.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn copy_user_stack(at: u64, sp: u64) -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let bytes = unsafe { (&raw mut (*scratch).bytes).cast::<u8>() };
    let mut copied = 0;
    let mut step = 0;
    while step < STEPS {
        let address = sp + copied;
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
        if !unsafe { read::copy_user(bytes.add(to as usize), chunk, address) } {
            return u64::from(sample_flag::STACK_PARTIAL) << 32 | copied;
        }
        copied += chunk;
        step += 1;
    }
    u64::from(sample_flag::STACK_CUT) << 32 | copied
}
