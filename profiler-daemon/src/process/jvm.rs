//! Finds the version of a Java virtual machine, in the file that names a release.
//!
//! In:  path of the mapped `libjvm.so`; `release` in the folder of the JDK above it
//! Out: the version, such as `17.0.15`
//! Lost: JDKs without that file

use std::path::Path;

use super::fact::tidy;
use super::foreign_file;
use crate::model::Pid;

/// The file has some 2 KiB.
const RELEASE_MAX_BYTES: u64 = 16 << 10;
/// `JDK/lib/server/libjvm.so`, and `JDK/jre/lib/amd64/server/libjvm.so` up to Java 8.
const ANCESTORS_MAX: usize = 5;

pub(super) fn version(pid: Pid, libjvm: &Path) -> Option<String> {
    let mut folders = libjvm.ancestors().skip(1).take(ANCESTORS_MAX);
    folders.find_map(|folder| {
        let release = foreign_file::read(pid, &folder.join("release"), RELEASE_MAX_BYTES).ok()?;
        parse(&String::from_utf8_lossy(&release))
    })
}

fn parse(release: &str) -> Option<String> {
    let mut lines = release.lines();
    let version = lines.find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
    Some(tidy(version.trim_matches('"'))).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the file is found above the library.
    #[test]
    fn a_release_has_a_version() {
        let jdk = tempfile::tempdir().unwrap();
        let release = "IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"17.0.15\"\n";
        std::fs::write(jdk.path().join("release"), release).unwrap();
        let library = jdk.path().join("lib/server/libjvm.so");
        let found = version(Pid(std::process::id()), &library);
        assert_eq!(found.as_deref(), Some("17.0.15"));
        assert_eq!(parse("JAVA_VERSION=\"\""), None);
    }
}
