//! Registers as DWARF numbers them, and what else differs between architectures.
//!
//! x86_64: System V ABI, AMD64 supplement 1.0, figure 3.36 (register numbers); `struct pt_regs`,
//! <https://github.com/torvalds/linux/blob/v6.12/arch/x86/include/asm/ptrace.h#L103>; signal frame,
//! <https://github.com/torvalds/linux/blob/v6.12/arch/x86/include/uapi/asm/sigcontext.h#L325>.
//!
//! aarch64: DWARF for the Arm 64-bit Architecture 2024Q3, section 4.1; `struct user_pt_regs`,
//! <https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/uapi/asm/ptrace.h#L88>; frame record,
//! Procedure Call Standard for the Arm 64-bit Architecture 2024Q3, section 6.4.6.
//!
//! Architectures are values, so that stacks recorded on one are checked on the other.

use gimli::Vendor;
use profiler_common::REGS_MAX;

/// Most registers that an architecture has for DWARF.
const REGISTERS_MAX: usize = 32;

/// What unwinding needs to know about an architecture.
#[derive(Debug)]
pub struct Arch {
    /// Whose instructions unwind information may have.
    pub(super) vendor: Vendor,
    /// Registers in the numbering of DWARF that are kept.
    pub(super) count: usize,
    /// The stack pointer.
    pub(super) sp: u16,
    /// The frame pointer.
    pub(super) fp: u16,
    /// The column that the return address is restored to.
    pub(super) return_address: u16,
    /// A leaf may leave its return address in a register and take no stack. Otherwise it is on the stack:
    /// each frame takes at least that word.
    pub(super) leaf_may_be_empty: bool,
    /// Saved frame pointer and return address are the last words of a frame: the caller's begins above.
    /// Otherwise they may lie anywhere in a frame, and compilers put them at its beginning: where the
    /// caller's frame begins is not known from them.
    pub(super) frame_record_is_last: bool,
    /// Bit for each register that a function may not change without restoring it.
    preserved: u64,
    /// Word of `struct pt_regs` for each register.
    pt_regs: &'static [u16],
    /// Word of `struct pt_regs` that has the pc.
    pt_regs_pc: usize,
    /// Word of `struct pt_regs` that has the number of a system call, if the thread is in one.
    pt_regs_call: usize,
    /// `__NR_rt_sigreturn`.
    sigreturn: u64,
    /// The code that a signal handler returns to.
    pub(super) sigreturn_code: &'static [u8],
    /// Offset from sp, at that code, of the interrupted registers.
    pub(super) signal_registers: u64,
    /// Register of each word there; the last one is the pc.
    pub(super) signal_order: &'static [u16],
    /// Whether the thread ran 64-bit code; others have another ABI.
    is_native: fn(&[u64; REGS_MAX]) -> bool,
    /// The bits of a return address that are the address.
    address_bits: fn() -> u64,
}

impl Arch {
    /// This machine's.
    pub const HOST: &'static Self = if cfg!(target_arch = "aarch64") {
        &AARCH64
    } else {
        &X86_64
    };

    /// Whether the thread ran 64-bit code; others have another ABI.
    pub(super) fn is_native(&self, words: &[u64; REGS_MAX]) -> bool {
        (self.is_native)(words)
    }

    /// Whether the registers may be those of a thread in the system call that ends a signal handler. It is
    /// in it if [`Self::sigreturn_code`] stands before the pc.
    pub(super) fn may_be_in_sigreturn(&self, words: &[u64; REGS_MAX]) -> bool {
        words[self.pt_regs_call] == self.sigreturn
    }

    /// Removes what a return address carries besides the address.
    pub(super) fn code_address(&self, value: u64) -> u64 {
        value & (self.address_bits)()
    }
}

/// The registers of one frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub(super) arch: &'static Arch,
    values: [u64; REGISTERS_MAX],
    /// Bit n: `values[n]` is known.
    known: u64,
    /// Where the frame is executing.
    pub(super) pc: u64,
}

impl Registers {
    /// Nothing is known.
    pub(super) fn unknown(arch: &'static Arch) -> Self {
        Self {
            arch,
            values: [0; REGISTERS_MAX],
            known: 0,
            pc: 0,
        }
    }

    /// From the words of a `struct pt_regs`.
    pub(super) fn from_pt_regs(arch: &'static Arch, words: &[u64; REGS_MAX]) -> Self {
        let mut registers = Self {
            pc: words[arch.pt_regs_pc],
            ..Self::unknown(arch)
        };
        for (number, &word) in arch.pt_regs.iter().enumerate() {
            registers.set(number as u16, Some(words[usize::from(word)]));
        }
        registers
    }

    /// The value of a register, `None` if it cannot be known.
    pub(super) fn get(&self, number: u16) -> Option<u64> {
        let index = usize::from(number);
        (index < self.arch.count && self.known & 1 << index != 0).then(|| self.values[index])
    }

    /// Sets a register, or makes it unknown. Numbers that no stack needs are ignored.
    pub(super) fn set(&mut self, number: u16, value: Option<u64>) {
        let index = usize::from(number);
        if index < self.arch.count {
            self.values[index] = value.unwrap_or(0);
            self.known = self.known & !(1 << index) | u64::from(value.is_some()) << index;
        }
    }

    /// The stack pointer, or the least that it can be.
    pub(super) fn sp(&self) -> u64 {
        self.values[usize::from(self.arch.sp)]
    }

    /// Makes the stack pointer unknown but for a bound, which [`Self::sp`] yields.
    pub(super) fn set_least_sp(&mut self, sp: u64) {
        self.set(self.arch.sp, Some(sp));
        self.known &= !(1 << self.arch.sp);
    }

    /// Makes every register unknown that a function may change without restoring it.
    pub(super) fn forget_scratch(&mut self) {
        self.known &= self.arch.preserved;
    }
}

/// Registers: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15, return address.
pub static X86_64: Arch = Arch {
    vendor: Vendor::Default,
    count: 17,
    sp: 7,
    fp: 6,
    return_address: 16,
    leaf_may_be_empty: false,
    frame_record_is_last: true,
    // rbx, rbp, rsp, r12 to r15.
    preserved: 1 << 3 | 1 << 6 | 1 << 7 | 0xf << 12,
    pt_regs: &[10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16],
    pt_regs_pc: 16,
    // `orig_ax`.
    pt_regs_call: 15,
    sigreturn: 15,
    // `mov $15, %rax; syscall`.
    sigreturn_code: &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05],
    // Flags, link and stack of `struct ucontext` come before `struct sigcontext`, whose order is r8 to r15,
    // rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    signal_registers: 40,
    signal_order: &[8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16],
    is_native: |words| {
        const CS: usize = 17;
        // Code segment of 64-bit programs, `__USER_CS`. Recorded registers may lack it.
        matches!(words[CS], 0x33 | 0)
    },
    address_bits: || u64::MAX,
};

/// 0 to 32: x0 to x30, sp, pc.
const AARCH64_NUMBERS: [u16; 33] = {
    let mut numbers = [0; 33];
    let mut index = 0;
    while index < numbers.len() {
        numbers[index] = index as u16;
        index += 1;
    }
    numbers
};

/// Registers: x0 to x30, sp. The link register x30 has the return address.
pub static AARCH64: Arch = Arch {
    // Where return addresses are signed, `DW_CFA_AARCH64_negate_ra_state` says so. What it says is not
    // needed: see `address_bits`.
    vendor: Vendor::AArch64,
    count: 32,
    sp: 31,
    fp: 29,
    return_address: 30,
    leaf_may_be_empty: true,
    frame_record_is_last: false,
    // x19 to x29, sp.
    preserved: 0x7ff << 19 | 1 << 31,
    pt_regs: AARCH64_NUMBERS.split_at(32).0,
    pt_regs_pc: 32,
    // x8.
    pt_regs_call: 8,
    sigreturn: 139,
    // `mov x8, #139; svc #0`.
    sigreturn_code: &[0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
    // `struct rt_sigframe`: siginfo (128), ucontext up to `uc_mcontext` (176), fault address (8); then x0 to
    // x30, sp, pc.
    signal_registers: 312,
    signal_order: &AARCH64_NUMBERS,
    is_native: |words| {
        const PSTATE: usize = 33;
        const MODE_32: u64 = 0x10; // PSR_MODE32_BIT
        words[PSTATE] & MODE_32 == 0
    },
    address_bits: aarch64_address_bits,
};

/// The bits of an address that can be user code's; pointer authentication codes have the bits between them
/// and bit 55. How many they are is the kernel's choice (39 to 52), the same for all processes. The
/// instruction that removes codes knows; processors without authentication pass over it, and have no codes.
#[cfg(target_arch = "aarch64")]
fn aarch64_address_bits() -> u64 {
    static BITS: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        // All bits below 55, which is 0 in a user's address.
        let mut address = u64::MAX >> 9;
        // SAFETY: `xpaclri` changes nothing but x30.
        unsafe {
            std::arch::asm!("hint #7", inout("x30") address, options(pure, nomem, nostack, preserves_flags));
        }
        address
    });
    *BITS
}

/// Of a recorded stack: 48 bits, as distributions configure their kernels.
#[cfg(not(target_arch = "aarch64"))]
fn aarch64_address_bits() -> u64 {
    (1 << 48) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a bound of the stack pointer is no value that rules may use.
    #[test]
    fn a_bound_of_the_stack_pointer_is_no_value() {
        for arch in [&X86_64, &AARCH64] {
            let mut registers = Registers::from_pt_regs(arch, &[7; REGS_MAX]);
            assert_eq!(registers.get(arch.sp), Some(7));
            registers.set_least_sp(0x1000);
            assert_eq!(registers.sp(), 0x1000);
            assert_eq!(registers.get(arch.sp), None);
            assert_eq!(registers.get(arch.fp), Some(7));
        }
    }

    /// Check that no bit of an address is removed, and a pointer authentication code is.
    #[test]
    fn a_code_is_removed_and_an_address_stays() {
        let address = a_code_is_removed_and_an_address_stays as *const () as u64;
        for arch in [&X86_64, &AARCH64] {
            assert_eq!(arch.code_address(address), address);
        }
        assert_eq!(
            AARCH64.code_address(0x00a5_0000_0000_0000 | address),
            address
        );
        let stack = &raw const address as u64;
        assert_eq!(Arch::HOST.code_address(stack), stack);
    }

    /// Check that a code that this processor made is removed.
    #[cfg(target_arch = "aarch64")]
    #[test]
    fn a_code_of_this_processor_is_removed() {
        let address = a_code_of_this_processor_is_removed as *const () as u64;
        let mut signed = address;
        // SAFETY: `paciasp` changes nothing but x30, and that only on processors that sign.
        unsafe { std::arch::asm!("hint #25", inout("x30") signed, options(nomem, nostack)) };
        assert_eq!(AARCH64.code_address(signed), address, "{signed:#x}");
    }
}
