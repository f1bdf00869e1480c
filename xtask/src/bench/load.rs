//! The servers that are loaded, and the two kinds of load.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use profiler_test_support::{HttpClient, LocalServer, target_dir, workspace_root};

use crate::command::{output, run};

/// Compiles and starts `tests/bench/hot_server.c`.
pub(super) fn hot_server(service_name: &str) -> Result<LocalServer> {
    let folder = target_dir().join("bench");
    fs::create_dir_all(&folder)?;
    let binary = folder.join("hot_server");
    run(Command::new("cc")
        .args(["-O2", "-Wall", "-pthread", "-o"])
        .args([&binary, &workspace_root().join("tests/bench/hot_server.c")]))?;
    let mut command = Command::new(&binary);
    command.env("SW_AGENT_NAME", service_name);
    LocalServer::start("the hot server", &mut command)
}

/// Requests per second under `connections` busy keep-alive connections.
pub(super) fn throughput(
    server: SocketAddr,
    target: &str,
    connections: u32,
    duration: Duration,
) -> Result<f64> {
    let text = output(
        Command::new("wrk")
            .args(["--threads", "1"])
            .args(["--connections", &connections.to_string()])
            .args(["--duration", &format!("{}s", duration.as_secs())])
            .arg(format!("http://{server}{target}")),
    )?;
    requests_per_second(&text)
}

/// The line of wrk's report; an error in any answer makes the number worthless.
fn requests_per_second(report: &str) -> Result<f64> {
    for line in report.lines().map(str::trim) {
        if line.starts_with("Socket errors:") || line.starts_with("Non-2xx") {
            bail!("wrk: {line}");
        }
        if let Some(number) = line.strip_prefix("Requests/sec:") {
            return number.trim().parse().context("wrk's requests per second");
        }
    }
    bail!("wrk printed no requests per second: {report:?}")
}

/// Latencies of `count` requests one after the other on one connection, in milliseconds.
pub(super) fn latencies_ms(
    server: SocketAddr,
    method: &str,
    target: &str,
    count: usize,
) -> Result<Vec<f64>> {
    let mut client = HttpClient::connect(server, Duration::from_secs(10))?;
    let mut latencies_ms = Vec::with_capacity(count);
    for _ in 0..count {
        let answer = client.request(method, target, "")?;
        ensure!(answer.status == 200, "{method} {target}: {}", answer.status);
        latencies_ms.push(answer.elapsed.as_secs_f64() * 1000.0);
    }
    Ok(latencies_ms)
}

/// The middle value; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.get(values.len() / 2)) {
        (length, Some(&upper)) if length % 2 == 0 => f64::midpoint(values[length / 2 - 1], upper),
        (_, Some(&middle)) => middle,
        (_, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the rate is taken from wrk's report, and refused when answers were errors.
    #[test]
    fn the_rate_is_read_and_errors_are_refused() {
        let report = "  182476 requests in 3.00s, 11.66MB read\nRequests/sec:  60820.79\n";
        assert!((requests_per_second(report).unwrap() - 60820.79).abs() < 1e-6);
        let bad = "  Non-2xx or 3xx responses: 7\nRequests/sec:  60820.79\n";
        assert!(requests_per_second(bad).is_err());
    }

    /// Check the median of odd, even and no values.
    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }
}
