//! Developer commands: `cargo xtask setup|demo|test|ci|vm|golden|fuzz|bench|dist|manifests`.
//!
//! They speak on stderr and keep stdout for results. Nothing here depends on the daemon's crates:
//! `setup` must build on a machine that cannot build the daemon yet.

mod bench;
mod command;
mod daemon;
mod demo;
mod deploy;
mod dist;
mod fuzz;
mod golden;
mod report;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of profilerd")]
struct Args {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Debug, Subcommand)]
enum XtaskCommand {
    /// Finds or installs what building needs (and tests, and kernels in a virtual machine).
    Setup(setup::SetupArgs),
    /// Profiles a sample service and shows where the time of its requests went.
    Demo(demo::DemoArgs),
    /// Runs all tests, the privileged and end-to-end ones included, and prints one line of totals.
    Test(test::TestArgs),
    /// Runs what continuous integration runs: all tests, then the kernel tests on older kernels.
    Ci,
    /// Runs the kernel tests under another kernel, in qemu.
    Vm(vm::VmArgs),
    /// Records the stacks of `tests/golden`, of each CPython or of one.
    Golden(golden::GoldenArgs),
    /// Searches for bytes that a parser does not withstand.
    Fuzz(fuzz::FuzzArgs),
    /// Measures overhead, completeness and start-up against the goals.
    Bench(bench::BenchArgs),
    /// Builds everything that is released: archive, image, packages, SBOM, checksums.
    Dist(dist::DistArgs),
    /// Writes `deploy/kubernetes/profilerd.yaml` again, from the chart.
    Manifests,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        XtaskCommand::Setup(args) => setup::run(&args),
        XtaskCommand::Demo(args) => demo::run(&args),
        XtaskCommand::Test(args) => test::run(&args),
        XtaskCommand::Ci => test::run_ci(),
        XtaskCommand::Vm(args) => vm::run(&args),
        XtaskCommand::Golden(args) => golden::run(&args),
        XtaskCommand::Fuzz(args) => fuzz::run(&args),
        XtaskCommand::Bench(args) => bench::run(&args),
        XtaskCommand::Dist(args) => dist::run(&args),
        XtaskCommand::Manifests => deploy::write_manifests(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
