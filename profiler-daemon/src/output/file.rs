//! Writes a result to a file that is either whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{View, write};
use crate::model::ProfileReport;

/// Only the owner: stacks and endpoints are not for every user of the host.
const MODE: u32 = 0o600;

/// Refuses a path that cannot become a file, before any work is done for it.
///
/// # Errors
///
/// The path is a directory, or its folder does not exist.
pub fn check_target(path: &Path) -> Result<()> {
    if path.is_dir() {
        bail!("{} is a directory; name a file in it", path.display());
    }
    let folder = folder(path);
    if !folder.is_dir() {
        bail!("the directory {} does not exist", folder.display());
    }
    Ok(())
}

/// Writes a report to `path`: through a temporary file beside it, renamed when it is complete. A
/// pipe or device is written to as it is.
///
/// # Errors
///
/// Those of [`check_target`] and [`write`], and those of the file system.
pub fn write_file(report: &ProfileReport, view: impl Into<View>, path: &Path) -> Result<()> {
    let view = view.into();
    check_target(path)?;
    let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if is_special {
        let file = OpenOptions::new().write(true).open(path);
        let file = file.with_context(|| format!("failed to open {}", path.display()))?;
        return write(report, view, &mut BufWriter::new(file));
    }
    let temporary = Temporary::create(path)?;
    let mut out = BufWriter::new(&temporary.file);
    write(report, view, &mut out)
        .and_then(|()| out.flush().context("failed to write the last bytes"))
        .and_then(|()| temporary.file.sync_all().context("failed to sync"))
        .with_context(|| format!("failed to write {}", path.display()))?;
    drop(out);
    fs::rename(&temporary.path, path)
        .with_context(|| format!("failed to put the result at {}", path.display()))
}

/// A new file that is removed when dropped; after a rename there is nothing to remove.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = folder(target).join(format!(".{name}.{}.tmp", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true) // never through a link that somebody has put there
            .mode(MODE)
            .open(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self { path, file })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // renamed, or best effort
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use std::os::unix::fs::PermissionsExt;

    use super::super::sample;
    use super::*;

    /// Check that an existing file is replaced as a whole and is private.
    #[test]
    fn a_file_is_replaced_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        fs::write(&path, "old").unwrap();
        write_file(&sample::report(), Format::Json, &path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("{\"task\""));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Check that links of another user in a folder that both can write lead to nothing: neither one in the place of the
    /// result nor one in the place of the temporary file.
    #[test]
    fn links_are_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let [victim, path, temporary] = [
            "victim".to_owned(),
            "out".to_owned(),
            format!(".out.{}.tmp", std::process::id()),
        ]
        .map(|name| folder.path().join(name));
        fs::write(&victim, "old").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        write_file(&sample::report(), Format::Json, &path).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        std::os::unix::fs::symlink(&victim, &temporary).unwrap();
        assert!(write_file(&sample::report(), Format::Json, &path).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "old");
    }

    /// Check that a failed write leaves the old file and no temporary one.
    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        fs::write(&path, "old").unwrap();
        assert!(write_file(&ProfileReport::default(), Format::Svg, &path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Check that a directory and a missing folder are refused by name, and that a device works.
    #[test]
    fn what_cannot_be_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_target(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let error = check_target(&folder.path().join("no/out")).unwrap_err();
        assert!(error.to_string().contains("does not exist"), "{error}");
        write_file(&sample::report(), Format::Json, Path::new("/dev/null")).unwrap();
    }
}
