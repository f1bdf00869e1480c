//! The image in a container with the six capabilities, as Kubernetes runs it: no `privileged`, nothing of the host but its
//! process ids.
//!
//! In:  `target/dist/*.oci.tar`
//! Out: `profilerd doctor` content, a profile of a service of the host, a clear refusal where a right is missing
//!
//! Seccomp is left out: the default profile of older podmans allows `bpf` to `CAP_SYS_ADMIN` alone. That of containerd is
//! tried in a cluster. The container has the host's network, since a network of its own needs packages that nothing else here needs, and
//! limits of descriptors and processes that a machine without `CAP_SYS_RESOURCE` can set.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use profiler_test_support::SampleService;

use super::{Outcome, named};
use crate::demo::{POST, Traffic};
use crate::dist;

/// What profiling needs, as `docs/deploy.md` lists it.
const CAPABILITIES: &str =
    "--cap-add=BPF,PERFMON,SYS_PTRACE,DAC_READ_SEARCH,SYSLOG,CHECKPOINT_RESTORE";
/// The host's process ids.
const HOST_PIDS: &str = "--pid=host";

pub(super) fn check(image: &Path) -> Vec<Outcome> {
    vec![
        named("image has no shell", || has_no_shell(image)),
        named("container: doctor with six capabilities", || {
            let output = run(image, &[HOST_PIDS, CAPABILITIES], &["doctor"])?;
            says(&output, true, "profilerd works here")
        }),
        named("container: a service of the host is profiled", || {
            profiles(image)
        }),
        named("container: a missing capability is named", || {
            let options = [HOST_PIDS, "--cap-add=PERFMON,SYS_PTRACE,DAC_READ_SEARCH"];
            let output = run(image, &options, &["daemon", "--backend", "127.0.0.1:1"])?;
            says(&output, false, "missing capability CAP_BPF")
        }),
        named("container: missing hostPID is named", || {
            let output = run(image, &[CAPABILITIES], &["doctor"])?;
            says(&output, false, "in a pid namespace of its own")
        }),
    ]
}

fn has_no_shell(image: &Path) -> Result<()> {
    let mut podman = podman();
    podman
        .args(["run", "--rm", "--entrypoint", "/bin/sh"])
        .args(LIMITS);
    podman.arg(reference(image)).args(["-c", "true"]);
    let output = podman.output().context("failed to start podman")?;
    says(&output, false, "/bin/sh")
}

/// `record` in the container finds the function that the service sleeps in.
fn profiles(image: &Path) -> Result<()> {
    let service = SampleService::start(Path::new("python3"), "contained", None)?;
    let traffic = Traffic::start(service.address());
    let pid = service.id().to_string();
    let record = [
        "record",
        "--endpoint",
        POST,
        "--pid",
        &pid,
        "--duration",
        "10s",
    ];
    let output = run(image, &[HOST_PIDS, CAPABILITIES], &record)?;
    drop(traffic);
    says(&output, true, "sample_service.Handler.do_POST")?;
    says(&output, true, "time.sleep")
}

/// Limits of descriptors and processes below those of the host, which only `CAP_SYS_RESOURCE` could raise.
const LIMITS: [&str; 4] = [
    "--ulimit",
    "nofile=10000:10000",
    "--ulimit",
    "nproc=1000:1000",
];

fn run(image: &Path, options: &[&str], arguments: &[&str]) -> Result<Output> {
    let mut podman = podman();
    podman
        .args(["run", "--rm", "--network=host", "--cap-drop=all"])
        .args([
            "--security-opt=no-new-privileges",
            "--security-opt=apparmor=unconfined",
            "--security-opt=seccomp=unconfined",
        ])
        .args(["--read-only", "--read-only-tmpfs=false"])
        .args(LIMITS)
        .args(options)
        .arg(reference(image))
        .args(arguments);
    podman.output().context("failed to start podman")
}

fn reference(image: &Path) -> String {
    format!("oci-archive:{}", image.display())
}

/// podman with a store of its own.
fn podman() -> Command {
    let storage = dist::folder().join("containers");
    let mut podman = Command::new("podman");
    podman
        .args([
            "--storage-driver",
            "vfs",
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
        ])
        .arg("--root")
        .arg(storage.join("root"))
        .arg("--runroot")
        .arg(storage.join("run"));
    podman
}

fn says(output: &Output, succeeds: bool, text: &str) -> Result<()> {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.success() == succeeds && said.contains(text),
        "{} and this, where {text:?} is expected:\n{said}",
        output.status
    );
    Ok(())
}
