//! `profilerd man`: the help of all commands as man pages.
//!
//! In:  a folder
//! Out: `profilerd.1`, and a page for each command, such as `profilerd-task-create.1`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  profilerd man /usr/local/share/man/man1 && man profilerd-record")]
pub(super) struct ManArgs {
    /// The folder they are written to; it is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> Result<ExitCode> {
    let folder = &args.folder;
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(super::Cli::command(), folder))
        .with_context(|| format!("failed to write man pages to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names of the pages of a command and those below it. The help of clap has none.
    fn pages(command: &clap::Command, name: &str, found: &mut BTreeSet<String>) {
        found.insert(format!("{name}.1"));
        let below = command.get_subcommands();
        for command in below.filter(|command| command.get_name() != "help") {
            pages(command, &format!("{name}-{}", command.get_name()), found);
        }
    }

    /// Check that every command has its page, with its options and without anything that differs from build to build.
    #[test]
    fn every_command_has_a_man_page() {
        let folder = tempfile::tempdir().unwrap();
        let args = ManArgs {
            folder: folder.path().join("man1"),
        };
        run(&args).unwrap();
        let mut expected = BTreeSet::new();
        pages(&super::super::Cli::command(), "profilerd", &mut expected);
        let text = |page: &str| fs::read_to_string(args.folder.join(page)).unwrap();
        for page in &expected {
            assert!(text(page).contains(".SH SYNOPSIS"), "{page}");
        }
        let written = fs::read_dir(&args.folder).unwrap();
        let written = written.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let written: BTreeSet<String> = written.filter(|page| !page.contains("help")).collect();
        assert_eq!(written, expected);
        assert!(expected.contains("profilerd-task-create.1"), "{expected:?}");
        assert!(text("profilerd-daemon.1").contains("\\-\\-backend"));
    }
}
