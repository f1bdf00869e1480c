//! The state directory: accessible to root only, used by one daemon at a time.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::private;

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
    /// It cannot be made or written, others may write to it, or another daemon uses it; the text names it.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        private::folder(path)
            .with_context(|| format!("the state directory {shown} cannot be used"))?;
        let lock = path.join(LOCK_FILE);
        let lock = private::open_or_create(&lock)
            .with_context(|| format!("{} cannot be used", lock.display()))?;
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

    /// Reads a file of at most so many bytes; `None` if there is none.
    ///
    /// # Errors
    ///
    /// It cannot be read, is larger, or not ours; the text names it.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let path = self.file(name);
        match private::read(&path, bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    /// Replaces a file as a whole: after a crash it has either the old or the new bytes.
    ///
    /// # Errors
    ///
    /// It cannot be written; the text names it.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, new) = (self.file(name), self.file(&format!("{name}.new")));
        let write = || {
            let mut file = private::open_or_create(&new)?;
            file.set_len(0)?;
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
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use profiler_test_support::needs_root;

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

    /// Check that a directory that others may look into, as systemd makes it, works, and that no other user can hold its
    /// lock or read its files, not even those that an earlier version made.
    #[test]
    fn users_cannot_hold_the_state_directory() {
        needs_root!();
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        fs::create_dir(&path).unwrap();
        for folder in [root.path(), &path] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for name in [LOCK_FILE, "tasks.json", "tasks.json.new"] {
            fs::write(path.join(name), "[]").unwrap();
        }
        let as_user = |program: &str, args: &[&str], name: &str| {
            let mut command = Command::new(program);
            command.args(args).arg(path.join(name)).uid(1001).gid(1001);
            command
                .current_dir("/")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        let lock = |name| {
            as_user("flock", &["--nonblock", "--exclusive"], name)
                .arg("true")
                .status()
        };
        assert!(
            lock(LOCK_FILE).unwrap().success(),
            "it is open to all until it is used"
        );
        let folder = StateFolder::open(&path).unwrap();
        assert_eq!(folder.read("tasks.json", 10).unwrap().unwrap(), b"[]");
        folder.replace("tasks.json", b"[1]").unwrap();
        drop(folder);
        assert!(!lock(LOCK_FILE).unwrap().success());
        for name in [LOCK_FILE, "tasks.json"] {
            assert!(
                !as_user("cat", &[], name).status().unwrap().success(),
                "{name}"
            );
        }
        StateFolder::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let error = format!("{:#}", StateFolder::open(&path).unwrap_err());
        assert!(
            error.contains(path.to_str().unwrap()) && error.contains("chmod go-w"),
            "{error}"
        );
    }

    /// Check that a folder that cannot be made is named.
    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = StateFolder::open(Path::new("/proc/profilerd")).unwrap_err();
        assert!(error.to_string().contains("/proc/profilerd"), "{error}");
    }
}
