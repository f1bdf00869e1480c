//! Ends a task before its time.
//!
//! In:  a task's id, or the beginning of one
//! Out: the task is over; who runs it is told with the answer to the next report, see `tasks.rs`
//! Lost: nothing; what the task has profiled stays

use thiserror::Error;

use super::storage::{StorageError, tasks};
use super::store::{FindError, Store, find};
use super::task::TaskRecord;

/// Why a task was not cancelled.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CancelError {
    /// Which task is meant is not known.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It is over already.
    #[error("task {0} is over already")]
    Over(String),
}

impl From<StorageError> for CancelError {
    fn from(error: StorageError) -> Self {
        Self::Find(error.into())
    }
}

impl Store {
    /// Cancels the task with this id, or with the only id that begins so.
    ///
    /// # Errors
    ///
    /// [`CancelError`] if no task or more than one fits, or if it is over.
    pub fn cancel_task(&self, text: &str, now_ms: i64) -> Result<TaskRecord, CancelError> {
        if text.is_empty() {
            // The newest task may be somebody else's by now.
            return Err(FindError::Unknown(text.to_owned()).into());
        }
        self.write(|db, _| {
            let mut row = match find(db, text)? {
                Ok(row) => row,
                Err(error) => return Ok(Err(error.into())),
            };
            let logs = tasks::logs(db, row.key)?;
            if row.task.state(&logs, now_ms).is_over() {
                return Ok(Err(CancelError::Over(row.task.id)));
            }
            tasks::cancel(db, row.key, now_ms)?;
            row.task.cancelled_ms = Some(now_ms);
            Ok(Ok(row.task))
        })?
    }
}
