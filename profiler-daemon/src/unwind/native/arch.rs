//! Registers as DWARF numbers them, and what else differs between architectures.
//!
//! x86_64: System V ABI, AMD64 supplement 1.0, figure 3.36 (register numbers); `struct pt_regs`,
//! <https://github.com/torvalds/linux/blob/v6.12/arch/x86/include/asm/ptrace.h#L103>; signal frame,
//! <https://github.com/torvalds/linux/blob/v6.12/arch/x86/include/uapi/asm/sigcontext.h#L325>.
//!
//! aarch64: DWARF for the Arm 64-bit Architecture 2024Q3, section 4.1; `struct user_pt_regs`,
//! <https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/uapi/asm/ptrace.h#L88>; frame record,
//! Procedure Call Standard for the Arm 64-bit Architecture 2024Q3, section 6.4.6.

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::*;

use profiler_common::REGS_MAX;

/// The registers of one frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    values: [u64; COUNT],
    /// Bit n: `values[n]` is known.
    known: u64,
    /// Where the frame is executing.
    pub(super) pc: u64,
}

impl Registers {
    /// Nothing is known.
    pub(super) fn unknown() -> Self {
        Self {
            values: [0; COUNT],
            known: 0,
            pc: 0,
        }
    }

    /// From the words of a `struct pt_regs`.
    pub(super) fn from_pt_regs(words: &[u64; REGS_MAX]) -> Self {
        let mut registers = Self {
            pc: words[PT_REGS_PC],
            ..Self::unknown()
        };
        for (number, &word) in PT_REGS.iter().enumerate() {
            registers.set(number as u16, Some(words[word]));
        }
        registers
    }

    /// The value of a register, `None` if it cannot be known.
    pub(super) fn get(&self, number: u16) -> Option<u64> {
        let index = usize::from(number);
        (index < COUNT && self.known & 1 << index != 0).then(|| self.values[index])
    }

    /// Sets a register, or makes it unknown. Numbers that no stack needs are ignored.
    pub(super) fn set(&mut self, number: u16, value: Option<u64>) {
        let index = usize::from(number);
        if index < COUNT {
            self.values[index] = value.unwrap_or(0);
            self.known = self.known & !(1 << index) | u64::from(value.is_some()) << index;
        }
    }

    /// The stack pointer, or the least that it can be.
    pub(super) fn sp(&self) -> u64 {
        self.values[usize::from(SP)]
    }

    /// Makes the stack pointer unknown but for a bound, which [`Self::sp`] yields.
    pub(super) fn set_least_sp(&mut self, sp: u64) {
        self.set(SP, Some(sp));
        self.known &= !(1 << SP);
    }

    /// Makes every register unknown that a function may change without restoring it.
    pub(super) fn forget_scratch(&mut self) {
        self.known &= PRESERVED;
    }
}

/// Whether the registers may be those of a thread in the system call that ends a signal handler. It is in it
/// if [`SIGRETURN_CODE`] stands before the pc.
pub(super) fn may_be_in_sigreturn(words: &[u64; REGS_MAX]) -> bool {
    words[PT_REGS_CALL] == SIGRETURN
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use gimli::Vendor;
    use profiler_common::REGS_MAX;

    /// Whose instructions unwind information may have.
    pub(in super::super) const VENDOR: Vendor = Vendor::Default;

    /// rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15, return address.
    pub(in super::super) const COUNT: usize = 17;
    /// rsp.
    pub(in super::super) const SP: u16 = 7;
    /// rbp.
    pub(in super::super) const FP: u16 = 6;
    /// The column that the return address is restored to.
    pub(in super::super) const RETURN_ADDRESS: u16 = 16;
    /// A leaf has its return address on the stack: each frame takes at least that word.
    pub(in super::super) const LEAF_MAY_BE_EMPTY: bool = false;
    /// Saved frame pointer and return address are the last words of a frame: the caller's begins above.
    pub(in super::super) const FRAME_RECORD_IS_LAST: bool = true;
    /// rbx, rbp, rsp, r12 to r15.
    pub(super) const PRESERVED: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 0xf << 12;
    /// Word of `struct pt_regs` for each register.
    pub(super) const PT_REGS: [usize; COUNT] =
        [10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16];
    /// Word of `struct pt_regs` that has rip.
    pub(super) const PT_REGS_PC: usize = 16;
    /// `orig_ax`: the number of the system call that the thread is in.
    pub(super) const PT_REGS_CALL: usize = 15;
    /// `__NR_rt_sigreturn`.
    pub(super) const SIGRETURN: u64 = 15;
    const PT_REGS_CS: usize = 17;
    /// Code segment of 64-bit programs, `__USER_CS`.
    const USER_CS: u64 = 0x33;

    /// `mov $15 (rt_sigreturn), %rax; syscall`: the code that a signal handler returns to.
    pub(in super::super) const SIGRETURN_CODE: &[u8] =
        &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    /// Offset from sp, at that code, of the interrupted registers: flags, link and stack of
    /// `struct ucontext`, then `struct sigcontext` in the order r8 to r15, rdi, rsi, rbp, rbx, rdx,
    /// rax, rcx, rsp, rip.
    pub(in super::super) const SIGNAL_REGISTERS: u64 = 40;
    /// Register of each word there; the last one is the pc.
    pub(in super::super) const SIGNAL_ORDER: [u16; COUNT] =
        [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16];

    /// Whether the thread ran 64-bit code; others have another ABI.
    pub(in super::super) fn is_native(words: &[u64; REGS_MAX]) -> bool {
        // Recorded registers may lack the segment.
        matches!(words[PT_REGS_CS], USER_CS | 0)
    }

    /// Removes what a return address carries besides the address: nothing.
    pub(in super::super) fn code_address(value: u64) -> u64 {
        value
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::asm;
    use std::sync::LazyLock;

    use gimli::Vendor;
    use profiler_common::REGS_MAX;

    /// Whose instructions unwind information may have: where return addresses are signed,
    /// `DW_CFA_AARCH64_negate_ra_state` says so. What it says is not needed: see [`code_address`].
    pub(in super::super) const VENDOR: Vendor = Vendor::AArch64;

    /// x0 to x30, sp.
    pub(in super::super) const COUNT: usize = 32;
    /// sp.
    pub(in super::super) const SP: u16 = 31;
    /// x29.
    pub(in super::super) const FP: u16 = 29;
    /// x30, the link register.
    pub(in super::super) const RETURN_ADDRESS: u16 = 30;
    /// A leaf may leave its return address in the link register and take no stack.
    pub(in super::super) const LEAF_MAY_BE_EMPTY: bool = true;
    /// Saved frame pointer and return address may lie anywhere in a frame, and compilers put them at its
    /// beginning: where the caller's frame begins is not known from them.
    pub(in super::super) const FRAME_RECORD_IS_LAST: bool = false;
    /// x19 to x29, sp.
    pub(super) const PRESERVED: u64 = 0x7ff << 19 | 1 << 31;
    /// Word of `struct user_pt_regs` for each register.
    pub(super) const PT_REGS: [usize; COUNT] = {
        let mut words = [0; COUNT];
        let mut index = 0;
        while index < COUNT {
            words[index] = index;
            index += 1;
        }
        words
    };
    /// Word of `struct user_pt_regs` that has the pc.
    pub(super) const PT_REGS_PC: usize = 32;
    /// x8: the number of a system call, if the thread is in one.
    pub(super) const PT_REGS_CALL: usize = 8;
    /// `__NR_rt_sigreturn`.
    pub(super) const SIGRETURN: u64 = 139;
    const PT_REGS_PSTATE: usize = 33;
    /// `PSR_MODE32_BIT`.
    const MODE_32: u64 = 0x10;

    /// `mov x8, #139 (rt_sigreturn); svc #0`.
    pub(in super::super) const SIGRETURN_CODE: &[u8] =
        &[0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];
    /// `struct rt_sigframe`: siginfo (128), ucontext up to `uc_mcontext` (176), fault address (8).
    pub(in super::super) const SIGNAL_REGISTERS: u64 = 312;
    /// x0 to x30, sp, pc; the last one is not a register here.
    pub(in super::super) const SIGNAL_ORDER: [u16; COUNT + 1] = {
        let mut order = [0; COUNT + 1];
        let mut index = 0;
        while index < COUNT + 1 {
            order[index] = index as u16;
            index += 1;
        }
        order
    };

    /// Whether the thread ran 64-bit code; others have another ABI.
    pub(in super::super) fn is_native(words: &[u64; REGS_MAX]) -> bool {
        words[PT_REGS_PSTATE] & MODE_32 == 0
    }

    /// Removes the pointer authentication code. An address without one stays as it is.
    pub(in super::super) fn code_address(value: u64) -> u64 {
        static ADDRESS_BITS: LazyLock<u64> = LazyLock::new(address_bits);
        value & *ADDRESS_BITS
    }

    /// The bits of an address that can be user code's. How many they are is the kernel's choice (39 to 52),
    /// the same for all processes, and the code has the bits between them and bit 55. The instruction that
    /// removes it knows; processors without authentication pass over it, and have no codes.
    fn address_bits() -> u64 {
        // All bits below 55, which is 0 in a user's address.
        let mut address = u64::MAX >> 9;
        // SAFETY: `xpaclri` changes nothing but x30.
        unsafe {
            asm!("hint #7", inout("x30") address, options(pure, nomem, nostack, preserves_flags));
        }
        address
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Check that a code is removed, and that no bit of an address is.
        #[test]
        fn a_code_is_removed_and_an_address_stays() {
            let address = a_code_is_removed_and_an_address_stays as *const () as u64;
            assert_eq!(code_address(address), address);
            let stack = &raw const address as u64;
            assert_eq!(code_address(stack), stack);
            let mut signed = address;
            // SAFETY: `paciasp` changes nothing but x30, and that only on processors that sign.
            unsafe { asm!("hint #25", inout("x30") signed, options(nomem, nostack)) };
            assert_eq!(code_address(signed), address, "{signed:#x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a bound of the stack pointer is no value that rules may use.
    #[test]
    fn a_bound_of_the_stack_pointer_is_no_value() {
        let mut registers = Registers::from_pt_regs(&[7; REGS_MAX]);
        assert_eq!(registers.get(SP), Some(7));
        registers.set_least_sp(0x1000);
        assert_eq!(registers.sp(), 0x1000);
        assert_eq!(registers.get(SP), None);
        assert_eq!(registers.get(FP), Some(7));
    }
}
