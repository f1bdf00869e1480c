//! What is known about a process on the host: memory, mappings, runtime, service identity.
//!
//! Everything read here belongs to other users and is hostile: reads are bounded, parsers return
//! errors, and a process may be gone at any moment.
//!
//! [`table`] finds processes, [`identity`] names their service by [`cgroup`], [`program`] and the
//! environment, [`listen`] tells which can serve requests at all, [`agent`] which have a SkyWalking agent. [`target`] is a process that is
//! being profiled, [`mapping`] its code, `object`, `elf` and `eh_frame` the files behind it, [`python`] its interpreter.

pub mod agent;
pub mod cgroup;
pub mod choice;
pub mod container;
pub mod descriptor;
pub(crate) mod eh_frame;
pub(crate) mod elf;
mod entry;
mod fact;
mod family;
pub(crate) mod foreign_file;
pub(crate) mod go_build;
pub mod identity;
pub(crate) mod image;
mod instance;
mod jvm;
pub mod listen;
mod listing;
mod mapped_image;
pub mod mapping;
pub mod memory;
pub(crate) mod namespace;
pub(crate) mod object;
mod owner;
pub(crate) mod page_cache;
pub(crate) mod patience;
pub mod pod;
pub(crate) mod poll_call;
pub mod procfs;
pub mod program;
mod property;
pub mod python;
pub mod runtime;
mod scan_budget;
mod settle;
pub(crate) mod sock_diag;
pub(crate) mod stand_in;
pub mod table;
pub mod target;
pub mod wait_set;

pub use agent::{Agent, AgentLanguage};
pub use cgroup::{Cgroup, Container};
pub use choice::{Choice, Denial, PROFILE_KEY};
pub use container::ContainerNames;
pub use family::Family;
pub use identity::{Identity, IdentityRule, InstanceOrigin};
pub use image::ImageError;
pub use listing::Processes;
pub use mapping::{Mapping, Mappings};
pub use memory::{ProcessMemory, ReadMemory};
pub use pod::{Pod, Pods};
pub use property::VERSION_PROPERTY;
pub use runtime::{NamedFrames, RequestModel, Runtime};
pub use table::{Changes, ProcessTable};
pub use target::Process;
