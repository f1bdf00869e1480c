//! stub
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {}
pub(crate) fn run(_: &BenchArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("no")
}
