//! The command line.

pub mod analyze;
pub mod task;
mod task_text;
