//! Keeps deep stacks within what OAP's analysis is given, with both of their ends.

use crate::model::{Frame, FrameKind};

/// Most frames of a stack that is reported, as SkyWalking's agents limit it.
pub const STACK_FRAMES_MAX: usize = 500;
/// Stands for the frames left out.
const ELIDED: &str = "...";

/// Replaces the middle of a stack that is too deep by one frame. The root side stays as it is from
/// sample to sample, so that the call tree keeps one trunk. Returns whether frames were left out.
pub(super) fn limit(frames: &mut Vec<Frame>) -> bool {
    if frames.len() <= STACK_FRAMES_MAX {
        return false;
    }
    let leaf_side = STACK_FRAMES_MAX / 2;
    let root_side = STACK_FRAMES_MAX - leaf_side - 1;
    let mark = Frame::new(ELIDED, FrameKind::Elided);
    frames.splice(leaf_side..frames.len() - root_side, [mark]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(count: usize) -> Vec<Frame> {
        let frame = |n: usize| Frame::new(n.to_string(), FrameKind::Native);
        (0..count).map(frame).collect()
    }

    /// Check that the limit itself is kept whole, and that beyond it leaf and root remain.
    #[test]
    fn deep_stacks_keep_leaf_and_root() {
        let mut whole = frames(STACK_FRAMES_MAX);
        assert!(!limit(&mut whole));
        assert_eq!(whole, frames(STACK_FRAMES_MAX));
        for count in [STACK_FRAMES_MAX + 1, 2048] {
            let mut deep = frames(count);
            assert!(limit(&mut deep));
            assert_eq!(deep.len(), STACK_FRAMES_MAX);
            assert_eq!(&*deep[0].signature, "0");
            assert_eq!(*deep[499].signature, (count - 1).to_string());
            let elided = deep.iter().filter(|frame| frame.kind == FrameKind::Elided);
            assert_eq!(elided.count(), 1);
            assert_eq!(&*deep[250].signature, "...");
        }
    }
}
