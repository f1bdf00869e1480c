//! Builds the BPF object from `profiler-ebpf` and puts it into `OUT_DIR/profiler-ebpf`, where
//! `kernel::object` embeds it. Finds out the version that `--version` prints.
//!
//! In:  `profiler-ebpf/`, `profiler-common/`, `Cargo.lock`; the revision of git
//! Out: `OUT_DIR/profiler-ebpf`, an ELF file for `bpfel-unknown-none` with BTF and without DWARF; the variable
//!      `PROFILERD_VERSION`
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

use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The package and its only binary.
const PACKAGE: &str = "profiler-ebpf";
/// Forces a toolchain: `debian` or `rustup`.
const TOOLCHAIN_VARIABLE: &str = "PROFILERD_BPF_TOOLCHAIN";
/// Gives the revision where git is not there, such as in the build of a package.
const REVISION_VARIABLE: &str = "PROFILERD_REVISION";
/// Characters of a revision that are shown. Git shows more where these are not unique, which differs from clone to
/// clone.
const REVISION_CHARS: usize = 7;
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
    // Not whole folders: a file that a tool writes beside the sources would compile the daemon again.
    let sources = [PACKAGE, "profiler-common"]
        .map(|package| ["src", "Cargo.toml"].map(|it| format!("{package}/{it}")));
    let manifests = ["Cargo.lock", "Cargo.toml"].map(str::to_owned);
    for path in sources.into_iter().flatten().chain(manifests) {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for variable in [TOOLCHAIN_VARIABLE, LINKER_VARIABLE, REVISION_VARIABLE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    tell_version(&workspace)?;

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
    // BTF has the names of source files: without names of this machine, every build gives the same object.
    let crates = cargo_home()?.join("registry/src");
    let flags = [
        format!(
            "--remap-path-prefix={}=/usr/src/profilerd",
            workspace.display()
        ),
        format!("--remap-path-prefix={}=/usr/src/crates", crates.display()),
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
    strip(&object, &out_dir.join(PACKAGE))
        .map_err(|error| format!("failed to strip {}: {error}", object.display()))?;
    Ok(())
}

/// Copies an object without its DWARF, which is four fifths of it. The kernel and Aya read BTF, which the linker has made
/// of that.
fn strip(object: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = fs::read(object)?;
    let mut builder = Builder::read(bytes.as_slice())?;
    let sections = builder.sections.iter();
    let debug = sections.filter(|section| section.name.starts_with(b".debug_"));
    let debug: Vec<_> = debug.map(|section| section.id()).collect();
    for section in builder.sections.iter_mut() {
        // Relocations are sections of their own.
        let of_debug = section
            .sh_info_section
            .is_some_and(|id| debug.contains(&id));
        section.delete = of_debug || debug.contains(&section.id());
    }
    builder.delete_orphans();
    // LLVM keeps names of sections among those of symbols, the writer apart.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(fs::write(to, stripped)?)
}

/// The version of the package, with the revision behind it if that is known. Nothing else: the same sources give the
/// same binary. Git is asked for release builds alone, since every commit would compile the daemon again.
fn tell_version(workspace: &Path) -> Result<(), Box<dyn Error>> {
    let version = variable("CARGO_PKG_VERSION")?;
    let is_release = variable("PROFILE")? == "release";
    let given = env::var(REVISION_VARIABLE).ok();
    let given = given.filter(|revision| !revision.is_empty());
    let of_git = || is_release.then(|| git_revision(workspace)).flatten();
    let shown = match given.or_else(of_git) {
        Some(revision) => {
            let revision: String = revision.chars().take(REVISION_CHARS).collect();
            format!("{version} ({revision})")
        }
        None => version,
    };
    println!("cargo::rustc-env=PROFILERD_VERSION={shown}");
    Ok(())
}

/// The revision that is checked out; none if the sources are no clone, though a folder around them may be one.
fn git_revision(workspace: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.arg("-C").arg(workspace).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let top = fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?;
    if top != fs::canonicalize(workspace).ok()? {
        return None;
    }
    // The one that grows with every commit and checkout, or the one that names the branch.
    for name in ["logs/HEAD", "HEAD"] {
        let path = workspace.join(git(&["rev-parse", "--git-path", name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
            break;
        }
    }
    git(&["rev-parse", "HEAD"])
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

/// Where cargo keeps the sources of crates.
fn cargo_home() -> Result<PathBuf, Box<dyn Error>> {
    match env::var_os("CARGO_HOME") {
        Some(home) => Ok(home.into()),
        None => Ok(PathBuf::from(variable("HOME")?).join(".cargo")),
    }
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
