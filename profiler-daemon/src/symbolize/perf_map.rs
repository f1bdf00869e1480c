//! Names generated code that its runtime describes in a perf map.
//!
//! In:  `/tmp/perf-PID.map` as the process sees it
//! Out: the name of the function at an address
//! Lost: lines that make no sense; what follows the first [`FILE_BYTES_MAX`] bytes
//!
//! ```text
//! 7f3a14d50360 80 LazyCompile:*handler /srv/app.js:12
//! start        size (both hexadecimal)  name, to the end of the line
//! ```
//! <https://github.com/torvalds/linux/blob/v6.12/tools/perf/Documentation/jit-interface.txt>
//!
//! # Why not by blazesym
//! It maps the file, which the process may truncate under us, and refuses all of a map whose last
//! line is just being written.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use crate::model::{Pid, Tid};
use crate::process::python::innermost_tid;
use crate::process::stand_in::door;

/// Most bytes of a map that are read. node writes about 100 bytes per function, some 50,000 times.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Least time between two looks at the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The perf map of a process, if it writes one.
pub(crate) struct PerfMap {
    path: Option<String>,
    /// User of the process: nobody else may name its functions.
    uid: Option<u32>,
    checked: Option<Instant>,
    bytes: u64,
    text: String,
    functions: Vec<Function>,
}

struct Function {
    code: Range<u64>,
    /// In `text`.
    name: Range<usize>,
}

impl PerfMap {
    /// The map of a process; nothing is read yet.
    pub(crate) fn new(pid: Pid) -> Self {
        let own_pid = innermost_tid(pid, Tid(pid.0)).ok();
        Self {
            path: own_pid.map(|own_pid| {
                let door = door(pid);
                format!("/proc/{door}/root/tmp/perf-{own_pid}.map")
            }),
            uid: fs::metadata(format!("/proc/{pid}"))
                .ok()
                .map(|metadata| metadata.uid()),
            checked: None,
            bytes: 0,
            text: String::new(),
            functions: Vec::new(),
        }
    }

    /// Reads the map again if it has grown; looks at most once a second. Returns whether names may
    /// have changed.
    pub(super) fn refresh(&mut self) -> bool {
        let now = Instant::now();
        let is_early = |last| now.duration_since(last) < CHECK_INTERVAL;
        if self.path.is_none() || self.checked.is_some_and(is_early) {
            return false;
        }
        self.checked = Some(now);
        self.read().unwrap_or(false)
    }

    /// The function at an address.
    pub(crate) fn find(&self, address: u64) -> Option<&str> {
        let after = self
            .functions
            .partition_point(|function| function.code.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let is_inside = function.code.contains(&address);
        is_inside.then(|| &self.text[function.name.clone()])
    }

    fn read(&mut self) -> Result<bool, Error> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(self.path.as_deref().unwrap_or_default())?;
        let metadata = file.metadata()?;
        let is_trusted = metadata.uid() == 0 || Some(metadata.uid()) == self.uid;
        if !metadata.is_file() || !is_trusted || metadata.size() == self.bytes {
            return Ok(false);
        }
        self.bytes = metadata.size();
        self.parse(&read_bounded(&file)?);
        Ok(true)
    }

    pub(crate) fn parse(&mut self, bytes: &[u8]) {
        self.text = String::from_utf8_lossy(bytes).into_owned();
        let start = self.text.as_ptr() as usize;
        let parsed = self.text.lines().filter_map(|line| {
            let (address, rest) = line.split_once(' ')?;
            let (size, name) = rest.split_once(' ')?;
            let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?;
            let size = u64::from_str_radix(size.trim_start_matches("0x"), 16).ok()?;
            let name_start = name.as_ptr() as usize - start;
            Some(Function {
                code: address..address.checked_add(size)?,
                name: name_start..name_start + name.len(),
            })
        });
        self.functions = parsed.collect();
        // Code that took the place of other code is described later: of several functions with one
        // address the last one holds. The sort is stable.
        self.functions.sort_by_key(|function| function.code.start);
    }
}

fn read_bounded(file: &File) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    // The last line may still be written.
    let end = bytes.iter().rposition(|&byte| byte == b'\n');
    bytes.truncate(end.map_or(0, |end| end + 1));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that functions are found by address, that a later description replaces an earlier one,
    /// and that bad lines are skipped.
    #[test]
    fn functions_are_found() {
        let mut map = PerfMap::new(Pid(std::process::id()));
        map.parse(
            concat!(
                "2000 10 second with spaces\n",
                "1000 10 first\n",
                "zz 10 bad\n",
                "\n",
                "3000\n",
                "ffffffffffffffff 10 wraps\n",
                "0x4000 0x8 prefixed\n",
                "1000 20 first, recompiled\n",
            )
            .as_bytes(),
        );
        assert_eq!(map.find(0x1000), Some("first, recompiled"));
        assert_eq!(map.find(0x101f), Some("first, recompiled"));
        assert_eq!(map.find(0x1020), None);
        assert_eq!(map.find(0x2008), Some("second with spaces"));
        assert_eq!(map.find(0x4007), Some("prefixed"));
        assert_eq!(map.find(0xfff), None);
        assert_eq!(map.find(u64::MAX), None);
    }

    /// Check that a map is read from where the runtime writes it, up to its last whole line, and that
    /// a link in its place is not followed.
    #[test]
    fn a_map_is_read_from_the_process() {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        fs::write(&path, "1000 10 whole\n2000 10 hal").unwrap();
        let mut map = PerfMap::new(Pid(std::process::id()));
        assert!(map.refresh());
        assert_eq!(map.find(0x1000), Some("whole"));
        assert_eq!(map.find(0x2000), None);
        assert!(!map.refresh(), "too soon");

        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        let mut map = PerfMap::new(Pid(std::process::id()));
        assert!(!map.refresh());
        fs::remove_file(&path).unwrap();
    }
}
