//! `cargo xtask dist`: everything that is released, in `target/dist`.
//!
//! ```text
//! binary.rs    statically linked, stripped binary
//! notices.rs   SBOM, licences of all dependencies
//! stage.rs     the folder that is packed: binary, man pages, completions, licences, unit, example
//! image.rs     OCI image
//! packages.rs  deb, rpm
//! ```
//!
//! In:  the commit, and the tools of `cargo xtask setup --dist`
//! Out: `profilerd-VERSION-linux-ARCH.{tar.gz,oci.tar,cdx.json,bpf.cdx.json}`, a deb, an rpm, `SHA256SUMS`
//!
//! The same commit and tools give the same bytes: every time is the one of the commit, and no path of this machine is
//! in the binary.

mod binary;
mod commit;
mod image;
mod notices;
mod packages;
mod platform;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use profiler_test_support::workspace_root;

use crate::command::{output, run_quietly, step};
use crate::setup::{self, Group};
use commit::Commit;
use platform::Platform;

pub(crate) use image::{build_single, reference};

/// Name for the folder of the sources in what is released, which is another one on every machine.
const SOURCES: &str = "/usr/src/profilerd";

/// Arguments of `dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct DistArgs {
    /// Architecture, as images name it.
    #[arg(long, value_enum, default_value_t = Platform::native())]
    arch: Platform,
}

/// Runs `dist`.
pub(crate) fn run(args: &DistArgs) -> Result<ExitCode> {
    let platform = args.arch;
    let mut groups = platform.groups();
    groups.push(Group::Dist);
    setup::ensure(&groups)?;
    let commit = Commit::read()?;
    let folder = folder();
    fs::create_dir_all(&folder)?;
    let name = release_name(platform);

    let binary = binary::build(platform, &commit)?;
    let bom = folder.join(format!("{name}.cdx.json"));
    let bpf_bom = folder.join(format!("{name}.bpf.cdx.json"));
    notices::write_boms(platform, &commit, [&bom, &bpf_bom])?;
    let stage = stage::fill(platform, &binary)?;
    let archive = folder.join(format!("{name}.tar.gz"));
    stage::pack(&stage, &name, &commit, &archive)?;
    let licences = stage.join("licences");
    image::check_size(&binary, &licences)?;
    let image = image::build(platform, &binary, &licences, &commit, &folder)?;
    let mut written = vec![bom, bpf_bom, archive, image];
    written.extend(packages::build(platform, &commit, &folder)?);
    write_checksums(&folder)?;
    for path in written {
        let bytes = fs::metadata(&path)?.len();
        println!("{} {:.1} MB", path.display(), bytes as f64 / 1e6);
    }
    Ok(ExitCode::SUCCESS)
}

/// A static binary that is linked from what tests are built from, and the image of it: packaging is tried with them.
pub(crate) fn quick_image() -> Result<(PathBuf, PathBuf)> {
    let platform = Platform::native();
    setup::ensure(&platform.groups())?;
    let commit = Commit::read_if_known();
    let binary = binary::link_for_checks()?;
    let licence = workspace_root().join("LICENSE");
    let image = image::build(platform, &binary, &licence, &commit, &checks_folder()?)?;
    Ok((binary, image))
}

/// The deb and the rpm with a binary as in [`quick_image`].
pub(crate) fn quick_packages() -> Result<[PathBuf; 2]> {
    let platform = Platform::native();
    let commit = Commit::read_if_known();
    let binary = binary::link_for_checks()?;
    stage::fill(platform, &binary)?;
    packages::build(platform, &commit, &checks_folder()?)
}

/// Where results go.
pub(crate) fn folder() -> PathBuf {
    // Not CARGO_TARGET_DIR: cargo-deb and cargo-generate-rpm are told paths below the workspace by Cargo.toml.
    workspace_root().join("target/dist")
}

/// Where what is only built for checks goes: it has the names of releases.
fn checks_folder() -> Result<PathBuf> {
    let folder = folder().join("checks");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// `profilerd-VERSION-linux-ARCH`.
fn release_name(platform: Platform) -> String {
    format!("profilerd-{}-linux-{}", version(), platform.name())
}

/// Of profilerd: the workspace has one version.
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Of all releases in the folder, as `sha256sum --check` reads it.
fn write_checksums(folder: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && name != "SHA256SUMS" {
            names.push(name);
        }
    }
    names.sort();
    let sums = output(Command::new("sha256sum").args(&names).current_dir(folder))?;
    fs::write(folder.join("SHA256SUMS"), sums)?;
    Ok(())
}

/// Writes a folder, or entries of it, as a tar file whose bytes depend on names and contents only.
fn tar(
    folder: &Path,
    entries: &[&str],
    options: &[&str],
    commit: &Commit,
    to: &Path,
) -> Result<()> {
    step(&format!("tar {}", to.display()));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u+rw,go+r,go-w", "--format=gnu"])
        .arg(format!("--mtime=@{}", commit.seconds))
        .args(options)
        .arg("--file")
        .arg(to)
        .arg("--create")
        .arg("--directory")
        .arg(folder)
        .args(entries);
    run_quietly(&mut tar)
}

/// An empty folder, whatever was there before.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}

/// Copies a file into a folder that need not be there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("failed to copy {}", from.display()))?;
    Ok(())
}
