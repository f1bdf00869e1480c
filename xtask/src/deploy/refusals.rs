//! Values that the chart refuses: each refusal names the key.

use anyhow::{Context, Result, ensure};

use super::chart::{RELEASE, chart};
use super::{Outcome, named};
use crate::setup::tool;

/// Options of `helm template`, and what its refusal must say.
const REFUSED: [(&[&str], &str); 13] = [
    (&["--set", "hostPid=true"], "hostPid"),
    (&["--set", "oap.backend=x"], "backend"),
    (&["--set", "oap.backends={}"], "oap.backends"),
    (
        &["--set", "oap.backends={http://oap:11800}"],
        "oap.backends.0",
    ),
    // GraphQL is asked without TLS.
    (
        &["--set", "oap.query=https://oap:12800/graphql"],
        "oap.query",
    ),
    (&["--set", "metrics.port=70000"], "metrics.port"),
    (&["--set", "config.limit.max_cpu_percent=5"], "limit"),
    (&["--set", "config.limits.max_cpu=5"], "max_cpu"),
    (&["--set", "config.services[0].name=x"], "config.services.0"),
    (&["--set", "config.metrics=off"], "metrics"),
    (&["--set", "capabilities={CAP_BPF}"], "capabilities.0"),
    (&["--set", "state.type=pvc"], "state.type"),
    (
        &["--set", "seccompProfile.type=Localhost"],
        "localhostProfile",
    ),
];

pub(super) fn check() -> Vec<Outcome> {
    let check = |(options, key): &(&[&str], &str)| {
        named(&format!("chart refuses {}", options[1]), || {
            refuses(options, key)
        })
    };
    REFUSED.iter().map(check).collect()
}

fn refuses(options: &[&str], key: &str) -> Result<()> {
    let mut template = std::process::Command::new(tool("helm", "helm"));
    template
        .args(["template", RELEASE])
        .arg(chart())
        .args(options);
    let output = template.output().context("failed to start helm")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it was accepted");
    // Helm names the parts of a key with dots or slashes, depending on its version.
    let said_so = said.contains(key) || said.contains(&key.replace('.', "/"));
    ensure!(said_so, "the refusal does not name {key}: {said}");
    Ok(())
}
