//! The test binaries that run in the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::arch::Arch;
use crate::command::{cargo, output, step};
use crate::setup::CrossTarget;

/// The targets of the crate `tests` that make sense on a foreign kernel, and which of their tests. Of those
/// of the daemon the one that goes the whole way: the others are about the daemon, not about the kernel.
const TARGETS: &[(&str, Option<&str>)] = &[
    ("machine", None),
    ("kernel_load", None),
    ("daemon", Some("spine::")),
];

/// Stands for the daemon's unit tests.
const UNIT: &str = "unit";
/// Those of them that are about what differs by architecture. The others have run on this machine.
const UNIT_FILTER: &str = "unwind::native::";

/// A test binary and its arguments.
#[derive(Debug)]
pub(super) struct TestRun {
    pub(super) test: String,
    pub(super) binary: PathBuf,
    pub(super) args: Vec<String>,
}

/// Builds the test targets `names`, or all that make sense; `filter` instead of their own.
pub(super) fn build(
    arch: Arch,
    target: Option<&CrossTarget>,
    names: &[String],
    filter: Option<&str>,
) -> Result<Vec<TestRun>> {
    let wanted = wanted(arch, names);
    let list: Vec<&str> = wanted.iter().map(|&(name, _)| name).collect();
    step(&format!("build the tests {}", list.join(", ")));
    let mut options = Vec::new();
    for name in list.iter().filter(|name| **name != UNIT) {
        options.extend(["--test", name]);
    }
    let mut binaries = BTreeMap::new();
    if !options.is_empty() {
        binaries = build_package("profiler-tests", &options, target)?;
    }
    if list.contains(&UNIT) {
        let built = build_package("profiler-daemon", &["--lib"], target)?;
        binaries.extend(built.into_values().map(|binary| (UNIT.to_owned(), binary)));
    }
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
fn wanted(arch: Arch, names: &[String]) -> Vec<(&str, Option<&'static str>)> {
    let mut known = TARGETS.to_vec();
    if arch != Arch::X86_64 {
        known.push((UNIT, Some(UNIT_FILTER)));
    }
    if names.is_empty() {
        return known;
    }
    let filter = |name: &str| known.iter().find(|(known, _)| *known == name)?.1;
    let names = names.iter().map(String::as_str);
    names.map(|name| (name, filter(name))).collect()
}

/// Builds test targets of a package; yields the binaries by name.
fn build_package(
    package: &str,
    options: &[&str],
    target: Option<&CrossTarget>,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut build = cargo();
    build.args(["test", "-p", package, "--locked", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics");
    build.args(options);
    if let Some(target) = target {
        target.configure(&mut build);
    }
    let messages = output(&mut build)?;
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

    /// Check that unit tests run only where the machine is another architecture's, and that a target keeps
    /// its filter when it is asked for by name.
    #[test]
    fn targets_have_their_filters() {
        let names = |arch| wanted(arch, &[]).into_iter().map(|(name, _)| name);
        assert!(!names(Arch::X86_64).any(|name| name == UNIT));
        assert!(names(Arch::Aarch64).any(|name| name == UNIT));
        let asked = ["daemon".to_owned(), "privilege".to_owned()];
        let expected = vec![("daemon", Some("spine::")), ("privilege", None)];
        assert_eq!(wanted(Arch::X86_64, &asked), expected);
    }
}
