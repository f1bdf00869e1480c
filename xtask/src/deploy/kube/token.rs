//! A token of a service account that has expired, and one that takes its place.
//!
//! In:  the cluster, `resign.py`
//! Out: a daemon beside the pods that is not ready with the one and is with the other, in the same life

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use profiler_test_support::{ChildGuard, target_dir, workspace_root};

use super::node::Node;
use crate::command::output;

/// Account of the daemon, whose namespace every cluster has.
const ACCOUNT: &str = "outside";
/// Where the daemon says whether it is ready.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 19464);

/// Starts a daemon with the expired one, and replaces it.
pub(super) fn is_replaced(node: &Node, binary: &Path) -> Result<()> {
    let folder = target_dir().join("kube");
    let file = folder.join("token");
    let account = format!("--serviceaccount=default:{ACCOUNT}");
    node.kubectl(&["create", "serviceaccount", ACCOUNT])?;
    let verbs = ["--verb=list,watch", "--resource=pods"];
    node.kubectl(&[&["create", "clusterrole", ACCOUNT][..], &verbs].concat())?;
    let role = format!("--clusterrole={ACCOUNT}");
    node.kubectl(&["create", "clusterrolebinding", ACCOUNT, &role, &account])?;
    let valid = node.kubectl(&["create", "token", ACCOUNT])?;
    fs::write(&file, valid.trim())?;
    let resign = workspace_root().join("xtask/src/deploy/kube/resign.py");
    let mut python = Command::new("/usr/bin/python3");
    let expired = output(python.arg(resign).arg(&file).arg(folder.join("sa.key")))?;
    fs::write(&file, expired.trim())?;

    let log = folder.join("outside.log");
    let config = folder.join("outside.yaml");
    fs::write(
        &config,
        format!(
            "oap: {{backends: [127.0.0.1:1]}}\nmetrics: {}:{}\nstate_dir: none\nkubernetes:\n  enabled: true\n  \
             api_server: https://10.96.0.1:443\n  node_name: node1\n  token_file: {}\n  ca_file: {}\n",
            METRICS.0,
            METRICS.1,
            file.display(),
            folder.join("ca.crt").display(),
        ),
    )?;
    let mut daemon = node.command(binary)?;
    let written = fs::File::create(&log)?;
    daemon
        .args(["daemon", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(written.try_clone()?)
        .stderr(written);
    let _daemon = ChildGuard::spawn("a daemon outside", &mut daemon)?;
    let url = format!("http://{}:{}/readyz", METRICS.0, METRICS.1);
    let ask = ["-s", "-m", "10", &url];
    node.wait_until("curl", &ask, |said| {
        said.contains("HTTP 401") && said.contains("kubernetes.token_file")
    })?;
    fs::write(&file, valid.trim())?;
    // Its OAP is still missing; that the pods are not read is no reason any more.
    node.wait_until("curl", &ask, |said| {
        !said.is_empty() && !said.contains("Kubernetes")
    })?;
    let said = fs::read_to_string(&log)?;
    ensure!(
        said.contains("pods are read from Kubernetes again"),
        "{said}"
    );
    Ok(())
}
