//! `profilerd completions`: what a shell has to read so that it completes commands.
//!
//! In:  the name of a shell
//! Out: the shell's code, which asks `profilerd` for candidates, services and endpoints among them

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::env::Shells;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  source <(profilerd completions bash)
  profilerd completions zsh > /usr/share/zsh/site-functions/_profilerd
  profilerd completions fish > /usr/share/fish/vendor_completions.d/profilerd.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_parser = ["bash", "zsh", "fish", "elvish", "powershell"])]
    shell: String,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    let shells = Shells::builtins();
    let shell = shells
        .completer(&args.shell)
        .context("this shell is unknown")?;
    let mut code = Vec::new();
    // As `COMPLETE=SHELL profilerd` prints it, for any profilerd that is found on the path.
    shell.write_registration("COMPLETE", "profilerd", "profilerd", "profilerd", &mut code)?;
    super::print(&String::from_utf8(code)?)?;
    Ok(ExitCode::SUCCESS)
}
