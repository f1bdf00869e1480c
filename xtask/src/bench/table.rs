//! The figures of a run and their goals.

use std::fmt::Write;

use serde::Serialize;

use super::procfs::Program;
use super::statistics::Spread;

/// What a figure should be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
    /// For reading only.
    None,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) value: f64,
    /// Empty for a ratio or a count.
    pub(super) unit: &'static str,
    pub(super) goal: Goal,
    pub(super) met: bool,
}

/// One side of a [`Comparison`]. Ratios are to the bare measurement of the same repetition; the bare side has
/// none.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) side: &'static str,
    /// Answered in all repetitions.
    pub(super) requests: u64,
    /// Answers per second.
    pub(super) rate: Spread,
    pub(super) p50_ms: Spread,
    pub(super) p99_ms: Spread,
    pub(super) rate_ratio: Option<Spread>,
    pub(super) p50_ratio: Option<Spread>,
    pub(super) p99_ratio: Option<Spread>,
    /// CPU time of the server per request.
    pub(super) server_cpu_ratio: Option<Spread>,
    /// CPU time of the profiler's own process, of one core.
    pub(super) profiler_cpu_percent: Option<Spread>,
    pub(super) profiler_rss_mb: Option<Spread>,
}

/// One load, with each profiler.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) title: String,
    pub(super) repetitions: u32,
    pub(super) rows: Vec<Row>,
}

impl Comparison {
    fn write_to(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\n{}: median [least - most] of {} repetitions, as ratios to bare\n{:<31} {:>9} {:>21} {:>21} {:>21} {:>21} {:>9} {:>8}",
            self.title,
            self.repetitions,
            "",
            "requests",
            "throughput",
            "p50",
            "p99",
            "server CPU/request",
            "CPU %",
            "RSS MB"
        );
        for row in &self.rows {
            let ratio = |ratio: Option<Spread>, bare: String| {
                ratio.map_or(bare, |r| {
                    format!("{:.3} [{:.3} - {:.3}]", r.median, r.least, r.most)
                })
            };
            let own =
                |own: Option<Spread>| own.map_or(String::new(), |o| format!("{:.1}", o.median));
            let _ = writeln!(
                text,
                "{:<31} {:>9} {:>21} {:>21} {:>21} {:>21} {:>9} {:>8}",
                row.side,
                row.requests,
                ratio(row.rate_ratio, format!("{:.0} /s", row.rate.median)),
                ratio(row.p50_ratio, format!("{:.3} ms", row.p50_ms.median)),
                ratio(row.p99_ratio, format!("{:.3} ms", row.p99_ms.median)),
                ratio(row.server_cpu_ratio, String::new()),
                own(row.profiler_cpu_percent),
                own(row.profiler_rss_mb),
            );
        }
    }
}

/// What one tool said of one endpoint, beside what the service itself saw.
#[derive(Debug, Serialize)]
pub(super) struct Exactness {
    pub(super) tool: &'static str,
    /// How busy the CPUs were with something else.
    pub(super) load: &'static str,
    pub(super) case: &'static str,
    pub(super) requests: usize,
    /// Share of dump periods with a snapshot.
    pub(super) periods: Option<f64>,
    pub(super) jitter_p50_ms: Option<f64>,
    pub(super) jitter_p99_ms: Option<f64>,
    pub(super) error_median_ms: f64,
    pub(super) error_worst_ms: f64,
    /// The worst of a function that lasts longer than two dump periods.
    pub(super) error_long_ms: f64,
    pub(super) missed: usize,
    pub(super) wrong: Option<usize>,
}

impl Exactness {
    /// One line of the table.
    pub(super) fn to_line(&self) -> String {
        let periods = self.periods.map_or(String::new(), |p| format!("{p:.4}"));
        let jitter = match (self.jitter_p50_ms, self.jitter_p99_ms) {
            (Some(p50), Some(p99)) => format!("{p50:.0} / {p99:.0}"),
            _ => String::new(),
        };
        let wrong = self.wrong.map_or(String::new(), |count| count.to_string());
        format!(
            "{:<13} {:<10} {:<12} {:>8} {periods:>8} {jitter:>11} {:>7.1} {:>7.1} {:>7.1} {:>7} {wrong:>6}",
            self.case,
            self.load,
            self.tool,
            self.requests,
            self.error_median_ms,
            self.error_worst_ms,
            self.error_long_ms,
            self.missed,
        )
    }
}

fn write_exactness(rows: &[Exactness], text: &mut String) {
    let _ = writeln!(
        text,
        "\nexactness at 10 ms, beside the service's own times (errors of durations in ms; jitter of snapshots in ms)\n\
         {:<13} {:<10} {:<12} {:>8} {:>8} {:>11} {:>7} {:>7} {:>7} {:>7} {:>6}",
        "endpoint",
        "CPUs",
        "",
        "requests",
        "periods",
        "jitter",
        "median",
        "worst",
        ">20 ms",
        "missed",
        "wrong"
    );
    for row in rows {
        let _ = writeln!(text, "{}", row.to_line());
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) figures: Vec<Figure>,
    pub(super) comparisons: Vec<Comparison>,
    pub(super) exactness: Vec<Exactness>,
    /// While the kernel counts them ([`super::procfs::BpfStats`]), which costs each run two clock reads.
    pub(super) programs: Vec<Program>,
}

impl Table {
    /// Adds a figure.
    pub(super) fn add(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: Goal,
    ) {
        let met = match goal {
            Goal::AtLeast(least) => value >= least,
            Goal::AtMost(most) => value <= most,
            Goal::None => true,
        };
        self.figures.push(Figure {
            name: name.into(),
            value,
            unit,
            goal,
            met,
        });
    }

    /// For people.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("Linux {}, {} CPUs\n", self.kernel, self.cpus);
        for comparison in &self.comparisons {
            comparison.write_to(&mut text);
        }
        if !self.exactness.is_empty() {
            write_exactness(&self.exactness, &mut text);
        }
        text.push('\n');
        for figure in &self.figures {
            let goal = match figure.goal {
                Goal::AtLeast(least) => format!("goal >= {least}"),
                Goal::AtMost(most) => format!("goal <= {most}"),
                Goal::None => String::new(),
            };
            let verdict = if figure.met { "" } else { "  MISSED" };
            let value = format!("{:.3} {}", figure.value, figure.unit);
            let _ = writeln!(text, "{:<62} {value:>18}  {goal}{verdict}", figure.name);
        }
        if !self.programs.is_empty() {
            let _ = writeln!(
                text,
                "\n* while requests are profiled, others under load that matches nothing\n{:<18} {:>12} {:>10} {:>10}",
                "BPF program", "runs", "ns / run", "verified"
            );
        }
        for program in &self.programs {
            let ns = program.run_time_ns as f64 / program.runs.max(1) as f64;
            let _ = writeln!(
                text,
                "{:<18} {:>12} {ns:>10.0} {:>10}",
                program.name, program.runs, program.verified_instructions
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a figure on the wrong side of its goal stands out.
    #[test]
    fn a_missed_goal_stands_out() {
        let mut table = Table {
            kernel: "6.1".to_owned(),
            cpus: 2,
            figures: Vec::new(),
            comparisons: Vec::new(),
            exactness: Vec::new(),
            programs: Vec::new(),
        };
        table.add("throughput", 0.98, "", Goal::AtLeast(0.97));
        table.add("memory", 30.0, "MB", Goal::AtMost(25.0));
        let text = table.to_text();
        assert_eq!(text.matches("MISSED").count(), 1);
        assert!(text.lines().last().unwrap().ends_with("goal <= 25  MISSED"));
    }
}
