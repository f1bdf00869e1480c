//! Where the machine's programs and libraries come from: this host, or Debian's packages of the other
//! architecture, unpacked into a folder.
//!
//! Paths are those inside the machine. What the host's own loader says (`ldd`) is right for the host's
//! programs; for others we read the names they need, as the loader would.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::arch::Arch;
use crate::command::output;
use crate::setup::{Archive, debian_suite};

/// Debian's CPython: the one on `PATH` may be a version manager's script. Also the package's name.
const PYTHON: &str = "python3";
/// Where programs are.
const PROGRAMS: &str = "/usr/bin";
/// Folders that the loader of Debian's libc searches.
const LIBRARY_FOLDERS: &[&str] = &["lib", "usr/lib"];

/// A tree of programs and libraries.
#[derive(Debug)]
pub(super) enum Sysroot {
    /// This machine.
    Host,
    /// Packages of another architecture.
    Unpacked {
        folder: PathBuf,
        /// Name of the folders with its libraries.
        triplet: String,
        /// Name of CPython, with or without a version.
        python: String,
    },
}

/// CPython inside the machine.
#[derive(Debug)]
pub(super) struct Python {
    pub(super) executable: PathBuf,
    /// Folder of the standard library.
    pub(super) library: PathBuf,
}

impl Sysroot {
    /// The tree for an architecture; packages are fetched once.
    pub(super) fn prepare(arch: Arch) -> Result<Self> {
        if arch == Arch::X86_64 {
            return Ok(Self::Host);
        }
        Self::of_suite(arch, &debian_suite()?, PYTHON)
    }

    /// The tree of a suite with a CPython, `python3` or one of a version such as `python3.14`; packages are
    /// fetched once.
    pub(super) fn of_suite(arch: Arch, suite: &str, python: &str) -> Result<Self> {
        let mut packages = arch.folder().join("packages").join(suite);
        if python != PYTHON {
            packages = packages.join(python);
        }
        let folder = packages.join("root");
        if !folder.exists() {
            let archive = Archive::open(suite, arch.debian_name(), &packages)?;
            let unpacked = packages.join("unpacked");
            archive.unpack_with_dependencies(python, &unpacked)?;
            let lib = unpacked.join("lib");
            if !lib.exists() {
                // Newer packages leave this link to the one that sets a system up.
                std::os::unix::fs::symlink("usr/lib", lib)?;
            }
            // Only a whole tree gets the name that is looked for.
            fs::rename(unpacked, &folder)?;
        }
        Ok(Self::Unpacked {
            folder,
            triplet: format!("{}-linux-gnu", arch.name()),
            python: python.to_owned(),
        })
    }

    /// Where a file of the machine is on this one.
    pub(super) fn locate(&self, path: &Path) -> PathBuf {
        match self {
            Self::Host => path.to_owned(),
            Self::Unpacked { folder, .. } => folder.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// The loader and the libraries that a program or library, a file of this machine, needs.
    pub(super) fn libraries(&self, file: &Path) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        match self {
            Self::Host => found.extend(paths(&output(Command::new("ldd").arg(file))?)),
            Self::Unpacked { .. } => self.add_libraries(file, &mut found)?,
        }
        Ok(found)
    }

    fn add_libraries(&self, file: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
        let text = output(Command::new("readelf").args(["-d", "-l", "-W"]).arg(file))?;
        for name in needed(&text) {
            let library = self.find_library(name).with_context(|| {
                format!("{} needs {name}, which no package has", file.display())
            })?;
            if found.insert(library.clone()) {
                self.add_libraries(&self.locate(&library), found)?;
            }
        }
        Ok(())
    }

    /// Path of a library, or of the loader, whose path programs have.
    fn find_library(&self, name: &str) -> Option<PathBuf> {
        let Self::Unpacked { triplet, .. } = self else {
            return None;
        };
        if name.starts_with('/') {
            return Some(PathBuf::from(name)).filter(|path| self.locate(path).exists());
        }
        let folders = LIBRARY_FOLDERS
            .iter()
            .map(|folder| Path::new("/").join(folder));
        folders
            .flat_map(|folder| [folder.join(triplet).join(name), folder.join(name)])
            .find(|path| self.locate(path).exists())
    }

    /// CPython, if there is one.
    pub(super) fn python(&self) -> Result<Option<Python>> {
        let name = match self {
            Self::Host => PYTHON,
            Self::Unpacked { python, .. } => python,
        };
        let executable = Path::new(PROGRAMS).join(name);
        let file = self.locate(&executable);
        if !file.exists() {
            return Ok(None);
        }
        if let Self::Host = self {
            return host_python().map(Some);
        }
        // Debian links python3 to the program with the version, which the library's folder has as well.
        let version = fs::read_link(&file).unwrap_or_else(|_| executable.clone());
        let version = version.file_name().unwrap_or(OsStr::new(PYTHON));
        Ok(Some(Python {
            library: Path::new("/usr/lib").join(version),
            executable,
        }))
    }
}

fn host_python() -> Result<Python> {
    let script =
        "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('stdlib'))";
    let python = Path::new(PROGRAMS).join(PYTHON);
    let text = output(Command::new(&python).args(["-I", "-c", script]))?;
    let (executable, library) = text
        .trim()
        .split_once('\n')
        .with_context(|| format!("{} printed {text:?}", python.display()))?;
    Ok(Python {
        executable: executable.into(),
        library: library.into(),
    })
}

/// The paths in the answer of `ldd`.
fn paths(ldd: &str) -> impl Iterator<Item = PathBuf> {
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x..)", "/lib64/ld-linux-x86-64.so.2 (0x..)"
    let words = ldd.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
}

/// The names of libraries and the path of the loader in the answer of `readelf`.
fn needed(readelf: &str) -> impl Iterator<Item = &str> {
    // "0x01 (NEEDED) Shared library: [libc.so.6]", "[Requesting program interpreter: /lib/ld-linux.so.1]"
    let between = |line: &'_ str, begin: &str| -> Option<(usize, usize)> {
        let start = line.find(begin)? + begin.len();
        Some((start, start + line[start..].find(']')?))
    };
    readelf.lines().filter_map(move |line| {
        let (start, end) = between(line, "(NEEDED)")
            .and_then(|_| between(line, "["))
            .or_else(|| between(line, "program interpreter: "))?;
        Some(&line[start..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the loader and each library are found in what readelf prints.
    #[test]
    fn needed_libraries_are_read_from_readelf() {
        let text = "  INTERP  0x238 0x1b R 0x1\n\
            \x20     [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]\n\
            \x20 LOAD 0x0 R E 0x10000\n\
            \x20 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]\n\
            \x20 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n\
            \x20 0x000000000000001d (RUNPATH)            Library runpath: [$ORIGIN]\n";
        let names: Vec<_> = needed(text).collect();
        assert_eq!(
            names,
            ["/lib/ld-linux-aarch64.so.1", "libgcc_s.so.1", "libc.so.6"]
        );
    }

    /// Check that ldd's answer yields libraries and loader, and nothing for what it does not find.
    #[test]
    fn paths_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
            \tlibx.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<_> = paths(text).collect();
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
