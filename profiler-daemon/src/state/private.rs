//! Folders and files that nobody else may read, change or put something in the place of.
//!
//! In:  a path that the configuration names
//! Out: the folder or file, ours or root's, open to nobody else
//! Lost: nothing; what somebody else could have prepared is refused, with what to do
//!
//! In a folder that others may write a link in the place of a file leads root to any file of the host, and a file that
//! others may open can be locked by them: the daemon would not start again.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Error, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Bits of a mode that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Mode of our files: of a lock as well, since to lock a file it is enough to be able to read it.
const FILE_MODE: u32 = 0o600;

/// Makes a folder that only we can enter, or accepts the one that is there: others may look into it (systemd makes its
/// `StateDirectory=` so) but not write.
///
/// # Errors
///
/// It cannot be made, is another user's, or others may write there; the text says what to do.
pub fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // A link of somebody else would lead elsewhere tomorrow.
    let link = path.symlink_metadata()?;
    let metadata = path.metadata()?;
    for owner in [link.uid(), metadata.uid()] {
        if !is_trusted(owner) {
            return Err(Error::other(format!(
                "it belongs to the user {owner}, who could put files there; name a directory of root's, or give it to \
                 root: chown root: {}",
                path.display()
            )));
        }
    }
    let mode = metadata.mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(Error::other(format!(
            "it has mode {mode:04o}, so other users could put files there; name another directory, or take that right \
             away: chmod go-w {}",
            path.display()
        )));
    }
    Ok(())
}

/// Opens a file to read and write, and makes it if it is missing.
///
/// # Errors
///
/// It cannot be opened, is a link, or not a file of ours.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    open_as(options, path)
}

/// Opens a file to read.
///
/// # Errors
///
/// As for [`open_or_create`].
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    open_as(options, path)
}

/// Makes a file that is not there yet.
///
/// # Errors
///
/// It is there, or cannot be made.
pub fn create_new(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    open_as(options, path)
}

/// Reads a file of at most so many bytes.
///
/// # Errors
///
/// As for [`open_or_create`], or it is larger.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open(path)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::other(format!("it is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn open_as(mut options: OpenOptions, path: &Path) -> io::Result<File> {
    // A pipe in its place must not hold us up.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = options.mode(FILE_MODE).custom_flags(flags).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => Error::other("it is a link; remove it"),
        _ => error,
    })?;
    let metadata = file.metadata()?;
    // A second name of the file would be somewhere else.
    if !metadata.is_file() || metadata.nlink() > 1 || !is_trusted(metadata.uid()) {
        return Err(Error::other(
            "it is not a file that we have made; remove it",
        ));
    }
    // Earlier versions made some for all to read.
    if metadata.mode() & 0o777 & !FILE_MODE != 0 {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    Ok(file)
}

/// Root can do everything anyway.
fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    const STRANGER: u32 = 1001;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    /// Check that a folder is made for us alone, that one others can read is accepted as it is, and that one they can
    /// write, or that is theirs, is refused with the remedy.
    #[test]
    fn folders_of_others_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        folder(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        set_mode(&path, 0o755);
        folder(&path).unwrap();
        assert_eq!(mode(&path), 0o755);
        for open in [0o775, 0o757, 0o1777] {
            set_mode(&path, open);
            let error = folder(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {open:04o}")), "{error}");
            assert!(error.contains("chmod go-w"), "{error}");
        }
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        set_mode(&path, 0o755);
        chown(&path, Some(STRANGER), None).unwrap();
        let error = folder(&path).unwrap_err().to_string();
        assert!(error.contains("the user 1001"), "{error}");
        let (good, link) = (root.path().join("good"), root.path().join("link"));
        folder(&good).unwrap();
        symlink(&good, &link).unwrap();
        folder(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(STRANGER), None).unwrap();
        assert!(folder(&link).is_err());
    }

    /// Check that files are for us alone, also those that an earlier version left open to all, and that nothing but a file
    /// of ours is taken for one.
    #[test]
    fn files_are_private() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for open in [open_or_create, create_new] {
            open(&at("file")).unwrap();
            assert_eq!(mode(&at("file")), 0o600);
            fs::remove_file(at("file")).unwrap();
        }
        fs::write(at("old"), "text").unwrap();
        set_mode(&at("old"), 0o644);
        assert_eq!(read(&at("old"), 4).unwrap(), b"text");
        assert_eq!(mode(&at("old")), 0o600);
        assert!(
            read(&at("old"), 3)
                .unwrap_err()
                .to_string()
                .contains("larger")
        );

        symlink(at("target"), at("link")).unwrap();
        fs::write(at("known"), "").unwrap();
        fs::hard_link(at("known"), at("second name")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for name in ["link", "second name", "pipe", "folder"] {
            assert!(open_or_create(&at(name)).is_err(), "{name}");
            assert!(create_new(&at(name)).is_err(), "{name}");
            assert!(open(&at(name)).is_err(), "{name}");
        }
        assert!(!at("target").exists());
        if nix::unistd::geteuid().is_root() {
            fs::write(at("theirs"), "").unwrap();
            chown(at("theirs"), Some(STRANGER), None).unwrap();
            assert!(open_or_create(&at("theirs")).is_err());
        }
    }
}
