//! The OCI image: the binary, CA roots, licences, and nothing to log in with.
//!
//! In:  a static binary, `deploy/container/Containerfile`, Mozilla's roots of the package `ca-certificates`
//! Out: `target/dist/profilerd-VERSION-linux-ARCH.oci.tar`
//!
//! buildah runs nothing in the image, so no container engine, emulator or registry is needed. It keeps its layers in
//! `target/dist/storage`, apart from those of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use profiler_test_support::workspace_root;

use super::{Commit, Platform, copy, empty, folder, release_name, tar, version};
use crate::command::{run_quietly, step};

/// Certificates as Mozilla lists them, without those that an administrator has added to this machine.
const MOZILLA_ROOTS: &str = "/usr/share/ca-certificates/mozilla";

/// Largest image, unpacked.
const IMAGE_BYTES_MAX: u64 = 30_000_000;

/// That the image of this binary and these licences is not too large.
pub(super) fn check_size(binary: &Path, licences: &Path) -> Result<()> {
    let mut bytes = fs::metadata(binary)?.len() + roots()?.len() as u64;
    for entry in fs::read_dir(licences)? {
        bytes += entry?.metadata()?.len();
    }
    ensure!(
        bytes <= IMAGE_BYTES_MAX,
        "the image has {bytes} bytes, more than {IMAGE_BYTES_MAX}"
    );
    step(&format!("the image has {bytes} bytes, unpacked"));
    Ok(())
}

/// The name that the image has in its archive, and in a store that loads it.
pub(crate) fn reference() -> String {
    format!("localhost/profilerd:{}", version())
}

/// Builds it; yields the archive, which is in the folder `to`.
pub(super) fn build(
    platform: Platform,
    binary: &Path,
    licences: &Path,
    commit: &Commit,
    to: &Path,
) -> Result<PathBuf> {
    step(&format!("build the image for {}", platform.name()));
    let context = folder().join("context");
    empty(&context)?;
    copy(binary, &context.join("profilerd"))?;
    fs::write(context.join("ca-certificates.crt"), roots()?)?;
    let notices = context.join("licences");
    fs::create_dir(&notices)?;
    if licences.is_dir() {
        for entry in fs::read_dir(licences)? {
            let entry = entry?;
            copy(&entry.path(), &notices.join(entry.file_name()))?;
        }
    } else {
        copy(licences, &notices.join("LICENSE"))?;
    }
    let containerfile = workspace_root().join("deploy/container/Containerfile");
    let reference = reference();
    run_quietly(
        buildah()
            .args(["bud", "--isolation", "chroot", "--format", "oci"])
            .args(["--platform", &format!("linux/{}", platform.name())])
            .args(["--timestamp", &commit.seconds])
            .args(["--build-arg", &format!("VERSION={}", version())])
            .args(["--build-arg", &format!("REVISION={}", commit.revision)])
            .args(["--tag", &reference, "--file"])
            .args([&containerfile, &context]),
    )?;
    let layout = folder().join("layout");
    empty(&layout)?;
    run_quietly(
        buildah()
            .args(["push", "--quiet", &reference])
            .arg(format!("oci:{}:{reference}", layout.display())),
    )?;
    // buildah's own archives have the time of the build in them.
    let archive = to.join(format!("{}.oci.tar", release_name(platform)));
    tar(
        &layout,
        &["blobs", "index.json", "oci-layout"],
        &[],
        commit,
        &archive,
    )?;
    fs::remove_dir_all(&layout)?;
    fs::remove_dir_all(&context)?;
    Ok(archive)
}

/// Builds the image of one static program, which is all it has, into a file that containerd loads.
pub(crate) fn build_single(program: &Path, reference: &str, archive: &Path) -> Result<()> {
    let context = folder().join("context");
    empty(&context)?;
    copy(program, &context.join("program"))?;
    fs::write(
        context.join("Containerfile"),
        "FROM scratch\nCOPY program /program\nENTRYPOINT [\"/program\"]\n",
    )?;
    let mut bud = buildah();
    bud.args([
        "bud",
        "--isolation",
        "chroot",
        "--format",
        "oci",
        "--tag",
        reference,
    ]);
    run_quietly(bud.arg(&context))?;
    if archive.exists() {
        fs::remove_file(archive)?;
    }
    let mut push = buildah();
    push.args(["push", "--quiet", reference]);
    run_quietly(push.arg(format!("oci-archive:{}:{reference}", archive.display())))?;
    fs::remove_dir_all(&context)?;
    Ok(())
}

fn buildah() -> Command {
    let storage = folder().join("storage");
    let mut buildah = Command::new("buildah");
    buildah
        .args(["--storage-driver", "vfs", "--root"])
        .arg(storage.join("root"))
        .arg("--runroot")
        .arg(storage.join("run"));
    buildah
}

/// All roots in one file, in the order of their names.
fn roots() -> Result<Vec<u8>> {
    let entries = fs::read_dir(MOZILLA_ROOTS).with_context(|| MOZILLA_ROOTS.to_owned())?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    ensure!(!paths.is_empty(), "{MOZILLA_ROOTS} is empty");
    let mut all = Vec::new();
    for path in paths {
        all.extend(fs::read(&path).with_context(|| path.display().to_string())?);
        if all.last() != Some(&b'\n') {
            all.push(b'\n');
        }
    }
    Ok(all)
}
