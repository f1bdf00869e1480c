//! `cargo xtask setup`: installs what a new machine lacks, and does nothing when nothing is missing.

mod apt;
mod archive;
mod bpf;
mod cross;
mod dist;
mod go;
mod loops;
mod oap;
mod peer;
mod python;
mod venv;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use profiler_test_support::{target_dir, workspace_root};

use crate::command::{find_program, step};

pub(crate) use archive::{Archive, DEBIAN_KEYRING};
pub(crate) use cross::{AARCH64_CC, CrossTarget, aarch64, debian_suite};
pub(crate) use go::{KUBERNETES_MINOR, kube_folder, tool};
pub(crate) use peer::py_spy;

/// Arguments of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Also what the tests and the benchmark need.
    #[arg(long)]
    test: bool,
    /// Also a SkyWalking OAP and SkyWalking's Python agent, which tests run against.
    #[arg(long)]
    oap: bool,
    /// Also py-spy, which the benchmark measures beside profilerd.
    #[arg(long)]
    bench: bool,
    /// Also what running other kernels needs.
    #[arg(long)]
    vm: bool,
    /// Also what building for aarch64 and booting it needs.
    #[arg(long)]
    aarch64: bool,
    /// Also what makes releases: image, packages, SBOM, licences.
    #[arg(long)]
    dist: bool,
    /// Also what checks chart, manifests, image and systemd unit.
    #[arg(long)]
    deploy: bool,
}

/// What a thing is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Compiling the daemon and its BPF object.
    Build,
    /// Running the tests, the demo and the benchmark.
    Test,
    /// Running a SkyWalking OAP and SkyWalking's Python agent.
    Oap,
    /// Measuring beside other profilers.
    Bench,
    /// Booting other kernels.
    Vm,
    /// Building for aarch64, and booting it.
    Aarch64,
    /// Running single programs that were built for aarch64.
    Emulator,
    /// Building the image.
    Image,
    /// Building everything else that is released.
    Dist,
    /// Checking chart, manifests, image and systemd unit.
    Deploy,
    /// Trying the packages in a machine.
    Packages,
    /// Running a Kubernetes cluster on this machine.
    Kube,
}

/// A file whose absence means that a package is missing.
struct Need {
    group: Group,
    /// A program on `PATH`, or a file when it begins with `/`.
    file: &'static str,
    apt_package: &'static str,
}

const NEEDS: &[Need] = &[
    // Called by rustc for every link and by the C parts of dependencies.
    need(Group::Build, "cc", "gcc"),
    need(Group::Test, "python3", "python3"),
    // Other versions of CPython, from other suites.
    need(Group::Test, "dpkg-deb", "dpkg"),
    need(Group::Test, DEBIAN_KEYRING, "debian-archive-keyring"),
    need(Group::Test, "patchelf", "patchelf"),
    // The independent opinion on native stacks.
    need(Group::Test, "gdb", "gdb"),
    need(Group::Test, "wrk", "wrk"),
    need(Group::Test, "bpftool", "bpftool"),
    need(Group::Oap, "java", "default-jre-headless"),
    need(Group::Oap, "mvn", "maven"),
    need(Group::Oap, "openssl", "openssl"),
    need(Group::Oap, "python3", "python3"),
    need(Group::Vm, "cpio", "cpio"),
    need(Group::Vm, "dpkg-deb", "dpkg"),
    need(Group::Vm, DEBIAN_KEYRING, "debian-archive-keyring"),
    need(Group::Vm, "qemu-system-x86_64", "qemu-system-x86"),
    need(Group::Aarch64, "cpio", "cpio"),
    need(Group::Aarch64, "dpkg-deb", "dpkg"),
    need(Group::Aarch64, DEBIAN_KEYRING, "debian-archive-keyring"),
    need(Group::Aarch64, AARCH64_CC, "gcc-aarch64-linux-gnu"),
    need(
        Group::Aarch64,
        "/usr/aarch64-linux-gnu/lib/libc.a",
        "libc6-dev-arm64-cross",
    ),
    need(Group::Aarch64, "qemu-system-aarch64", "qemu-system-arm"),
    need(Group::Emulator, "qemu-aarch64", "qemu-user"),
    need(Group::Image, "buildah", "buildah"),
    need(Group::Image, "readelf", "binutils"),
    need(
        Group::Image,
        "/usr/share/ca-certificates/mozilla",
        "ca-certificates",
    ),
    need(Group::Packages, "debootstrap", "debootstrap"),
    need(Group::Packages, DEBIAN_KEYRING, "debian-archive-keyring"),
    need(Group::Packages, "rpm", "rpm"),
    need(Group::Kube, "containerd", "containerd"),
    need(
        Group::Kube,
        "/usr/lib/cni/bridge",
        "containernetworking-plugins",
    ),
    need(Group::Kube, "iptables", "iptables"),
    need(Group::Kube, "conntrack", "conntrack"),
    need(Group::Kube, "openssl", "openssl"),
    need(Group::Kube, "curl", "curl"),
    need(Group::Kube, "/usr/bin/python3", "python3"),
    need(Group::Deploy, "podman", "podman"),
    need(Group::Deploy, "runc", "runc"),
    need(Group::Deploy, "systemd-analyze", "systemd"),
];

const fn need(group: Group, file: &'static str, apt_package: &'static str) -> Need {
    Need {
        group,
        file,
        apt_package,
    }
}

/// Runs `setup`.
pub(crate) fn run(args: &SetupArgs) -> Result<ExitCode> {
    let mut groups = vec![Group::Build];
    groups.extend(args.test.then_some(Group::Test));
    groups.extend(args.oap.then_some(Group::Oap));
    groups.extend(args.bench.then_some(Group::Bench));
    groups.extend(args.vm.then_some(Group::Vm));
    groups.extend(args.aarch64.then_some(Group::Aarch64));
    if args.dist {
        groups.extend([Group::Image, Group::Dist]);
    }
    if args.deploy {
        groups.extend([Group::Image, Group::Deploy]);
    }
    ensure(&groups)?;
    step("everything is installed");
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing for `groups`; quick and silent when nothing is.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let missing: Vec<&str> = NEEDS
        .iter()
        .filter(|need| groups.contains(&need.group) && !is_there(need.file))
        .map(|need| need.apt_package)
        .collect();
    if !missing.is_empty() {
        if !apt::is_available() {
            bail!(
                "please install with this system's package manager: {} (names of Debian)",
                missing.join(" ")
            );
        }
        apt::install(&missing)?;
    }
    if groups.contains(&Group::Build) {
        bpf::ensure()?;
    }
    if groups.contains(&Group::Test) {
        python::ensure();
    }
    if groups.contains(&Group::Aarch64) {
        aarch64()?;
    }
    if groups.contains(&Group::Test) {
        loops::ensure()?;
    }
    if groups.contains(&Group::Oap) {
        oap::ensure()?;
    }
    if groups.contains(&Group::Bench) {
        peer::ensure()?;
    }
    if groups.contains(&Group::Dist) {
        dist::ensure()?;
    }
    if groups.contains(&Group::Deploy) {
        go::ensure_helm()?;
        venv::ensure(&kubernetes_validate_folder(), &kubernetes_validate_list())
            .context("failed to fetch kubernetes-validate")?;
    }
    if groups.contains(&Group::Kube) {
        go::ensure_kube()?;
    }
    Ok(())
}

fn kubernetes_validate_folder() -> PathBuf {
    target_dir().join("tools/kubernetes-validate")
}

fn kubernetes_validate_list() -> PathBuf {
    workspace_root().join("xtask/tools/kubernetes-validate.txt")
}

/// The program with the schemas of Kubernetes.
pub(crate) fn kubernetes_validate() -> PathBuf {
    kubernetes_validate_folder().join("bin/kubernetes-validate")
}

/// Fills `folder` by `fetch` unless it was filled for the same text of `wanted` before. What is left of
/// another or an interrupted attempt is removed.
fn once(
    folder: &Path,
    wanted: &Path,
    fetch: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    let text = fs::read(wanted).with_context(|| format!("failed to read {}", wanted.display()))?;
    let stamp = folder.join("complete");
    if fs::read(&stamp).is_ok_and(|done| done == text) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    fetch(folder, wanted)?;
    fs::write(stamp, text)?;
    Ok(())
}

fn is_there(file: &str) -> bool {
    if file.starts_with('/') {
        return Path::new(file).exists();
    }
    // Debian keeps programs for root outside of other users' PATH.
    find_program(file).is_some() || Path::new("/usr/sbin").join(file).exists()
}
