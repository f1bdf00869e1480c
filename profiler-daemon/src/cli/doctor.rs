//! `profilerd doctor`: what works here, and what to do about the rest.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::doctor::{self, Finding};
use crate::model::plain::clean_lines;

#[derive(Args, Debug)]
#[command(after_help = "\
The BPF programs are loaded and attached for an instant; they see nothing.
docs/operations.md describes the JSON object.
Exit codes: 0 everything that is needed works, 1 something that is needed does not.")]
pub(super) struct DoctorArgs {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Scripts rely on it: docs/operations.md.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    works: bool,
    findings: &'a [Finding],
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let findings = doctor::examine();
    let text = if args.json {
        super::pretty_json(&Report {
            version: env!("CARGO_PKG_VERSION"),
            works: !findings.iter().any(Finding::is_missing),
            findings: &findings,
        })?
    } else {
        findings.iter().map(line).collect::<String>() + verdict(&findings)
    };
    super::print(&clean_lines(&text))?;
    Ok(match findings.iter().any(Finding::is_missing) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn line(finding: &Finding) -> String {
    let mark = match finding {
        Finding { ok: true, .. } => "ok  ",
        Finding { needed: true, .. } => "FAIL",
        _ => "warn",
    };
    let mut text = format!("{mark}  {}: {}\n", finding.name, finding.detail);
    if !finding.ok {
        text.push_str(&format!("      {}\n", finding.fix));
    }
    text
}

fn verdict(findings: &[Finding]) -> &'static str {
    if findings.iter().any(Finding::is_missing) {
        "profilerd cannot work here yet.\n"
    } else {
        "profilerd works here.\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that what is needed fails, that what is not only warns, and that a fix is shown.
    #[test]
    fn only_what_is_needed_fails() {
        let mut finding = Finding {
            name: "x",
            ok: false,
            needed: false,
            detail: "absent".to_owned(),
            fix: "install it".to_owned(),
        };
        assert_eq!(line(&finding), "warn  x: absent\n      install it\n");
        assert!(verdict(&[finding.clone()]).contains("works"));
        finding.needed = true;
        assert!(line(&finding).starts_with("FAIL"));
        assert!(verdict(&[finding]).contains("cannot work"));
    }
}
