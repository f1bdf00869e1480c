//! The test binaries that run in the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, output, step};
use crate::setup::CrossTarget;

/// The targets of the crate `tests` that make sense on a foreign kernel, and which of their tests. Of those
/// of the daemon the one that goes the whole way: the others are about the daemon, not about the kernel.
const TARGETS: &[(&str, Option<&str>)] = &[
    ("machine", None),
    ("kernel_load", None),
    ("daemon", Some("spine::")),
];

/// A test binary and its arguments.
#[derive(Debug)]
pub(super) struct TestRun {
    pub(super) test: String,
    pub(super) binary: PathBuf,
    pub(super) args: Vec<String>,
}

/// Builds the test targets `names`, or all that make sense; `filter` instead of their own.
pub(super) fn build(
    target: Option<&CrossTarget>,
    names: &[String],
    filter: Option<&str>,
) -> Result<Vec<TestRun>> {
    let wanted = wanted(names);
    let list: Vec<&str> = wanted.iter().map(|&(name, _)| name).collect();
    step(&format!("build the tests {}", list.join(", ")));
    let mut binaries = build_targets(&list, target)?;
    let run = |(name, own_filter): (&str, Option<&str>)| {
        let binary = binaries.remove(name);
        let mut args = vec!["--test-threads=1".to_owned()];
        args.extend(filter.or(own_filter).map(str::to_owned));
        Ok(TestRun {
            test: name.to_owned(),
            binary: binary.with_context(|| format!("cargo built no test {name}"))?,
            args,
        })
    };
    wanted.into_iter().map(run).collect()
}

/// Each target with its filter.
fn wanted(names: &[String]) -> Vec<(&str, Option<&'static str>)> {
    if names.is_empty() {
        return TARGETS.to_vec();
    }
    let filter = |name: &str| TARGETS.iter().find(|(known, _)| *known == name)?.1;
    let names = names.iter().map(String::as_str);
    names.map(|name| (name, filter(name))).collect()
}

/// Builds targets of the crate `tests`; yields the binaries by name.
fn build_targets(
    names: &[&str],
    target: Option<&CrossTarget>,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut build = cargo();
    build.args(["test", "--workspace", "--locked", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics");
    for name in names {
        build.args(["--test", name]);
    }
    if let Some(target) = target {
        target.configure(&mut build);
    }
    executables(&mut build)
}

/// The program of the crate `tests` that records a stack.
pub(super) fn build_recorder(target: Option<&CrossTarget>) -> Result<PathBuf> {
    const NAME: &str = "record_stack";
    let mut build = cargo();
    build.args(["build", "--workspace", "--locked", "--bin", NAME]);
    build.arg("--message-format=json-render-diagnostics");
    if let Some(target) = target {
        target.configure(&mut build);
    }
    let built = executables(&mut build)?.remove(NAME);
    built.with_context(|| format!("cargo built no {NAME}"))
}

/// Runs a cargo command that prints JSON; yields what it built by name.
fn executables(build: &mut Command) -> Result<BTreeMap<String, PathBuf>> {
    let messages = output(build)?;
    let mut binaries = BTreeMap::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        let target = message["target"]["name"].as_str();
        if let (Some(target), Some(binary)) = (target, message["executable"].as_str()) {
            binaries.insert(target.to_owned(), PathBuf::from(binary));
        }
    }
    Ok(binaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that all targets run unless some are asked for, and that those keep their filters.
    #[test]
    fn targets_have_their_filters() {
        assert_eq!(wanted(&[]), TARGETS);
        let asked = ["daemon".to_owned(), "privilege".to_owned()];
        let expected = vec![("daemon", Some("spine::")), ("privilege", None)];
        assert_eq!(wanted(&asked), expected);
    }
}
