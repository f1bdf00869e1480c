//! What outlives the daemon: a folder of files that only it writes.
//!
//! In:  tasks as they start, profile requests and end
//! Out: the same after a restart, also after `kill -9`
//! Lost: a file that cannot be read is moved aside, with a warning; its tasks are not continued

mod folder;
mod journal;

pub use folder::StateFolder;
#[cfg(feature = "fuzzing")]
pub(crate) use journal::parse as parse_journal;
pub use journal::{SavedTask, TaskJournal};
