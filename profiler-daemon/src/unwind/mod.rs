//! (module in progress)

pub mod merge;
pub mod python;
