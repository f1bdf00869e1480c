//! The `profilerd` binary: parse, start, exit.

fn main() {}
