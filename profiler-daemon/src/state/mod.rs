//! Data that outlives the daemon: a directory of files that only the daemon writes.
//!
//! In:  tasks as they start, profile requests and end; the token of the built-in OAP
//! Out: the same after a restart, also after `kill -9`
//! Lost: a file that cannot be read is moved aside, with a warning; its tasks are not continued

mod folder;
mod journal;
pub mod private;
mod token;

pub use folder::StateFolder;
#[cfg(feature = "fuzzing")]
pub(crate) use journal::parse as parse_journal;
pub use journal::{SavedTask, TaskJournal};
pub use token::{TokenError, keep_token, read_token};
