//! The tables of the built-in OAP, in SQLite: one file per noun, functions on a connection.
//!
//! In:  calls of [`super::store`], which holds the lock and the transaction
//! Out: rows
//! Lost: nothing here; [`super::store`] counts what it turns away
//!
//! | file | tables |
//! |---|---|
//! | `tasks` | `task`, `task_log`, `coverage`, `note` |
//! | `instances` | `instance` |
//! | `endpoints` | `endpoint` |
//! | `segments` | `segment`, `task_segment` |
//! | `traces` | `segment`, searched and with spans |
//! | `snapshots` | `snapshot`, `stack`, `text` |
//! | `retention` | what is removed from them, and when |

pub(super) mod database;
pub(super) mod endpoints;
pub(super) mod instances;
pub(super) mod retention;
pub(super) mod segments;
pub(super) mod snapshots;
pub(super) mod tasks;
pub(super) mod traces;

use thiserror::Error;

/// SQLite could not do what was asked; nothing of the call was stored.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the store has failed: {0}")]
pub struct StorageError(String);

impl StorageError {
    pub(super) fn new(cause: impl ToString) -> Self {
        Self(cause.to_string())
    }
}

impl From<rusqlite::Error> for StorageError {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(error)
    }
}

/// A number of ours as SQLite keeps it.
fn to_sql(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
