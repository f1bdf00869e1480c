//! Names kernel addresses, through blazesym.
//!
//! In:  `/proc/kallsyms`
//! Out: function and module
//! Lost: with `kernel.kptr_restrict` or without `CAP_SYSLOG` all addresses read as zero: no names
//!
//! # Why a copy
//! Half of the lines are data, which a return address never is. blazesym keeps no modules; they
//! travel behind the name. The copy is in memory that nobody else has.
//!
//! ```text
//! ffffffffc0a1b2c0 t ext4_write_begin\t[ext4]   ->   ffffffffc0a1b2c0 t ext4_write_begin@ext4
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error, Write};
use std::os::fd::AsRawFd;

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Kernel, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::demangle::demangle;

const KALLSYMS: &str = "/proc/kallsyms";

/// A kernel function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelSymbol {
    pub(super) function: String,
    pub(super) module: Option<String>,
}

/// Symbols of the running kernel; read when first needed.
#[derive(Default)]
pub(super) struct KernelSymbols {
    loaded: Option<Loaded>,
}

enum Loaded {
    Symbols {
        blazesym: Box<Symbolizer>,
        source: Source<'static>,
        /// Keeps the path in `source` alive.
        _copy: File,
    },
    Hidden,
}

impl KernelSymbols {
    /// The function at a kernel address.
    pub(super) fn find(&mut self, address: u64) -> Option<KernelSymbol> {
        self.load();
        let Some(Loaded::Symbols {
            blazesym, source, ..
        }) = &self.loaded
        else {
            return None;
        };
        let symbolized = blazesym.symbolize_single(source, Input::AbsAddr(address));
        let Ok(Symbolized::Sym(symbol)) = symbolized else {
            return None;
        };
        let (function, module) = match symbol.name.split_once('@') {
            Some((function, module)) => (function, Some(module.to_owned())),
            None => (&*symbol.name, None),
        };
        Some(KernelSymbol {
            function: demangle(function).into_owned(),
            module,
        })
    }

    /// Whether the kernel does not tell us its addresses.
    pub(super) fn are_hidden(&mut self) -> bool {
        self.load();
        matches!(self.loaded, Some(Loaded::Hidden))
    }

    /// Reads the symbols if that has not happened yet.
    pub(super) fn load(&mut self) {
        if self.loaded.is_none() {
            let loaded = File::open(KALLSYMS).and_then(|text| Loaded::read(BufReader::new(text)));
            self.loaded = Some(loaded.unwrap_or_else(|error| {
                tracing::warn!(%error, "failed to read {KALLSYMS}: kernel frames have no names");
                Loaded::Hidden
            }));
        }
    }
}

impl Loaded {
    fn read(text: impl BufRead) -> Result<Self, Error> {
        let memory = memfd_create(c"profilerd-kallsyms", MFdFlags::MFD_CLOEXEC)?;
        let copy = File::from(memory);
        let mut out = BufWriter::new(&copy);
        let mut is_hidden = true;
        for line in text.split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            is_hidden &= address.bytes().all(|digit| digit == b'0');
            let module = words.next().and_then(|word| {
                let module = word.strip_prefix('[')?.strip_suffix(']')?;
                Some(format!("@{module}"))
            });
            writeln!(out, "{address} t {name}{}", module.unwrap_or_default())?;
        }
        out.flush()?;
        drop(out);
        if is_hidden {
            return Ok(Self::Hidden);
        }
        let mut kernel = Kernel::default();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        kernel.kallsyms = MaybeDefault::Some(path.into());
        kernel.vmlinux = MaybeDefault::None;
        kernel.debug_syms = false;
        Ok(Self::Symbols {
            blazesym: Box::new(Symbolizer::builder().enable_demangling(false).build()),
            source: Source::Kernel(kernel),
            _copy: copy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(text: &str) -> KernelSymbols {
        KernelSymbols {
            loaded: Some(Loaded::read(text.as_bytes()).unwrap()),
        }
    }

    fn found(symbols: &mut KernelSymbols, address: u64) -> Option<(String, Option<String>)> {
        let symbol = symbols.find(address)?;
        Some((symbol.function, symbol.module))
    }

    /// Check that functions are found with their modules, and data is not taken for a function.
    #[test]
    fn functions_and_modules_are_found() {
        let mut symbols = symbols(concat!(
            "ffffffff81000000 T _stext\n",
            "ffffffff81000100 t do_nanosleep\n",
            "ffffffff81000180 D jiffies\n",
            "ffffffffc0a00000 t ext4_write_begin\t[ext4]\n",
            "ffffffffc0b00000 t bpf_prog_6deef7357e7b4530\t[bpf]\n",
            "garbage\n",
        ));
        let own = |name: &str| Some((name.to_owned(), None));
        let of = |name: &str, module: &str| Some((name.to_owned(), Some(module.to_owned())));
        assert_eq!(found(&mut symbols, 0xffff_ffff_8100_0010), own("_stext"));
        assert_eq!(
            found(&mut symbols, 0xffff_ffff_8100_0190),
            own("do_nanosleep")
        );
        assert_eq!(
            found(&mut symbols, 0xffff_ffff_c0a0_0004),
            of("ext4_write_begin", "ext4")
        );
        assert_eq!(
            found(&mut symbols, 0xffff_ffff_c0b0_0004),
            of("bpf_prog_6deef7357e7b4530", "bpf")
        );
        assert_eq!(found(&mut symbols, 0x1000), None);
        assert!(!symbols.are_hidden());
    }

    /// Check that addresses of zero, as an unprivileged reader sees them, are recognized.
    #[test]
    fn hidden_addresses_are_recognized() {
        let mut symbols = symbols("0000000000000000 T _stext\n0000000000000000 t do_nanosleep\n");
        assert!(symbols.are_hidden());
        assert_eq!(found(&mut symbols, 0xffff_ffff_8100_0010), None);
    }

    /// Check that the running kernel's own functions are found.
    #[test]
    fn the_running_kernel_is_known() {
        let text = std::fs::read_to_string(KALLSYMS).unwrap();
        let line = text.lines().find(|line| line.ends_with(" t do_nanosleep"));
        let line = line.expect("every kernel can sleep");
        let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
        let mut symbols = KernelSymbols::default();
        let expected = (address != 0).then(|| ("do_nanosleep".to_owned(), None));
        assert_eq!(found(&mut symbols, address + 1), expected);
        assert_eq!(symbols.are_hidden(), address == 0);
    }
}
