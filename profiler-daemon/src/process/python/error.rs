//! Why the interpreter of a process cannot be used.

use std::io;

use super::{LayoutError, PythonVersion};
use crate::model::Pid;
use crate::process::ImageError;

/// Why the interpreter of a process cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// A file of `/proc` could not be read; the process may be gone.
    #[error("failed to read {path}")]
    Proc {
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The image that should be CPython is not usable.
    #[error("failed to use {path} in pid {pid} as CPython")]
    Image {
        /// The process.
        pid: Pid,
        /// The image's file.
        path: String,
        /// The reason.
        #[source]
        source: ImageError,
    },
    /// Memory of the interpreter could not be read.
    #[error("failed to read {what} of CPython in pid {pid}")]
    Memory {
        /// The process.
        pid: Pid,
        /// Name of the structure that was read.
        what: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Version or build are not supported.
    #[error("the interpreter of pid {pid} cannot be walked")]
    Layout {
        /// The process.
        pid: Pid,
        /// The reason.
        #[source]
        source: LayoutError,
    },
    /// The interpreter has no thread yet: try again in a moment.
    #[error("CPython {version} in pid {pid} is still starting")]
    Starting {
        /// The process.
        pid: Pid,
        /// Version of the interpreter.
        version: PythonVersion,
    },
    /// The offsets lead to something that is not the list of threads.
    #[error(
        "the threads of CPython {version} in pid {pid} are not where this version keeps them; \
         a patched or unusual build?"
    )]
    Threads {
        /// The process.
        pid: Pid,
        /// Version of the interpreter.
        version: PythonVersion,
    },
}
