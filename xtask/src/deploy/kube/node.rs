//! A cluster of one node on this machine, by `node.sh`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use profiler_test_support::{target_dir, workspace_root};

use crate::command::{run, run_quietly, step};
use crate::setup::{kube_folder, tool};

/// Longest wait for anything in the cluster.
const DEADLINE: Duration = Duration::from_secs(180);

/// A look takes some tenths of a second of processor time.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A running cluster; it ends, with all its pods, when dropped.
#[derive(Debug)]
pub(super) struct Node {
    folder: PathBuf,
}

impl Node {
    /// Starts it, and loads images from archives.
    pub(super) fn start(images: &[&Path]) -> Result<Self> {
        let folder = target_dir().join("kube");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let node = Self { folder };
        step("start a cluster");
        run(&mut node.script(["up"]))?;
        run(node.script(["load"]).args(images))?;
        Ok(node)
    }

    /// Restarts the API server; its history begins anew.
    pub(super) fn restart_api(&self) -> Result<()> {
        run(&mut self.script(["restart"]))
    }

    /// A program in the node's namespaces, with the credentials of an administrator.
    pub(super) fn command(&self, program: &Path) -> Result<Command> {
        let pid = fs::read_to_string(self.folder.join("ns.pid"))?;
        let mut command = Command::new("nsenter");
        command
            .args(["--target", pid.trim(), "--mount", "--net", "--wd=.", "--"])
            .arg(program)
            .env("KUBECONFIG", self.folder.join("admin.kubeconfig"));
        Ok(command)
    }

    /// What `kubectl` prints, and how it ends.
    pub(super) fn kubectl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut kubectl = self.command(&tool("kube", "kubectl"))?;
        let output = kubectl.args(arguments).output();
        output.context("failed to start kubectl")
    }

    /// What `kubectl` prints if it succeeds.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_output(arguments)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "kubectl {}: {said}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// Runs Helm.
    pub(super) fn helm(&self, arguments: &[&str]) -> Result<()> {
        run_quietly(self.command(&tool("helm", "helm"))?.args(arguments))
    }

    /// Waits until `kubectl` succeeds and prints this.
    pub(super) fn wait_for(&self, arguments: &[&str], text: &str) -> Result<()> {
        let kubectl = tool("kube", "kubectl");
        self.wait_until(kubectl, arguments, |said| said.contains(text))
            .with_context(|| format!("{text:?} was not said"))
    }

    /// Waits until a program succeeds and prints what is wanted.
    pub(super) fn wait_until(
        &self,
        program: impl AsRef<Path>,
        arguments: &[&str],
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            let output = self.command(program.as_ref())?.args(arguments).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            if output.status.success() && is_wanted(&said) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{}: {said}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
            sleep(POLL_INTERVAL);
        }
    }

    fn script<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new("bash");
        command
            .arg(workspace_root().join("xtask/src/deploy/kube/node.sh"))
            .args(arguments.map(OsStr::new))
            .env("DIR", &self.folder)
            .env("BIN", kube_folder());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.script(["down"])) {
            step(&format!("the cluster did not end: {error:#}"));
        }
    }
}
