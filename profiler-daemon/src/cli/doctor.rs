//! `profilerd doctor`: what works here, and what to do about the rest.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::doctor::{self, Finding};
use crate::model::plain::clean_lines;

#[derive(Args, Debug)]
#[command(after_help = "\
The BPF programs are loaded and attached for an instant; they see nothing.
Exit codes: 0 everything that is needed works, 1 something that is needed does not.")]
pub(super) struct DoctorArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let findings = doctor::examine();
    let text = if args.json {
        super::pretty_json(&findings)?
    } else {
        findings.iter().map(line).collect::<String>() + verdict(&findings)
    };
    super::print(&clean_lines(&text))?;
    Ok(match findings.iter().any(is_fatal) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn is_fatal(finding: &Finding) -> bool {
    finding.needed && !finding.ok
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
    if findings.iter().any(is_fatal) {
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
