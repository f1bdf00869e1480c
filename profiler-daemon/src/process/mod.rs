//! What is known about a process on the host: memory, mappings, runtime, service identity.
//!
//! Everything read here belongs to other users and is hostile: reads are bounded, parsers return
//! errors, and a process may be gone at any moment.
//!
//! [`table`] finds processes, [`identity`] names their service by [`cgroup`], [`program`] and the
//! environment, [`listen`] tells which can serve requests at all.

pub mod cgroup;
pub mod identity;
pub mod listen;
pub mod memory;
pub mod procfs;
pub mod program;
pub mod table;

pub use cgroup::Cgroup;
pub use identity::{Identity, IdentityRule};
pub use memory::{ProcessMemory, ReadMemory};
pub use table::{Changes, Process, ProcessTable};
