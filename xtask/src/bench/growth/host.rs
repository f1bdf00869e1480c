//! A daemon without a task on hosts of different sizes.
//!
//! Two things cost time at rest: a regular check of each process, and for each service a heartbeat and a
//! query for tasks. So one host differs from the first only in its processes, and the next from that one only
//! in its services. The OAP is the daemon's own, so that its half of each call is in the figures as well.

use std::process::Command;

use anyhow::Result;

use crate::bench::cost::Rest;
use crate::bench::load::{compile, start_ready};
use crate::bench::side::Tools;
use crate::bench::table::{Goal, Table};
use crate::command::step;

/// Processes, services among them, and the most CPU a daemon may take there, in percent of a core:
/// - 0.0 to one decimal place;
/// - every five seconds a list of all processes, and 30 us each for a sixth of them;
/// - besides, a second, 40 questions and 33 heartbeats, each of them also answered by this daemon.
const HOSTS: &[(u32, u32, f64)] = &[(10, 10, 0.05), (2000, 10, 0.3), (2000, 1000, 2.0)];

/// Adds the figures of each host, and what the largest takes more than the smallest.
pub(super) fn measure(tools: &Tools, table: &mut Table) -> Result<()> {
    let program = compile("crowd")?;
    let mut first = None;
    for &(processes, services, cpu_percent_max) in HOSTS {
        let host = format!("{processes} processes, {services} of them services");
        step(&format!("growth: a daemon at rest beside {host}"));
        let mut command = Command::new(&program);
        command.args([processes, services].map(|number| number.to_string()));
        let _crowd = start_ready("the crowd", &mut command)?;
        let rest = Rest::watch(&tools.daemon()?)?;
        let first = *first.get_or_insert(rest);

        let name = format!("at rest, {host}: CPU");
        let goal = Goal::AtMost(cpu_percent_max);
        table.add(name, rest.cpu_percent, "%", goal);
        let name = format!("at rest, {host}: resident memory");
        table.add(name, rest.rss_mb, "MB", Goal::AtMost(25.0));
        let name = format!("at rest, {host}: loaded programs");
        table.add(name, rest.programs as f64, "", Goal::AtMost(0.0));
        // Processes are read one after the other, and all services share one connection.
        let name = format!("at rest, {host}: descriptors more than beside the fewest");
        let more = rest.open_fds as f64 - first.open_fds as f64;
        table.add(name, more, "", Goal::AtMost(0.0));
    }
    Ok(())
}
