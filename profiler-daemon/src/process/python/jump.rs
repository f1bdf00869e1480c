//! Finds the direct jumps in machine code: branches, not calls.
//!
//! In:  `e_machine` of an image; code and the address it runs at
//! Out: addresses that it jumps to
//! Lost: code of machines other than x86-64 and aarch64 has no jumps

use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};

/// `e_machine` of x86-64.
const EM_X86_64: u16 = 62;
/// `e_machine` of aarch64.
const EM_AARCH64: u16 = 183;

/// The targets of the direct jumps in `code`, in its order.
pub(super) fn targets(
    machine: u16,
    code: &[u8],
    address: u64,
) -> Box<dyn Iterator<Item = u64> + '_> {
    match machine {
        EM_X86_64 => Box::new(x86_64_targets(code, address)),
        EM_AARCH64 => Box::new(aarch64_targets(code, address)),
        _ => Box::new(std::iter::empty()),
    }
}

fn x86_64_targets(code: &[u8], address: u64) -> impl Iterator<Item = u64> {
    let instructions = Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter();
    instructions.filter_map(|instruction| {
        let jumps = matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        (jumps && instruction.op0_kind() == OpKind::NearBranch64)
            .then(|| instruction.near_branch64())
    })
}

/// Instructions are words; instructions are little endian whatever data is.
fn aarch64_targets(code: &[u8], address: u64) -> impl Iterator<Item = u64> {
    let (words, _) = code.as_chunks();
    let addresses = (0..).map(move |index: u64| address.wrapping_add(4 * index));
    words
        .iter()
        .zip(addresses)
        .filter_map(|(word, at)| aarch64_target(u32::from_le_bytes(*word), at))
}

/// Arm Architecture Reference Manual (DDI 0487), C4.1.95, "Branches, Exception Generating and System
/// instructions". The distance is a signed number of words.
fn aarch64_target(word: u32, at: u64) -> Option<u64> {
    const B: u32 = 0b00_0101;
    const B_COND: u32 = 0b0101_0100;
    const COMPARE: u32 = 0b01_1010;
    const TEST: u32 = 0b01_1011;
    let (lowest_bit, bits) = match (word >> 26, word >> 24, word >> 25 & 0x3f) {
        (B, _, _) => (0, 26),
        (_, B_COND, _) | (_, _, COMPARE) => (5, 19),
        (_, _, TEST) => (5, 14),
        _ => return None,
    };
    let unused = 32 - bits;
    let distance = (word >> lowest_bit << unused).cast_signed() >> unused;
    Some(at.wrapping_add_signed(4 * i64::from(distance)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words as assembled by GNU as; each jumps by 0x20 words forwards or one back.
    const AARCH64: &[(u32, Option<u64>)] = &[
        (0x1400_0020, Some(0x1080)), // b .+0x80
        (0x17ff_ffff, Some(0xffc)),  // b .-4
        (0x5400_0401, Some(0x1080)), // b.ne .+0x80
        (0x54ff_ffe0, Some(0xffc)),  // b.eq .-4
        (0xb400_0400, Some(0x1080)), // cbz x0, .+0x80
        (0x35ff_ffe1, Some(0xffc)),  // cbnz w1, .-4
        (0xb618_0400, Some(0x1080)), // tbz x0, #35, .+0x80
        (0x371f_ffe0, Some(0xffc)),  // tbnz w0, #3, .-4
        (0x9400_0020, None),         // bl .+0x80
        (0xd61f_0200, None),         // br x16
        (0xd65f_03c0, None),         // ret
        (0xd503_201f, None),         // nop
        (0xa9bf_7bfd, None),         // stp x29, x30, [sp, #-16]!
    ];

    /// Check that aarch64's four kinds of jumps are understood, both ways, and calls are none.
    #[test]
    fn jumps_of_aarch64_are_decoded() {
        for &(word, target) in AARCH64 {
            assert_eq!(aarch64_target(word, 0x1000), target, "{word:#x}");
        }
        let code: Vec<u8> = AARCH64
            .iter()
            .flat_map(|(word, _)| word.to_le_bytes())
            .collect();
        let found: Vec<_> = targets(EM_AARCH64, &code, 0x1000).collect();
        assert_eq!(found.len(), 8);
        assert_eq!(found[..2], [0x1080, 0x1000]);
        assert_eq!(
            targets(EM_AARCH64, &[0, 0, 0, 0x14, 1], 4).collect::<Vec<_>>(),
            [4]
        );
    }

    /// Check that jumps of x86-64 are found, calls and indirect jumps not.
    #[test]
    fn jumps_of_x86_64_are_decoded() {
        // jmp +0x10; je -2; call +0; jmp *%rax
        let code = [0xeb, 0x10, 0x74, 0xfe, 0xe8, 0, 0, 0, 0, 0xff, 0xe0];
        let found: Vec<_> = targets(EM_X86_64, &code, 0x1000).collect();
        assert_eq!(found, [0x1012, 0x1002]);
        assert_eq!(targets(0, &code, 0x1000).count(), 0);
    }
}
