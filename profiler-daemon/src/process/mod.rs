//! What is known about a process on the host: memory, mappings, runtime, service identity.
//!
//! Everything read here belongs to other users and is hostile: reads are bounded, parsers return
//! errors, and a process may be gone at any moment.

mod image;
mod mapped_image;
pub mod memory;
pub(crate) mod page_cache;
pub mod python;
pub mod runtime;

pub use image::ImageError;
pub use memory::{ProcessMemory, ReadMemory};
pub use runtime::{RequestModel, Runtime};
