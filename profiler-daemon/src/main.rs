//! The `profilerd` binary: parse, start, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    profiler_daemon::cli::main()
}
