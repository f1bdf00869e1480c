//! What is known about a process on the host: memory, mappings, runtime, service identity.
//!
//! Everything read here belongs to other users and is hostile: reads are bounded, parsers return
//! errors, and a process may be gone at any moment.

pub mod memory;
pub mod python;

pub use memory::{ProcessMemory, ReadMemory};
