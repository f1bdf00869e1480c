//! The binary that is released: one file that needs no library of the host.
//!
//! In:  the workspace
//! Out: `target/TARGET/PROFILE/profilerd`, linked statically with glibc, stripped
//! Lost: name services other than files and DNS: users of LDAP or SSSD are shown by number; on arm64, where rustc links no
//!       static PIE with glibc, random addresses
//!
//! # Why glibc
//!
//! musl would do as well, but its allocator is slower, and Debian has no C compiler with musl for arm64. A static glibc
//! has `files` and `dns` of its name services built in since 2.34; other ones would be loaded at run time from a glibc of
//! the very same version, and are not there.
//!
//! # The same bytes twice
//!
//! Paths of this machine would get into the binary by panic messages and BTF line information. The compiler is told names
//! for them; `profiler-daemon/build.rs` does the same for the BPF object.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use profiler_test_support::{target_dir, workspace_root};

use super::{Commit, Platform, SOURCES};
use crate::command::{cargo, output, run, step};
use crate::setup::aarch64;

/// Makes the compiler link libc, and all that C code needs, into the binary.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Relative relocations in a bitmap (`DT_RELR`, glibc 2.36): a megabyte less. For arm64 GNU's linker of Debian 12 cannot.
const PACKED_RELOCATIONS: &str = "-Clink-arg=-Wl,-z,pack-relative-relocs";

/// Builds it; yields its path.
pub(super) fn build(platform: Platform, commit: &Commit) -> Result<PathBuf> {
    step(&format!(
        "build a static profilerd for {} (the first time takes minutes)",
        platform.name()
    ));
    let mut build = cargo();
    build.args(["rustc", "--locked", "--quiet", "--release"]);
    build.args(["--package", "profiler-daemon", "--bin", "profilerd"]);
    let mut flags = Vec::new();
    if platform == Platform::native() {
        build.args(["--target", platform.target()]);
    } else {
        let cross = aarch64()?;
        cross.configure(&mut build);
        flags.extend(cross.flags().iter().cloned());
    }
    flags.push(STATIC.to_owned());
    flags.extend(renamed_paths()?);
    build
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_INCREMENTAL", "0")
        .env("SOURCE_DATE_EPOCH", &commit.seconds);
    if platform == Platform::Amd64 {
        build.args(["--", PACKED_RELOCATIONS]);
    }
    run(&mut build)?;
    let binary = target_dir()
        .join(platform.target())
        .join("release/profilerd");
    check(platform, &binary)?;
    Ok(binary)
}

/// Links a static binary from what tests are built from; yields its path. It is larger and slower, and tells paths of this
/// machine, but is there in seconds.
pub(super) fn link_for_checks() -> Result<PathBuf> {
    step("link a static profilerd");
    let mut build = cargo();
    build.args(["build", "--workspace", "--locked", "--quiet"]);
    build.args(["--bin", "profilerd", "--message-format", "json"]);
    let messages = output(&mut build)?;
    let library = messages
        .lines()
        .filter_map(library_in)
        .next_back()
        .context("cargo has not named the daemon's library")?;
    let libraries = library.parent().context("it is in a folder")?;
    let folder = target_dir().join("static");
    fs::create_dir_all(&folder)?;
    let binary = folder.join("profilerd");
    // Whether libc is linked statically is decided here; the libraries are the same in both cases.
    run(Command::new(rustc())
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "profilerd",
            "--crate-type",
            "bin",
        ])
        .args([STATIC, "-Cstrip=symbols", "-L"])
        .arg(format!("dependency={}", libraries.display()))
        .arg("--extern")
        .arg(format!("profiler_daemon={}", library.display()))
        .arg("-o")
        .arg(&binary)
        .arg(workspace_root().join("profiler-daemon/src/main.rs")))?;
    check(Platform::native(), &binary)?;
    Ok(binary)
}

/// The daemon's library in a message of cargo, if the message is about it.
fn library_in(message: &str) -> Option<PathBuf> {
    let message: Artifact = serde_json::from_str(message).ok()?;
    if message.target?.name != "profiler_daemon" {
        return None;
    }
    let is_library = |file: &PathBuf| file.extension().is_some_and(|name| name == "rlib");
    message.filenames.into_iter().find(is_library)
}

/// What a message of cargo says of something that was built; other messages have neither.
#[derive(serde::Deserialize)]
struct Artifact {
    target: Option<ArtifactTarget>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(serde::Deserialize)]
struct ArtifactTarget {
    name: String,
}

fn rustc() -> OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// Names for the folders of this machine that the compiler would write into the binary.
fn renamed_paths() -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let sysroot = output(Command::new(rustc()).args(["--print", "sysroot"]))?;
    // With the component rust-src the standard library's own files are named as they are found there.
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    let renamed = [
        (workspace_root(), SOURCES),
        (home.join("registry/src"), "/usr/src/crates"),
        (library, "/usr/src/rust"),
    ];
    let flag = |(from, to): (PathBuf, &str)| {
        let from = from.to_str().context("a path is not UTF-8")?;
        Ok(format!("--remap-path-prefix={from}={to}"))
    };
    renamed.into_iter().map(flag).collect()
}

/// That it runs, and needs no library.
fn check(platform: Platform, binary: &Path) -> Result<()> {
    let mut readelf = Command::new("readelf");
    let headers = output(
        readelf
            .args(["--wide", "--program-headers", "--dynamic"])
            .arg(binary),
    )?;
    ensure!(
        !headers.contains("INTERP") && !headers.contains("(NEEDED)"),
        "{} is not linked statically",
        binary.display()
    );
    let version = output(platform.run(binary).arg("--version"))?;
    step(&format!("{} runs", version.trim()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the daemon's library is found among the messages of cargo.
    #[test]
    fn the_library_is_found_in_messages() {
        let message = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"profiler_daemon"},
            "filenames":["/t/libprofiler_daemon-1.rmeta","/t/libprofiler_daemon-1.rlib"],"fresh":true}"#;
        assert_eq!(
            library_in(message),
            Some(PathBuf::from("/t/libprofiler_daemon-1.rlib"))
        );
        let others = [
            message.replace("profiler_daemon\"", "profilerd\""),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "warning: text".to_owned(),
        ];
        assert!(others.iter().all(|other| library_in(other).is_none()));
    }
}
