//! The servers under load, and the two kinds of load: wrk for servers that respond in microseconds, clients
//! of our own where each latency counts.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use profiler_test_support::{ChildGuard, HttpClient, LocalServer, target_dir, workspace_root};

use super::statistics::percentile;
use crate::command::{output, run};

/// What a load saw.
#[derive(Clone, Debug)]
pub(super) struct Load {
    /// Answers per second.
    pub(super) rate: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Answers.
    pub(super) requests: u64,
}

/// Who asks, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// Clients go on for so long.
    Elapsed(Duration),
    /// Each client asks so often.
    Requests(u32),
}

/// Compiles a program of `tests/bench`; yields its path.
pub(super) fn compile(name: &str) -> Result<PathBuf> {
    let folder = target_dir().join("bench");
    fs::create_dir_all(&folder)?;
    let binary = folder.join(name);
    let source = workspace_root().join(format!("tests/bench/{name}.c"));
    run(Command::new("cc")
        .args(["-O2", "-Wall", "-pthread", "-o"])
        .args([&binary, &source]))?;
    Ok(binary)
}

/// Starts a program that says `ready` and then stays.
pub(super) fn start_ready(name: &str, command: &mut Command) -> Result<ChildGuard> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = ChildGuard::spawn(name, command)?;
    let stdout = child.process().stdout.take().context("no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "{name} does not get ready");
    Ok(child)
}

/// What a server does with each request before it answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How often it sleeps.
    pub(super) naps: u32,
    /// For how long.
    pub(super) nap: Duration,
    /// How long it computes after each of them.
    pub(super) spin: Duration,
}

/// Compiles and starts `tests/bench/hot_server.c`.
pub(super) fn hot_server(service_name: &str) -> Result<LocalServer> {
    start_hot_server(&compile("hot_server")?, service_name, &[])
}

/// The same for several services, where a request takes time.
pub(super) fn paced_servers(service_names: &[String], pace: Pace) -> Result<Vec<LocalServer>> {
    let program = compile("hot_server")?;
    let us = |time: Duration| time.as_micros().to_string();
    let options = [pace.naps.to_string(), us(pace.nap), us(pace.spin)];
    let start = |name: &String| start_hot_server(&program, name, &options);
    service_names.iter().map(start).collect()
}

/// The same for one service.
pub(super) fn paced_server(service_name: &str, pace: Pace) -> Result<LocalServer> {
    let mut servers = paced_servers(&[service_name.to_owned()], pace)?;
    Ok(servers.remove(0))
}

fn start_hot_server(program: &Path, service_name: &str, options: &[String]) -> Result<LocalServer> {
    let mut command = Command::new(program);
    command.args(options).env("SW_AGENT_NAME", service_name);
    LocalServer::start("the hot server", &mut command)
}

/// Keep-alive connections that are busy all the time, by wrk.
pub(super) fn hot_load(
    server: SocketAddr,
    target: &str,
    connections: u32,
    duration: Duration,
) -> Result<Load> {
    let text = output(
        Command::new("wrk")
            .args(["--threads", "1", "--latency"])
            .args(["--connections", &connections.to_string()])
            .args(["--duration", &format!("{}s", duration.as_secs())])
            .arg(format!("http://{server}{target}")),
    )?;
    parse_wrk(&text)
}

/// wrk's report; an error in any answer makes its numbers worthless.
fn parse_wrk(report: &str) -> Result<Load> {
    let (mut rate, mut p50_ms, mut p99_ms, mut requests) = (None, None, None, None);
    for line in report.lines().map(str::trim) {
        if line.starts_with("Socket errors:") || line.starts_with("Non-2xx") {
            bail!("wrk: {line}");
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Requests/sec:"), Some(number)) => rate = number.parse().ok(),
            (Some("50%"), Some(time)) => p50_ms = parse_ms(time),
            (Some("99%"), Some(time)) => p99_ms = parse_ms(time),
            (Some(number), Some("requests")) => requests = number.parse().ok(),
            _ => {}
        }
    }
    match (rate, p50_ms, p99_ms, requests) {
        (Some(rate), Some(p50_ms), Some(p99_ms), Some(requests)) => Ok(Load {
            rate,
            p50_ms,
            p99_ms,
            requests,
        }),
        _ => bail!("wrk printed no rate or latencies: {report:?}"),
    }
}

/// wrk's times: `95.00us`, `1.20ms`, `1.05s`.
fn parse_ms(text: &str) -> Option<f64> {
    let (number, factor) = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)]
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

/// `clients` clients, each on one connection and with its next request after an answer.
pub(super) fn load(
    server: SocketAddr,
    method: &str,
    target: &str,
    clients: u32,
    until: Until,
) -> Result<Load> {
    let start = Instant::now();
    let latencies_ms: Result<Vec<Vec<f64>>> = thread::scope(|scope| {
        let client = || latencies_ms(server, method, target, until);
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client does not panic"))
            .collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let latencies_ms = latencies_ms?.concat();
    Ok(Load {
        rate: latencies_ms.len() as f64 / seconds,
        p50_ms: percentile(&latencies_ms, 50.0),
        p99_ms: percentile(&latencies_ms, 99.0),
        requests: latencies_ms.len() as u64,
    })
}

/// Latencies of one client, in milliseconds.
pub(super) fn latencies_ms(
    server: SocketAddr,
    method: &str,
    target: &str,
    until: Until,
) -> Result<Vec<f64>> {
    let mut client = HttpClient::connect(server, Duration::from_secs(30))?;
    let start = Instant::now();
    let mut latencies_ms = Vec::new();
    loop {
        let goes_on = match until {
            Until::Elapsed(duration) => start.elapsed() < duration,
            Until::Requests(count) => latencies_ms.len() < count as usize,
        };
        if !goes_on {
            return Ok(latencies_ms);
        }
        let answer = client.request(method, target, "")?;
        ensure!(answer.status == 200, "{method} {target}: {}", answer.status);
        latencies_ms.push(answer.elapsed.as_secs_f64() * 1000.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
  1 threads and 8 connections
  Latency Distribution
     50%   95.00us
     75%  118.00us
     90%  150.00us
     99%    1.20ms
  182476 requests in 3.00s, 11.66MB read
Requests/sec:  60820.79
";

    /// Check that rate and latencies are taken from wrk's report, and refused when answers were errors.
    #[test]
    fn wrk_is_read_and_errors_are_refused() {
        let load = parse_wrk(REPORT).unwrap();
        assert_eq!(load.requests, 182_476);
        let read = [load.rate, load.p50_ms, load.p99_ms];
        let shown = read.map(|number| format!("{number:.3}"));
        assert_eq!(shown, ["60820.790", "0.095", "1.200"]);
        let bad = format!("  Non-2xx or 3xx responses: 7\n{REPORT}");
        parse_wrk(&bad).unwrap_err();
    }
}
