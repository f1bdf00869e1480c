//! Builds the BPF object from `profiler-ebpf` and puts it into `OUT_DIR/profiler-ebpf`, where
//! `kernel::object` embeds it.
//!
//! In:  `profiler-ebpf/`, `profiler-common/`, `Cargo.lock`
//! Out: `OUT_DIR/profiler-ebpf`, an ELF file for `bpfel-unknown-none` with BTF
//!
//! # Toolchains
//!
//! Rust ships no `core` for BPF, so one of these is needed, tried in this order:
//!
//! 1. a `rustc` in /usr/bin with a prebuilt `core` for BPF (Debian's `libstd-rust-web-dev-bpf`),
//!    whose unstable features are opened with `RUSTC_BOOTSTRAP`;
//! 2. a rustup nightly with the `rust-src` component, which builds `core` itself (`-Z build-std`).
//!
//! Both need `bpf-linker`. `PROFILERD_BPF_TOOLCHAIN=debian|rustup` forces one of them.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package and its only binary.
const PACKAGE: &str = "profiler-ebpf";
/// Forces a toolchain: `debian` or `rustup`.
const TOOLCHAIN_VARIABLE: &str = "PROFILERD_BPF_TOOLCHAIN";
/// Names the linker where it is not on the path.
const LINKER_VARIABLE: &str = "BPF_LINKER";

/// Where `core` for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    /// `/usr/bin/rustc` with a prebuilt `core`.
    Debian,
    /// rustup's nightly with `rust-src`.
    RustupNightly,
}

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let workspace = workspace_root()?;
    for path in [PACKAGE, "profiler-common", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for variable in [TOOLCHAIN_VARIABLE, LINKER_VARIABLE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = out_dir.join("bpf-target");
    let linker = linker()?;
    let toolchain = toolchain(target)?;

    let mut cargo = cargo(toolchain);
    // Settings of the outer build must not reach the BPF target: wrappers (clippy), flags, target.
    for (name, _) in env::vars_os() {
        if leaks_into_bpf_build(&name.to_string_lossy()) {
            cargo.env_remove(name);
        }
    }
    if toolchain == Toolchain::Debian {
        cargo.env("RUSTC", "/usr/bin/rustc");
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    let flags = [
        // Which layout of `struct pt_regs` and which system call numbers.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "--check-cfg=cfg(bpf_target_arch, values(\"x86_64\", \"aarch64\"))".to_owned(),
        // Maps and globals are described by BTF, which the linker makes from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("AYA_BPF_TARGET_ARCH", &arch)
        .current_dir(&workspace)
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--package", PACKAGE, "--bin", PACKAGE])
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir);
    if toolchain == Toolchain::RustupNightly {
        cargo.args(["-Z", "build-std=core"]);
    }

    let output = cargo
        .output()
        .map_err(|error| format!("failed to run {cargo:?}: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!(
            "{messages}\nthe BPF object did not build with the {toolchain:?} toolchain"
        )
        .into());
    }
    // Warnings of the inner build would stay unseen otherwise.
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
    let object = target_dir.join(target).join("release").join(PACKAGE);
    fs::copy(&object, out_dir.join(PACKAGE))
        .map_err(|error| format!("failed to copy {}: {error}", object.display()))?;
    Ok(())
}

/// The variables of the outer cargo that would change the BPF build.
fn leaks_into_bpf_build(name: &str) -> bool {
    matches!(
        name,
        "RUSTC"
            | "RUSTC_WRAPPER"
            | "RUSTC_WORKSPACE_WRAPPER"
            | "RUSTDOC"
            | "RUSTFLAGS"
            | "RUSTUP_TOOLCHAIN"
            | "CARGO"
            | "CARGO_ENCODED_RUSTFLAGS"
            | "CARGO_BUILD_TARGET"
            | "CARGO_BUILD_RUSTFLAGS"
            | "CARGO_TARGET_DIR"
            | "CLIPPY_ARGS"
            | "CLIPPY_CONF_DIR"
            | "CARGO_MAKEFLAGS"
            | "MAKEFLAGS"
            | "LD_LIBRARY_PATH"
    ) || name.starts_with("CARGO_PROFILE_")
        || name.starts_with("CARGO_CFG_")
        || name.starts_with("CARGO_FEATURE_")
        || name.starts_with("CARGO_PKG_")
}

fn cargo(toolchain: Toolchain) -> Command {
    match toolchain {
        // Cargo's own version does not matter here, and the outer one reads our lock file.
        Toolchain::Debian => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        Toolchain::RustupNightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
    }
}

fn toolchain(target: &str) -> Result<Toolchain, Box<dyn Error>> {
    let debian =
        Path::new("/usr/bin/rustc").exists() && Path::new("/usr/lib/rustlib").join(target).exists();
    match env::var(TOOLCHAIN_VARIABLE).ok().as_deref() {
        None | Some("") => {}
        Some("debian") => return Ok(Toolchain::Debian),
        Some("rustup") => return Ok(Toolchain::RustupNightly),
        Some(other) => {
            return Err(
                format!("{TOOLCHAIN_VARIABLE}={other}: expected `debian` or `rustup`").into(),
            );
        }
    }
    if debian {
        Ok(Toolchain::Debian)
    } else if nightly_has_rust_src() {
        Ok(Toolchain::RustupNightly)
    } else {
        Err(
            "no Rust toolchain here can compile for BPF: neither rustup's nightly with the \
             component rust-src, nor a /usr/bin/rustc with a prebuilt core for BPF. \
             Run `cargo xtask setup`, which installs one."
                .into(),
        )
    }
}

fn nightly_has_rust_src() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .env_remove("RUSTC")
        .output();
    let Ok(sysroot) = sysroot else { return false };
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    sysroot.starts_with('/')
        && Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library")
            .is_dir()
}

/// `bpf-linker` by variable, on the path, or where `cargo install` puts it.
fn linker() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = env::var_os(LINKER_VARIABLE) {
        return Ok(path.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            "bpf-linker is not installed. Run `cargo xtask setup`, which installs it.".into()
        })
}

fn workspace_root() -> Result<PathBuf, Box<dyn Error>> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    manifest_dir
        .parent()
        .map(Path::to_path_buf)
        .ok_or_else(|| "the package has no parent directory".into())
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}
