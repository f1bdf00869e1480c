//! What is known about a process on the host: memory, mappings, runtime, service identity.
//!
//! Everything read here belongs to other users and is hostile: reads are bounded, parsers return
//! errors, and a process may be gone at any moment.

mod image;
mod mapped_image;
pub mod mapping;
pub mod memory;
pub(crate) mod object;
pub(crate) mod page_cache;
pub mod python;
pub mod runtime;
pub mod target;

pub use image::ImageError;
pub use mapping::{Mapping, Mappings};
pub use memory::{ProcessMemory, ReadMemory};
pub use runtime::{RequestModel, Runtime};
pub use target::Process;
