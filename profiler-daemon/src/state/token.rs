//! The token of the built-in OAP: made once, kept in a file that only its owner reads.
//!
//! In:  the file
//! Out: the token
//! Lost: nothing; a file that cannot be used is left as it is, and the error names it and the remedy
//!
//! A new token is written whole under another name and then linked to its own: a reader finds all of it or
//! nothing, and of two daemons that start at once one makes the token and both use it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

/// A token of another program's making may be longer than ours.
const TOKEN_MAX_BYTES: u64 = 4096;
/// Bits of a mode that let others than the owner and its group in, or the group write.
const TOO_OPEN: u32 = 0o027;

/// Why a token file cannot be used.
#[derive(Debug, Error)]
pub enum TokenError {
    /// There is no such file.
    #[error("there is no token file {}", .0.display())]
    Absent(PathBuf),
    /// It cannot be opened or read.
    #[error("the token file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It cannot be made.
    #[error(
        "the token file {} cannot be made: {source}; name another with --token-file, or ask for no token \
         with --no-token", path.display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It does not hold one line of visible ASCII characters.
    #[error(
        "the token file {} holds no token: one line of visible ASCII characters is expected. Remove it, and \
         `profilerd standalone` makes a new one", .0.display()
    )]
    Malformed(PathBuf),
    /// Users who should not can read or change it.
    #[error(
        "the token file {} has mode {mode:04o}, so other users can read or change the token: remove it, and \
         `profilerd standalone` makes a new one that they have not seen", path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Mode of the file.
        mode: u32,
    },
    /// Somebody else has made it.
    #[error(
        "the token file {} belongs to the user {owner}, who knows the token: remove it, and \
         `profilerd standalone` makes a new one", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
    },
}

/// Reads the token in a file.
///
/// # Errors
///
/// There is none, it cannot be read, or is no token.
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    open(path).and_then(|file| parse(path, file))
}

/// Reads the token in a file that nobody else may read, or makes both.
///
/// # Errors
///
/// As [`read_token`]; or other users know it or can change it, or it cannot be made.
pub fn keep_token(path: &Path) -> Result<String, TokenError> {
    let file = match open(path) {
        Err(TokenError::Absent(_)) => {
            make(path).map_err(|source| TokenError::Unwritable {
                path: path.to_owned(),
                source,
            })?;
            open(path)?
        }
        opened => opened?,
    };
    let metadata = file.metadata().map_err(unreadable(path))?;
    if !metadata.is_file() {
        return Err(unreadable(path)(io::Error::other("it is not a file")));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        let path = path.to_owned();
        return Err(TokenError::Foreign { path, owner });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & TOO_OPEN != 0 {
        let path = path.to_owned();
        return Err(TokenError::TooOpen { path, mode });
    }
    parse(path, file)
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> TokenError {
    let path = path.to_owned();
    move |source| TokenError::Unreadable {
        path: path.clone(),
        source,
    }
}

fn open(path: &Path) -> Result<File, TokenError> {
    // A pipe in its place must not hold us up.
    let mut options = File::options();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => TokenError::Absent(path.to_owned()),
        _ => unreadable(path)(error),
    })
}

fn parse(path: &Path, file: File) -> Result<String, TokenError> {
    let mut bytes = Vec::new();
    let read = file.take(TOKEN_MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(unreadable(path))?;
    let token = bytes.trim_ascii();
    let is_token = !token.is_empty()
        && bytes.len() as u64 <= TOKEN_MAX_BYTES
        && token.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(token) {
        Ok(token) if is_token => Ok(token.to_owned()),
        _ => Err(TokenError::Malformed(path.to_owned())),
    }
}

/// Makes the file, unless somebody else has made it meanwhile.
fn make(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", Uuid::new_v4().simple()));
    let new = PathBuf::from(new);
    let linked = write_new(&new).and_then(|()| fs::hard_link(&new, path));
    let removed = fs::remove_file(&new);
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => removed,
        Err(error) => Err(error),
        Ok(()) => removed,
    }
}

fn write_new(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", generate())?;
    file.sync_all()
}

/// 244 bits from the kernel's generator, as text.
fn generate() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;

    /// Check that a token is made for its owner alone, is the same afterwards, and that nothing else stays.
    #[test]
    fn a_token_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state/token");
        assert!(matches!(read_token(&path), Err(TokenError::Absent(_))));
        let token = keep_token(&path).unwrap();
        assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(keep_token(&path).unwrap(), token);
        assert_eq!(read_token(&path).unwrap(), token);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let other = keep_token(&root.path().join("other")).unwrap();
        assert_ne!(other, token);
    }

    /// Check that daemons that start at once have one token.
    #[test]
    fn one_of_many_makes_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("token");
        let start = || keep_token(&path).unwrap();
        let tokens = thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            let all = all.into_iter().map(|thread| thread.join().unwrap());
            all.collect::<Vec<_>>()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    /// Check that a file with another content, or open to others, is refused by name and left as it is.
    #[test]
    fn what_cannot_be_trusted_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("token");
        let long = "x".repeat(5000);
        for text in ["", "\n", "two words", "two\nlines", "caf\u{e9}", &long] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = keep_token(&path).unwrap_err();
            assert!(matches!(error, TokenError::Malformed(_)), "{text}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "secret\n").unwrap();
        for (mode, is_kept) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o644, false),
            (0o620, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let kept = keep_token(&path);
            assert_eq!(kept.is_ok(), is_kept, "{mode:o}");
            assert_eq!(read_token(&path).unwrap(), "secret");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            let error = keep_token(&path).unwrap_err();
            assert!(error.to_string().contains("the user 65534"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = keep_token(&path).unwrap_err();
        assert!(matches!(error, TokenError::Unreadable { .. }), "{error}");
        let error = keep_token(Path::new("/proc/profilerd/token")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/proc/profilerd/token") && text.contains("--no-token"),
            "{text}"
        );
    }
}
