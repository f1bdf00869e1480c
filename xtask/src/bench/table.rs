//! The figures of a run beside their goals.

use std::fmt::Write;

use serde::Serialize;

use super::procfs::Program;

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

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) figures: Vec<Figure>,
    /// With `kernel.bpf_stats_enabled`, which itself costs each run two clock reads.
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
        let mut text = format!("Linux {}, {} CPUs\n\n", self.kernel, self.cpus);
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
            programs: Vec::new(),
        };
        table.add("throughput", 0.98, "", Goal::AtLeast(0.97));
        table.add("memory", 30.0, "MB", Goal::AtMost(25.0));
        let text = table.to_text();
        assert_eq!(text.matches("MISSED").count(), 1);
        assert!(text.lines().last().unwrap().ends_with("goal <= 25  MISSED"));
    }
}
