//! Chart and manifests on a real Kubernetes.
//!
//! In:  a cluster of one node (`node.sh`), the image, an OAP of profilerd beside the node
//! Out: one result for each check, in the order in which an operator meets the thing that is checked

mod node;
mod token;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use profiler_test_support::{ChildGuard, SampleService, target_dir, workspace_root};

use super::chart::chart;
use super::{Outcome, named};
use crate::command::{run, step};
use crate::demo::{POST, Traffic};
use crate::dist;
use crate::setup::{self, Group, tool};
use node::Node;

/// Release and namespace.
const NAME: &str = "profilerd";
/// Where the OAP listens, an address of the node.
const OAP: &str = "10.77.0.1:11800";
/// The service of `workload.yaml`, as its workload and namespace name it.
const SHOP: &str = "shop.prod";
/// The command line of the daemon in its pod.
const DAEMON: &str = "daemon --config /etc/profilerd/profilerd.yaml";
/// `CAP_DAC_READ_SEARCH`, `CAP_SYS_PTRACE`, `CAP_SYSLOG`, `CAP_PERFMON`, `CAP_BPF`, `CAP_CHECKPOINT_RESTORE`.
const CAPABILITIES: &str = "000001c400080004";

/// Asks `kubectl` how many pods of the DaemonSet are ready.
const READY: [&str; 7] = [
    "-n",
    NAME,
    "get",
    "ds",
    NAME,
    "-o",
    "jsonpath=ready:{.status.numberReady}",
];
/// What the daemon logs, with `log.level: debug`, when a watch cannot go on.
const WATCH_EXPIRED: &str = "the version of the watch has expired";

/// Starts a cluster and runs all checks in it.
pub(crate) fn check() -> Result<Vec<Outcome>> {
    setup::ensure(&[Group::Build, Group::Image, Group::Deploy, Group::Kube])?;
    let (binary, image) = dist::quick_image()?;
    let node = Node::start(&[&pause()?, &image])?;
    let mut outcomes = installed(&node, &binary);
    outcomes.push(named("plain manifests", || plain_manifests(&node)));
    outcomes.push(named("an expired token is survived", || {
        token::is_replaced(&node, &binary)
    }));
    Ok(outcomes)
}

/// What is checked while the chart is installed, and its end.
fn installed(node: &Node, binary: &Path) -> Vec<Outcome> {
    let mut oap = None;
    let mut outcomes = vec![
        named(
            "a namespace of level baseline refuses, and says why",
            || is_refused_by_baseline(node),
        ),
        named(
            "helm install: the pod runs and is not ready without an OAP",
            || {
                install(node)?;
                node.wait_for(&["-n", NAME, "logs", "ds/profilerd"], OAP)?;
                node.wait_for(&READY, "ready:0")
            },
        ),
        named("the pod is ready when there is an OAP", || {
            oap = Some(start_oap(node, binary)?);
            is_ready(node)
        }),
        named("the container has six capabilities and no more", || {
            confined()
        }),
        named("the service account may read pods and no secrets", || {
            rights(node)
        }),
        named("a service of the host is profiled", || {
            profiles_the_host(node)
        }),
        named("a service of a Deployment has its workload's name", || {
            deploy_shop(node)?;
            let ps = ["-n", NAME, "exec", "ds/profilerd", "--", "profilerd", "ps"];
            node.wait_for(&ps, SHOP)
        }),
        named("a service of a Deployment is profiled", || {
            let service = ["--service", SHOP];
            let tree = record(node, &service)?;
            names_the_function(&tree)
        }),
        named("a task of the OAP profiles it", || run_task(node, binary)),
        named(
            "a watch whose version has expired (410) is begun anew",
            || survives_an_expired_watch(node),
        ),
        named(
            "pods that come are followed after a restart of the API server",
            || {
                node.restart_api()?;
                node.kubectl(&["-n", "prod", "delete", "pod", "-l", "app=shop"])?;
                is_rolled_out(node, "prod", "deploy/shop")?;
                run_task(node, binary)
            },
        ),
        named("a missing capability is waited for, and named", || {
            waits_for_a_capability(node)
        }),
        named("helm upgrade: the pod is replaced and ready", || {
            helm(
                "upgrade",
                node,
                &["--set", "config.limits.max_cpu_percent=5"],
            )?;
            is_ready(node)
        }),
    ];
    drop(oap);
    outcomes.push(named("an OAP that goes away costs no restart", || {
        node.wait_for(&READY, "ready:0")?;
        was_not_restarted(node)
    }));
    outcomes.push(named("helm uninstall leaves nothing", || {
        node.helm(&["uninstall", NAME, "-n", NAME, "--wait"])?;
        is_gone(node)
    }));
    outcomes
}

/// An image that keeps a pod; those of Kubernetes cannot be had everywhere.
fn pause() -> Result<PathBuf> {
    let folder = target_dir().join("tmp");
    fs::create_dir_all(&folder)?;
    let program = folder.join("pause");
    let source = workspace_root().join("xtask/src/deploy/kube/pause.c");
    run(Command::new("cc")
        .args(["-static", "-O1", "-Wall", "-o"])
        .args([&program, &source]))?;
    let archive = folder.join("pause.tar");
    dist::build_single(&program, "localhost/pause:1", &archive)?;
    Ok(archive)
}

/// An OAP in the node's network; services that it finds itself have other names than those of the pods.
fn start_oap(node: &Node, binary: &Path) -> Result<ChildGuard> {
    let log = fs::File::create(target_dir().join("kube/oap.log"))?;
    let mut oap = node.command(binary)?;
    oap.args([
        "standalone",
        "--listen",
        OAP,
        "--http-listen",
        "off",
        "--no-token",
    ])
    .args(["--data-dir", ":memory:"])
    .env("PROFILERD_STATE_DIR", "none")
    .stdin(Stdio::null())
    .stdout(log.try_clone()?)
    .stderr(log);
    ChildGuard::spawn("the OAP", &mut oap)
}

fn helm(verb: &str, node: &Node, options: &[&str]) -> Result<()> {
    let backends = format!("oap.backends={{{OAP}}}");
    let chart = chart();
    let chart = chart.to_str().context("a path is UTF-8")?;
    let mut arguments = vec![verb, NAME, chart, "--namespace", NAME];
    arguments.extend(["--set", "image.repository=localhost/profilerd"]);
    arguments.extend(["--set", "image.pullPolicy=Never", "--set", &backends]);
    arguments.extend(["--set", "config.log.level=debug"]);
    arguments.extend(options);
    node.helm(&arguments)
}

fn install(node: &Node) -> Result<()> {
    helm("install", node, &["--create-namespace"])?;
    is_running(node)
}

fn is_ready(node: &Node) -> Result<()> {
    is_rolled_out(node, NAME, "ds/profilerd")
}

fn is_rolled_out(node: &Node, namespace: &str, workload: &str) -> Result<()> {
    let status = ["-n", namespace, "rollout", "status", workload];
    node.kubectl(&[&status[..], &["--timeout=120s"]].concat())
        .map(drop)
}

fn is_running(node: &Node) -> Result<()> {
    let phase = "jsonpath={.items[*].status.phase}";
    node.wait_for(&["-n", NAME, "get", "pods", "-o", phase], "Running")
}

fn is_refused_by_baseline(node: &Node) -> Result<()> {
    let level = "pod-security.kubernetes.io/enforce=baseline";
    node.kubectl(&["create", "namespace", "guarded"])?;
    node.kubectl(&["label", "namespace", "guarded", level])?;
    let chart = chart();
    let chart = chart.to_str().context("a path is UTF-8")?;
    node.helm(&["install", "guarded", chart, "--namespace", "guarded"])?;
    let events = [
        "-n",
        "guarded",
        "get",
        "events",
        "-o",
        "jsonpath={.items[*].message}",
    ];
    node.wait_for(&events, "violates PodSecurity \"baseline:latest\"")?;
    node.helm(&["uninstall", "guarded", "--namespace", "guarded", "--wait"])
}

/// What the kernel says of the daemon in its container.
fn confined() -> Result<()> {
    let pid = daemon_pid().context("the daemon does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    for (name, expected) in [
        ("CapBnd:", CAPABILITIES),
        ("CapEff:", CAPABILITIES),
        ("NoNewPrivs:", "1"),
        // A filter.
        ("Seccomp:", "2"),
    ] {
        ensure!(value(name) == expected, "{name} {}", value(name));
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let root = mounts.lines().find(|line| line.contains(" / / "));
    ensure!(
        root.is_some_and(|line| line.contains(" / / ro,")),
        "the root file system can be written: {root:?}"
    );
    step(&format!(
        "memory of the daemon in its pod: {}",
        value("VmRSS:")
    ));
    Ok(())
}

fn daemon_pid() -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        line.replace('\0', " ").contains(DAEMON).then_some(pid)
    })
}

/// What the API server answers to the token of the service account.
fn rights(node: &Node) -> Result<()> {
    let token = node.kubectl(&["create", "token", NAME, "-n", NAME])?;
    for (arguments, expected) in [
        (["get", "pods", "-A"], true),
        (["get", "secrets", "-A"], false),
        (["get", "configmaps", "-A"], false),
        (["get", "nodes", "-A"], false),
        (["delete", "pods", "nobodys"], false),
    ] {
        let question = [&["--token", token.trim()][..], &arguments].concat();
        let output = node.kubectl_output(&question)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let is_forbidden = said.contains("Forbidden");
        ensure!(
            output.status.success() == expected && is_forbidden != expected,
            "{}: {said}",
            arguments.join(" ")
        );
    }
    Ok(())
}

/// Without a capability the pod waits, says what is missing, and is not started again and again.
fn waits_for_a_capability(node: &Node) -> Result<()> {
    let fewer = "capabilities={PERFMON,SYS_PTRACE,DAC_READ_SEARCH,SYSLOG,CHECKPOINT_RESTORE}";
    helm("upgrade", node, &["--set", fewer])?;
    node.wait_for(
        &["-n", NAME, "logs", "ds/profilerd"],
        "missing capability CAP_BPF",
    )?;
    node.wait_for(&READY, "ready:0")?;
    was_not_restarted(node)
}

fn was_not_restarted(node: &Node) -> Result<()> {
    let path = "jsonpath=restarts:{.items[*].status.containerStatuses[*].restartCount}";
    let restarts = node.kubectl(&["-n", NAME, "get", "pods", "-o", path])?;
    ensure!(restarts == "restarts:0", "{restarts}");
    Ok(())
}

/// A watch that goes on from a version that the API server has forgotten is answered with 410.
fn survives_an_expired_watch(node: &Node) -> Result<()> {
    let pid = daemon_pid().context("the daemon does not run")?.to_string();
    let signal = |name: &str| run(Command::new("kill").args([name, &pid]));
    // Stopped, it sees the end of its watch when the API server is back, and asks to go on.
    signal("-STOP")?;
    let restarted = node
        .kubectl(&[
            "-n",
            "prod",
            "label",
            "pods",
            "--all",
            "seen=once",
            "--overwrite",
        ])
        .and_then(|_| node.restart_api());
    signal("-CONT")?;
    restarted?;
    node.wait_for(&["-n", NAME, "logs", "ds/profilerd"], WATCH_EXPIRED)?;
    is_ready(node)
}

fn profiles_the_host(node: &Node) -> Result<()> {
    let service = SampleService::start(Path::new("/usr/bin/python3"), "host-shop", None)?;
    let traffic = Traffic::start(service.address());
    let tree = record(node, &["--pid", &service.id().to_string()])?;
    drop(traffic);
    names_the_function(&tree)
}

fn deploy_shop(node: &Node) -> Result<()> {
    let services = workspace_root().join("tests/services");
    let text = fs::read_to_string(workspace_root().join("xtask/src/deploy/kube/workload.yaml"))?;
    let path = target_dir().join("tmp/workload.yaml");
    fs::write(
        &path,
        text.replace("SERVICES", &services.display().to_string()),
    )?;
    let path = path.to_str().context("a path is UTF-8")?;
    node.kubectl(&["apply", "--server-side", "--validate=strict", "-f", path])?;
    is_rolled_out(node, "prod", "deploy/shop")
}

/// `profilerd record` in the pod of the daemon.
fn record(node: &Node, target: &[&str]) -> Result<String> {
    let mut arguments = vec![
        "-n",
        NAME,
        "exec",
        "ds/profilerd",
        "--",
        "profilerd",
        "record",
    ];
    arguments.extend(["--endpoint", POST, "--duration", "15s"]);
    arguments.extend(target);
    node.kubectl(&arguments)
}

fn names_the_function(tree: &str) -> Result<()> {
    ensure!(
        tree.contains("do_POST") && tree.contains("time.sleep"),
        "the tree does not show what the service does:\n{tree}"
    );
    Ok(())
}

/// A task for the service of the Deployment, from its creation to its result.
fn run_task(node: &Node, binary: &Path) -> Result<()> {
    let task = |arguments: &[&str]| -> Result<String> {
        let mut task = node.command(binary)?;
        let output = task
            .arg("task")
            .args(arguments)
            .args(["--oap", OAP])
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let of_shop = [
        "--service",
        SHOP,
        "--endpoint",
        POST,
        "--duration",
        "1m",
        "--wait",
    ];
    task(&[&["create"][..], &of_shop].concat())?;
    names_the_function(&task(&["result", "--format", "tree"])?)
}

fn is_gone(node: &Node) -> Result<()> {
    // Helm does not wait for the pod of a DaemonSet, which delivers its results first.
    for kind in ["ds,pods,cm,sa", "clusterroles,clusterrolebindings"] {
        let question = ["-n", NAME, "get", kind, "-o", "name"];
        node.wait_until(tool("kube", "kubectl"), &question, |left| {
            !left.contains("/profilerd")
        })?;
    }
    ensure!(daemon_pid().is_none(), "the daemon still runs");
    Ok(())
}

/// Applied strictly, they run; their OAP is not there. Deleted, they are gone.
fn plain_manifests(node: &Node) -> Result<()> {
    let folder = workspace_root().join("deploy/kubernetes");
    let folder = folder.to_str().context("a path is UTF-8")?;
    node.kubectl(&["apply", "--server-side", "--validate=strict", "-k", folder])?;
    let kinds = ["-n", NAME, "get", "ds,cm,sa", "-o", "name"];
    node.wait_for(&kinds, "daemonset.apps/profilerd")?;
    let image = format!("{NAME}={}", dist::reference());
    node.kubectl(&["-n", NAME, "set", "image", "ds/profilerd", &image])?;
    is_running(node)?;
    node.kubectl(&["delete", "-k", folder, "--wait=true", "--timeout=120s"])?;
    ensure!(daemon_pid().is_none(), "the daemon still runs");
    Ok(())
}
