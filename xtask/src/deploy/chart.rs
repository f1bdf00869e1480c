//! The Helm chart and the plain manifests, without a cluster.
//!
//! In:  `deploy/helm/profilerd` with the values of its `ci/`, `deploy/kubernetes`
//! Out: rendered manifests that the schemas of Kubernetes accept; `deploy/kubernetes/profilerd.yaml`, which is the chart
//!      rendered with its defaults

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use profiler_test_support::{target_dir, workspace_root};

use super::{Outcome, named};
use crate::command::{output, run_quietly};
use crate::setup::{KUBERNETES_MINOR, kubernetes_validate, tool};

/// Release and namespace of the plain manifests.
pub(super) const RELEASE: &str = "profilerd";

/// Writes the plain manifests again.
pub(super) fn write_manifests() -> Result<()> {
    let path = plain_manifests();
    fs::write(&path, plain()?).with_context(|| path.display().to_string())
}

pub(super) fn check() -> Vec<Outcome> {
    vec![
        named("helm lint", || {
            let mut lint = helm();
            run_quietly(lint.args(["lint", "--strict"]).arg(chart()))
        }),
        named(
            "chart: every set of values is accepted by Kubernetes",
            || {
                for values in value_files()? {
                    validate(&template(&values)?).with_context(|| values.display().to_string())?;
                }
                Ok(())
            },
        ),
        named("chart: older Kubernetes has AppArmor's annotation", || {
            let rendered = output(&mut render(&["--kube-version", "1.29"]))?;
            ensure!(
                rendered.contains(
                    "container.apparmor.security.beta.kubernetes.io/profilerd: unconfined"
                )
            );
            ensure!(!rendered.contains("appArmorProfile"));
            Ok(())
        }),
        named("plain manifests are the rendered chart", || {
            let written = fs::read_to_string(plain_manifests())?;
            ensure!(
                written == plain()?,
                "deploy/kubernetes/profilerd.yaml differs from the chart: `cargo xtask manifests` writes it again"
            );
            Ok(())
        }),
        named("kustomize builds what Kubernetes accepts", || {
            let mut kustomize = Command::new(tool("helm", "kustomize"));
            let built = output(kustomize.arg("build").arg(folder()))?;
            let kinds = built.lines().filter(|line| line.starts_with("kind: "));
            ensure!(kinds.count() == 6, "six objects are expected:\n{built}");
            validate(&built)
        }),
    ]
}

/// That profilerd accepts what the chart and the packages configure it with.
pub(super) fn check_configuration(binary: &Path) -> Result<()> {
    let accepts = |file: &Path| {
        run_quietly(Command::new(binary).args(["config", "check"]).arg(file))
            .with_context(|| file.display().to_string())
    };
    accepts(&workspace_root().join("deploy/packages/profilerd.yaml"))?;
    let file = target_dir().join("tmp/profilerd.yaml");
    for values in value_files()? {
        let mut map = render(&["--show-only", "templates/configmap.yaml"]);
        let map = output(map.arg("--values").arg(&values))?;
        let (_, text) = map
            .split_once("profilerd.yaml: |\n")
            .context("the ConfigMap has no profilerd.yaml")?;
        let text: String = text
            .lines()
            .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
            .collect();
        fs::write(&file, text)?;
        accepts(&file).with_context(|| values.display().to_string())?;
    }
    Ok(())
}

/// The chart's folder.
pub(super) fn chart() -> PathBuf {
    workspace_root().join("deploy/helm/profilerd")
}

fn folder() -> PathBuf {
    workspace_root().join("deploy/kubernetes")
}

fn plain_manifests() -> PathBuf {
    folder().join("profilerd.yaml")
}

/// The chart with its defaults, without the comments that name its files.
fn plain() -> Result<String> {
    let rendered = output(&mut render(&[]))?;
    let mut text = String::from(
        "# The chart deploy/helm/profilerd with its default values: `cargo xtask manifests` writes this file.\n",
    );
    for line in rendered
        .lines()
        .filter(|line| !line.starts_with("# Source:"))
    {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

fn helm() -> Command {
    Command::new(tool("helm", "helm"))
}

fn render(options: &[&str]) -> Command {
    let mut template = helm();
    template
        .args(["template", RELEASE])
        .arg(chart())
        .args(["--namespace", RELEASE])
        .args(options);
    template
}

/// The chart with the values of a file.
pub(super) fn template(values: &Path) -> Result<String> {
    output(render(&[]).arg("--values").arg(values))
}

/// The chart's own defaults and the sets in `ci/`.
fn value_files() -> Result<Vec<PathBuf>> {
    let mut files = vec![chart().join("values.yaml")];
    for entry in fs::read_dir(chart().join("ci"))? {
        files.push(entry?.path());
    }
    files.sort();
    ensure!(files.len() > 4, "the sets of values in ci/ are missing");
    Ok(files)
}

/// Checks manifests against the schemas of Kubernetes, which refuse unknown keys.
fn validate(manifests: &str) -> Result<()> {
    let path = target_dir().join("tmp/manifests.yaml");
    // The PodMonitor is a kind of the Prometheus operator.
    let known: Vec<&str> = manifests
        .split("\n---\n")
        .filter(|document| !document.contains("\nkind: PodMonitor"))
        .collect();
    fs::create_dir_all(target_dir().join("tmp"))?;
    fs::write(&path, known.join("\n---\n"))?;
    run_quietly(
        Command::new(kubernetes_validate())
            .args(["-k", &format!("1.{KUBERNETES_MINOR}"), "--strict"])
            .arg(&path),
    )
}
