//! Programs of the Kubernetes world that no registry has as binaries: built from Go modules in fixed versions, which
//! `xtask/tools/NAME/go.mod` lists.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use profiler_test_support::{target_dir, workspace_root};

use super::once;
use crate::command::{find_program, run_quietly, step};

/// The version of Kubernetes that rendered manifests are for; Helm is told so when it is built, or takes the cluster for
/// 1.20.
pub(crate) const KUBERNETES_MINOR: u32 = 34;

/// A program, and the settings that its linker is given.
struct GoProgram {
    name: &'static str,
    package: &'static str,
    variables: &'static [(&'static str, &'static str)],
}

const HELM: [GoProgram; 2] = [
    GoProgram {
        name: "helm",
        package: "helm.sh/helm/v3/cmd/helm",
        variables: &[
            ("helm.sh/helm/v3/internal/version.version", "v3.19.5"),
            ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor", "1"),
            ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor", "34"),
            ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor", "1"),
            ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor", "34"),
        ],
    },
    GoProgram {
        name: "kustomize",
        package: "sigs.k8s.io/kustomize/kustomize/v5",
        variables: &[],
    },
];

/// What a cluster consists of; `kubernetes` has the API server, controller manager, scheduler and kubelet in it.
const KUBE: [GoProgram; 3] = [
    GoProgram {
        name: "kubernetes",
        package: ".",
        variables: &KUBERNETES_VERSION,
    },
    GoProgram {
        name: "etcd",
        package: "go.etcd.io/etcd/server/v3",
        variables: &[],
    },
    GoProgram {
        name: "kubectl",
        package: "k8s.io/kubernetes/cmd/kubectl",
        variables: &KUBERNETES_VERSION,
    },
];

/// What else would call itself v0.0.0-master.
const KUBERNETES_VERSION: [(&str, &str); 6] = [
    ("k8s.io/component-base/version.gitVersion", "v1.34.4"),
    ("k8s.io/component-base/version.gitMajor", "1"),
    ("k8s.io/component-base/version.gitMinor", "34"),
    ("k8s.io/client-go/pkg/version.gitVersion", "v1.34.4"),
    ("k8s.io/client-go/pkg/version.gitMajor", "1"),
    ("k8s.io/client-go/pkg/version.gitMinor", "34"),
];

/// Builds a cluster unless it is there: ten minutes of processor time.
pub(super) fn ensure_kube() -> Result<()> {
    build("kube", &KUBE)?;
    for part in [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
    ] {
        let link = tool("kube", part);
        if !link.exists() {
            std::os::unix::fs::symlink("kubernetes", &link)
                .with_context(|| link.display().to_string())?;
        }
    }
    Ok(())
}

/// The folder with all parts of the cluster.
pub(crate) fn kube_folder() -> PathBuf {
    folder("kube")
}

/// Builds Helm and kustomize unless they are there.
pub(super) fn ensure_helm() -> Result<()> {
    build("helm", &HELM)
}

/// A program that was built from the module `module`.
pub(crate) fn tool(module: &str, name: &str) -> PathBuf {
    folder(module).join(name)
}

fn folder(module: &str) -> PathBuf {
    target_dir().join("tools").join(module)
}

fn build(module: &str, programs: &[GoProgram]) -> Result<()> {
    let source = workspace_root().join("xtask/tools").join(module);
    once(&folder(module), &source.join("go.mod"), |folder, _| {
        if find_program("go").is_none() {
            bail!("go is missing: install Go 1.24 or newer from https://go.dev/dl");
        }
        for program in programs {
            step(&format!("go build {} (some minutes)", program.name));
            build_one(program, &source, folder)
                .with_context(|| format!("failed to build {}", program.name))?;
        }
        Ok(())
    })
}

fn build_one(program: &GoProgram, source: &Path, to: &Path) -> Result<()> {
    let variables: Vec<String> = program
        .variables
        .iter()
        .map(|(name, value)| format!("-X {name}={value}"))
        .collect();
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly"])
        .args(["-ldflags", &format!("-s -w {}", variables.join(" "))])
        .arg("-o")
        .arg(to.join(program.name))
        .arg(program.package)
        .env("CGO_ENABLED", "0")
        .current_dir(source);
    run_quietly(&mut go)
}
