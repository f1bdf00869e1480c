//! A Rust compiler that can make BPF objects, and bpf-linker.
//!
//! Two routes, the same two that `profiler-daemon/build.rs` looks for:
//! - Debian's own compiler (package `rustc-web`) with its prebuilt `core` for BPF. It needs only the
//!   Debian mirror and crates.io; bpf-linker is built against the LLVM packages of the same version.
//! - rustup's nightly with `rust-src`, and bpf-linker from its releases.
//!
//! The first one is preferred on Debian: its compiler is pinned by the distribution, nightly changes daily.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::command::{cargo, find_program, is_root, run_quietly, step, succeeds};

/// Debian's prebuilt `core` of the BPF target.
const DEBIAN_BPF_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
/// Debian's compiler; another one on `PATH` may be rustup's.
pub(super) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// `rustc-web` 1.96 is built with this LLVM; bpf-linker must read its bitcode.
const LLVM_MAJOR: u32 = 22;
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Seconds rustup may need for the nightly toolchain before we say that it cannot be had.
const RUSTUP_TIMEOUT_S: &str = "600";

/// Makes sure that a compiler and the linker are there.
pub(super) fn ensure() -> Result<()> {
    let debian = debian_compiler();
    if (debian || rustup_compiler()) && linker() {
        return Ok(());
    }
    if debian || debian_route_is_offered()? {
        install_debian_route()
    } else if find_program("rustup").is_some() {
        install_rustup_route()
    } else {
        bail!(
            "there is no compiler for BPF objects. Install rustup (https://rustup.rs), then:\n  \
             rustup toolchain install nightly --profile minimal --component rust-src\n  \
             and bpf-linker {BPF_LINKER_VERSION} from https://github.com/aya-rs/bpf-linker/releases \
             into a folder on PATH"
        );
    }
}

/// Whether Debian's compiler is there, with its library for BPF.
pub(super) fn debian_compiler() -> bool {
    Path::new(DEBIAN_BPF_CORE).exists() && Path::new(DEBIAN_RUSTC).exists()
}

fn rustup_compiler() -> bool {
    let Ok(sysroot) = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
    else {
        return false;
    };
    sysroot.status.success()
        && Path::new(String::from_utf8_lossy(&sysroot.stdout).trim())
            .join("lib/rustlib/src/rust/library/core")
            .exists()
}

fn linker() -> bool {
    succeeds(Command::new("bpf-linker").arg("--version"))
}

fn debian_route_is_offered() -> Result<bool> {
    if !apt::is_available() {
        return Ok(false);
    }
    let offered = || apt::offers("libstd-rust-web-dev-bpf");
    if !offered() && is_root() {
        // A fresh container has no lists at all.
        apt::update()?;
    }
    Ok(offered())
}

fn install_debian_route() -> Result<()> {
    if !debian_compiler() {
        apt::install(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])?;
    }
    if linker() {
        return Ok(());
    }
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}"));
    apt::install(&[
        &format!("llvm-{LLVM_MAJOR}-dev"),
        &format!("libpolly-{LLVM_MAJOR}-dev"),
        "zlib1g-dev",
        "libzstd-dev",
        // bpf-linker links LLVM's C++ library.
        "g++",
    ])?;
    step(&format!(
        "cargo install bpf-linker {BPF_LINKER_VERSION} with LLVM {LLVM_MAJOR} (about a minute)"
    ));
    // The build scripts of llvm-sys and bpf-linker look for llvm-config in the prefix and on PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(llvm.join("bin")).chain(env::split_paths(&path)))?;
    run_quietly(
        cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION])
            .args(["--locked", "--quiet", "--no-default-features"])
            .args(["--features", &format!("llvm-{LLVM_MAJOR}")])
            .env("LLVM_PREFIX", &llvm)
            .env("PATH", path),
    )
    .context("cannot build bpf-linker (is this machine offline?)")?;
    linker_is_on_path()
}

fn install_rustup_route() -> Result<()> {
    if !rustup_compiler() {
        step("rustup toolchain install nightly with rust-src");
        run_quietly(
            Command::new("timeout")
                .args([
                    RUSTUP_TIMEOUT_S,
                    "rustup",
                    "toolchain",
                    "install",
                    "nightly",
                ])
                .args(["--profile", "minimal", "--component", "rust-src"]),
        )
        .context("rustup cannot install nightly with rust-src (is this machine offline?)")?;
    }
    if linker() {
        return Ok(());
    }
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let url = format!(
        "https://github.com/aya-rs/bpf-linker/releases/download/v{BPF_LINKER_VERSION}/bpf-linker-{triple}.tar.zst"
    );
    let folder = cargo_bin_dir()?;
    fs::create_dir_all(&folder)?;
    let archive = folder.join("bpf-linker.tar.zst");
    step(&format!("download {url}"));
    run_quietly(
        Command::new("curl")
            .args(["--fail", "--silent", "--show-error", "--location"])
            .args(["--connect-timeout", "20", "--output"])
            .arg(&archive)
            .arg(&url),
    )
    .context("cannot download bpf-linker (is this machine offline?)")?;
    let unpacked = run_quietly(
        Command::new("tar")
            .arg("--extract")
            .args(["--file".as_ref(), archive.as_os_str()])
            .args(["--directory".as_ref(), folder.as_os_str()]),
    )
    .context("cannot unpack bpf-linker (tar needs the program zstd)");
    fs::remove_file(&archive)?;
    unpacked?;
    linker_is_on_path()
}

fn linker_is_on_path() -> Result<()> {
    if linker() {
        return Ok(());
    }
    bail!(
        "bpf-linker is installed but does not run; is {} on PATH?",
        cargo_bin_dir()?.display()
    )
}

fn cargo_bin_dir() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    Ok(home
        .context("neither CARGO_HOME nor HOME is set")?
        .join("bin"))
}
