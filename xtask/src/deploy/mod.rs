//! Checks of what profilerd is installed with: chart and manifests, image, systemd unit, packages.
//!
//! In:  `deploy/`, an image and a binary built for the occasion
//! Out: one result for each check, by name

mod chart;
mod container;
mod kube;
mod packages;
mod refusals;
mod unit;

use std::process::ExitCode;

use anyhow::Result;

pub(crate) use kube::check as check_kube;
pub(crate) use packages::check as check_packages;

use crate::command::step;
use crate::dist;
use crate::setup::{self, Group};

/// Runs `manifests`.
pub(crate) fn write_manifests() -> Result<ExitCode> {
    setup::ensure(&[Group::Deploy])?;
    chart::write_manifests()?;
    Ok(ExitCode::SUCCESS)
}

/// A check, and why it failed.
pub(crate) type Outcome = (String, Result<()>);

/// What fits into every run of continuous integration: no cluster, no booted systemd.
pub(crate) fn check() -> Result<Vec<Outcome>> {
    setup::ensure(&[Group::Deploy])?;
    let mut outcomes = chart::check();
    outcomes.extend(refusals::check());
    let (binary, image) = dist::quick_image()?;
    outcomes.push(named("profilerd accepts its configuration", || {
        chart::check_configuration(&binary)
    }));
    outcomes.push(named("systemd unit", || unit::check(&binary)));
    outcomes.extend(container::check(&image));
    Ok(outcomes)
}

/// Runs one check.
fn named(name: &str, check: impl FnOnce() -> Result<()>) -> Outcome {
    step(&format!("deploy: {name}"));
    (name.to_owned(), check())
}
