//! Opens the database: `profilerd.db` in a directory, or SQLite's own database in memory.
//!
//! In:  [`DataDir`]
//! Out: [`Database`] with the tables of `schema.sql`
//! Lost: nothing; a file that is damaged, newer or not ours is refused and left as it is
//!
//! # What survives
//!
//! A transaction is in the write-ahead log, in the kernel's hands, when its commit returns: `kill -9`
//! at any moment loses nothing committed. With `synchronous=NORMAL` the log is forced to the disk at
//! checkpoints only, so a power failure may take back the last transactions; the file stays whole.
//! <https://www.sqlite.org/pragma.html#pragma_synchronous>

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

use crate::state::private;

/// The database's file in the directory; SQLite adds `-wal` and `-shm`.
const FILE_NAME: &str = "profilerd.db";
/// The file that says that a process uses the directory.
const LOCK_NAME: &str = "profilerd.lock";
/// "prof": distinguishes our files from other programs' databases.
const APPLICATION_ID: i32 = 0x7072_6f66;
/// Version of `schema.sql`.
const SCHEMA_VERSION: i32 = 5;
/// What makes a file of version 1, 2, ... one of the next version.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize - 1] = [
    "ALTER TABLE segment ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
     UPDATE segment SET tags = json_array(json_array('http.status_code', CAST(status AS TEXT)))
         WHERE status IS NOT NULL;",
    "CREATE TABLE endpoint (
         service TEXT NOT NULL,
         name TEXT NOT NULL,
         last_seen_ms INTEGER NOT NULL,
         PRIMARY KEY (service, name)
     ) STRICT, WITHOUT ROWID;",
    "ALTER TABLE segment ADD COLUMN is_error INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE segment ADD COLUMN spans BLOB NOT NULL DEFAULT x'';
     UPDATE segment SET is_error = 1 WHERE status >= 500;
     CREATE INDEX segment_trace ON segment (trace_id);",
    "ALTER TABLE task ADD COLUMN cancelled_ms INTEGER;",
];
/// How long a write waits for another program that reads the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements kept prepared: all of ours.
const STATEMENTS: usize = 64;

/// Where the built-in OAP keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDir {
    /// Nowhere: it ends with the process.
    Memory,
    /// In this directory, which is created if need be.
    Directory(PathBuf),
}

/// Why the data cannot be used. Each text says what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file or the directory cannot be created or opened.
    #[error(
        "failed to open {}: {source}; choose another directory with --data-dir, or keep everything \
         in memory with --data-dir :memory:", path.display()
    )]
    Unusable {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "another profilerd uses {}; end it, or choose another directory with --data-dir",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Another program's file.
    #[error(
        "{} is not a database of profilerd; move it away, or choose another directory with \
         --data-dir", file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// A later version's file.
    #[error(
        "{} has format {found} of a newer profilerd, this one reads format {SCHEMA_VERSION}; start \
         the newer one, move the file away, or choose another directory with --data-dir",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Format of the file.
        found: i32,
    },
    /// It cannot be read as a database.
    #[error(
        "{} is damaged ({detail}) and was left as it is; move it away together with its -wal and \
         -shm files to begin anew, or choose another directory with --data-dir", file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Anything else.
    #[error("failed to open the database {}: {source}", file.display())]
    Sqlite {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
}

/// An open database.
#[derive(Debug)]
pub(in super::super) struct Database {
    pub(in super::super) connection: Connection,
    /// Held for as long as the connection; the kernel releases it whatever way the process ends.
    _lock: Option<File>,
}

impl From<&Path> for DataDir {
    /// `:memory:` is SQLite's own word for it.
    fn from(path: &Path) -> Self {
        if path == Path::new(":memory:") {
            Self::Memory
        } else {
            Self::Directory(path.to_owned())
        }
    }
}

impl Database {
    pub(in super::super) fn open(place: &DataDir) -> Result<Self, OpenError> {
        match place {
            DataDir::Memory => {
                let file = PathBuf::from(":memory:");
                let opened = Connection::open_in_memory();
                let opened = opened.map_err(|error| refused(&file, error));
                let connection = prepare(&file, opened?)?;
                let _lock = None;
                Ok(Self { connection, _lock })
            }
            DataDir::Directory(dir) => Self::open_in(dir),
        }
    }

    fn open_in(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            |source| OpenError::Unusable { path, source }
        };
        // Stacks and URLs of services are private.
        private::folder(dir).map_err(unusable(dir))?;
        // SQLite follows no link, not even one that leads to the folder.
        let dir = &dir.canonicalize().map_err(unusable(dir))?;
        let lock_path = dir.join(LOCK_NAME);
        let lock = private::open_or_create(&lock_path).map_err(unusable(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let dir = dir.to_owned();
                return Err(OpenError::InUse { dir });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(&lock_path)(error)),
        }
        let file = dir.join(FILE_NAME);
        // SQLite would create it readable for all; its other files get the mode of this one.
        private::open_or_create(&file).map_err(unusable(&file))?;
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let opened = Connection::open_with_flags(&file, flags);
        let opened = opened.map_err(|error| refused(&file, error));
        Ok(Self {
            connection: prepare(&file, opened?)?,
            _lock: Some(lock),
        })
    }
}

fn prepare(file: &Path, connection: Connection) -> Result<Connection, OpenError> {
    let failed = |error| refused(file, error);
    // Until it is known to be ours and whole, not even the log is merged into it.
    let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection
        .set_db_config(no_checkpoint, true)
        .map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let version = version(file, &connection)?;
    connection
        .set_db_config(no_checkpoint, false)
        .map_err(failed)?;
    // Of these only auto_vacuum and journal_mode change the file, if it is new.
    let settings = "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -8192; -- KiB
         PRAGMA journal_size_limit = 16777216;";
    connection.execute_batch(settings).map_err(failed)?;
    let statements = match version {
        None => include_str!("schema.sql").to_owned(),
        Some(version) => MIGRATIONS[version..].concat(),
    };
    if !statements.is_empty() {
        let change = format!(
            "BEGIN IMMEDIATE;
             {statements}
             PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = {SCHEMA_VERSION};
             COMMIT;"
        );
        connection.execute_batch(&change).map_err(failed)?;
    }
    Ok(connection)
}

/// How many migrations the file has behind it; none if it has no content yet. Refuses content that is not ours, of a
/// newer version, or damaged.
fn version(file: &Path, connection: &Connection) -> Result<Option<usize>, OpenError> {
    let read = |sql: &str| -> Result<i32, OpenError> {
        let row = connection.query_row(sql, [], |row| row.get(0));
        row.map_err(|error| refused(file, error))
    };
    let tables = read("SELECT count(*) FROM sqlite_schema")?;
    let application_id = read("PRAGMA application_id")?;
    let found = read("PRAGMA user_version")?;
    if (tables, application_id, found) == (0, 0, 0) {
        return Ok(None);
    }
    let file = file.to_owned();
    let migrations = usize::try_from(found).ok().and_then(|n| n.checked_sub(1));
    let Some(migrations) = migrations.filter(|_| application_id == APPLICATION_ID) else {
        return Err(OpenError::Foreign { file });
    };
    if migrations > MIGRATIONS.len() {
        return Err(OpenError::Newer { file, found });
    }
    // Reads the whole file once: a damaged page is better found now than in the middle of a task.
    let checked = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    let detail: String = checked.map_err(|error| refused(&file, error))?;
    if detail == "ok" {
        Ok(Some(migrations))
    } else {
        Err(OpenError::Damaged { file, detail })
    }
}

fn refused(file: &Path, source: rusqlite::Error) -> OpenError {
    let file = file.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenError::Damaged {
            file,
            detail: source.to_string(),
        },
        _ => OpenError::Sqlite { file, source },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(dir: &Path) -> Result<Database, OpenError> {
        Database::open(&DataDir::from(dir))
    }

    /// Opens it, and expects a refusal that says this, and that no byte of the file has changed.
    fn refused(dir: &Path, expected: &[&str]) {
        let file = dir.join(FILE_NAME);
        let before = fs::read(&file).unwrap();
        let error = open(dir).unwrap_err().to_string();
        for expected in expected {
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(error.contains(file.to_str().unwrap()), "{error}");
        assert!(error.contains("--data-dir"), "{error}");
        assert!(fs::read(&file).unwrap() == before, "the file was changed");
    }

    /// Check that directory and files are made for our user alone, and that both may be there already.
    #[test]
    fn the_directory_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let database = open(&dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        for name in [
            "profilerd.db",
            "profilerd.db-wal",
            "profilerd.db-shm",
            LOCK_NAME,
        ] {
            assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
        }
        drop(database);
        open(&dir).unwrap();
    }

    /// Check that a directory has one user at a time, and that the second is told.
    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
        drop(first);
        open(dir.path()).unwrap();
    }

    /// Check that a file of a newer version or of another program is refused by name.
    #[test]
    fn newer_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        let file = dir.path().join(FILE_NAME);
        let change = |sql: &str| Connection::open(&file).unwrap().execute_batch(sql).unwrap();
        change("PRAGMA user_version = 99");
        refused(dir.path(), &["format 99 of a newer profilerd"]);
        change("PRAGMA application_id = 7");
        refused(dir.path(), &["is not a database of profilerd"]);
        fs::remove_file(&file).unwrap();
        change("CREATE TABLE other (x)");
        refused(dir.path(), &["is not a database of profilerd"]);
    }

    /// Check that a file of version 1 is used, with its rows, and is of this version then.
    #[test]
    fn an_old_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let database = open(dir.path()).unwrap();
        // Version 1 is without these columns and this table.
        let old = "DROP INDEX segment_trace;
             ALTER TABLE segment DROP COLUMN tags;
             ALTER TABLE segment DROP COLUMN is_error;
             ALTER TABLE segment DROP COLUMN spans;
             DROP TABLE endpoint;
             ALTER TABLE task DROP COLUMN cancelled_ms;
             INSERT INTO segment (id, trace_id, service, instance, endpoint, start_ms, end_ms, status, loose)
                 VALUES ('told', 't', 's', 'i', '/', 1, 2, 503, 0), ('mute', 't', 's', 'i', '/', 1, 2, NULL, 0);
             PRAGMA user_version = 1";
        database.connection.execute_batch(old).unwrap();
        drop(database);
        let columns = |database: &Database| {
            let sql =
                "SELECT tags || ' ' || is_error || ' ' || length(spans) FROM segment ORDER BY key";
            let mut rows = database.connection.prepare(sql).unwrap();
            let columns = rows.query_map([], |row| row.get(0)).unwrap();
            columns.collect::<rusqlite::Result<Vec<String>>>().unwrap()
        };
        for _ in 0..2 {
            let database = open(dir.path()).unwrap();
            let told = r#"[["http.status_code","503"]] 1 0"#;
            assert_eq!(columns(&database), [told, "[] 0 0"]);
            let version = "PRAGMA user_version";
            let version: i32 = database
                .connection
                .query_row(version, [], |row| row.get(0))
                .unwrap();
            assert_eq!(version, SCHEMA_VERSION);
        }
    }

    /// Check that a damaged file is refused and left as it is, wherever the damage is.
    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let database = open(dir.path()).unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO instance SELECT 's', i, i, '{}' FROM n";
        database.connection.execute_batch(fill).unwrap();
        drop(database);
        let file = dir.path().join(FILE_NAME);
        let whole = fs::read(&file).unwrap();
        // Behind the pages of the schema there are only rows.
        let middle = whole.len() / 2 / 4096 * 4096;
        for place in [0, middle] {
            let mut damaged = whole.clone();
            damaged[place..place + 100].fill(0xA5);
            fs::write(&file, damaged).unwrap();
            refused(dir.path(), &["is damaged", "move it away"]);
        }
        fs::write(&file, whole).unwrap();
        open(dir.path()).unwrap();
    }

    /// Check that a process that died while it made the file leaves one that can be used.
    #[test]
    fn a_half_made_file_is_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "").unwrap();
        drop(open(dir.path()).unwrap());
        fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        let half = Connection::open(dir.path().join(FILE_NAME)).unwrap();
        let settings = "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;";
        half.execute_batch(settings).unwrap();
        drop(half);
        open(dir.path()).unwrap();
    }

    /// Check that a place that is no directory is named.
    #[test]
    fn an_unusable_place_is_named() {
        let error = open(Path::new("/dev/null/x")).unwrap_err().to_string();
        assert!(
            error.contains("/dev/null/x") && error.contains(":memory:"),
            "{error}"
        );
    }
}
