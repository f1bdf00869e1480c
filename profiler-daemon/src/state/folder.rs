//! The state directory: accessible to root only, used by one daemon at a time.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const LOCK_FILE: &str = "lock";

/// An open state folder; the lock on it is released when it is dropped, or the process ends in any way.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Opens the folder, and makes it with mode 0700 if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made or written, or another daemon uses it; the text names it.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("failed to create the state directory {shown}"))?;
        let lock = path.join(LOCK_FILE);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .with_context(|| format!("failed to open {}", lock.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => bail!(
                "another profilerd uses the state directory {shown}: stop it, or give this one a \
                 directory of its own with --state-dir"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("failed to lock the state directory {shown}"))
            }
        }
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces a file as a whole: after a crash it has either the old or the new bytes.
    ///
    /// # Errors
    ///
    /// It cannot be written; the text names it.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, new) = (self.file(name), self.file(&format!("{name}.new")));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// Moves a file that cannot be used aside, for inspection; yields its new path.
    ///
    /// # Errors
    ///
    /// It cannot be moved.
    pub fn move_aside(&self, name: &str) -> Result<PathBuf> {
        let (path, aside) = (self.file(name), self.file(&format!("{name}.unreadable")));
        fs::rename(&path, &aside)
            .with_context(|| format!("failed to move {} aside", path.display()))?;
        Ok(aside)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Check that the folder is made for its owner alone, and that a second user is refused by name until
    /// the first is gone.
    #[test]
    fn one_daemon_uses_it_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let first = StateFolder::open(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let error = StateFolder::open(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("--state-dir"), "{error}");
        drop(first);
        StateFolder::open(&path).unwrap();
    }

    /// Check that a folder that cannot be made is named.
    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = StateFolder::open(Path::new("/proc/profilerd")).unwrap_err();
        assert!(error.to_string().contains("/proc/profilerd"), "{error}");
    }
}
