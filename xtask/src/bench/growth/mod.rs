//! How profilerd grows: with the host, with tasks, with threads and requests, with the depth of stacks, and
//! over time. What should stay flat has a goal as a difference or a ratio.

mod depth;
mod endurance;
mod host;
mod tasks;
mod threads;

use std::time::Duration;

use anyhow::Result;

use super::load::Pace;
use super::side::Tools;
use super::table::Table;

/// A request of about 20 ms that blocks and computes some.
const SHORT: Pace = Pace {
    naps: 4,
    nap: Duration::from_micros(4500),
    spin: Duration::from_micros(500),
};

/// Adds all figures.
pub(super) fn measure(tools: &Tools, duration: Duration, table: &mut Table) -> Result<()> {
    host::measure(tools, table)?;
    tasks::measure(tools, table)?;
    threads::measure(tools, duration, table)?;
    depth::measure(tools, table)?;
    endurance::measure(table)
}
