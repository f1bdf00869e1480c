//! How profilerd grows: with the host, with tasks, with threads and requests, with the depth of stacks, and
//! over time. What should stay flat has a goal as a difference or a ratio.

mod depth;
mod endurance;
mod host;
mod tasks;
mod threads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_test_support::LocalServer;

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

/// Meanwhile each of the servers is asked for one request after the other.
fn while_requests_come<T>(servers: &[LocalServer], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = AtomicBool::new(false);
    let ask = &|server: &LocalServer| -> Result<()> {
        let mut client = server.connect(Duration::from_secs(10))?;
        while !is_over.load(Ordering::Relaxed) {
            let answer = client.request("GET", "/hot", "")?;
            ensure!(answer.status == 200, "GET /hot: {}", answer.status);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let start = |server| scope.spawn(move || ask(server));
        let clients: Vec<_> = servers.iter().map(start).collect();
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        done
    })
}
