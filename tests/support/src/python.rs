//! The CPython interpreters that tests run: every supported version, wherever it comes from.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::target_dir;

/// Minor versions that are supported, 3.11 to 3.14.
pub const PYTHON_MINORS: [u8; 4] = [11, 12, 13, 14];

/// All interpreters of the supported versions on this machine, several of a version if there are: of pyenv,
/// in `/usr/bin`, `/usr/local/bin` and `PATH`, and what `cargo xtask setup --test` has unpacked.
///
/// # Panics
/// A version is missing that can be had everywhere.
#[must_use]
pub fn pythons() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for minor in PYTHON_MINORS {
        let found = find_pythons(minor);
        assert!(
            !found.is_empty() || python_suite(minor).is_none(),
            "no CPython 3.{minor} on this machine: `cargo xtask setup --test` fetches it"
        );
        all.extend(found);
    }
    all
}

/// The interpreters of one version; none if it is not there.
#[must_use]
pub fn find_pythons(minor: u8) -> Vec<PathBuf> {
    let name = format!("python3.{minor}");
    let mut found: Vec<PathBuf> = folders()
        .into_iter()
        .map(|folder| folder.join(&name))
        .chain([unpacked_python(minor)])
        // Shims of version managers are scripts.
        .filter(|python| is_elf(python))
        .filter_map(|python| python.canonicalize().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The suite of Debian that has a version, if there is one: 3.12 was never part of a release.
#[must_use]
pub fn python_suite(minor: u8) -> Option<&'static str> {
    match minor {
        11 => Some("bookworm"),
        13 => Some("trixie"),
        14 => Some("sid"),
        _ => None,
    }
}

/// Where the packages of a version are unpacked.
#[must_use]
pub fn python_folder(minor: u8) -> PathBuf {
    target_dir().join(format!("python/3.{minor}"))
}

/// The interpreter in [`python_folder`].
#[must_use]
pub fn unpacked_python(minor: u8) -> PathBuf {
    python_folder(minor).join(format!("root/usr/bin/python3.{minor}"))
}

fn folders() -> Vec<PathBuf> {
    let pyenv = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let pyenv = pyenv.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")));
    let versions = pyenv.and_then(|pyenv| pyenv.join("versions").read_dir().ok());
    let versions = versions.into_iter().flatten().flatten();
    let path = env::var_os("PATH").unwrap_or_default();
    versions
        .map(|version| version.path().join("bin"))
        .chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from))
        .chain(env::split_paths(&path))
        .collect()
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF")
}
