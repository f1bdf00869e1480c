//! Reads the files of a process under /proc, with bounds.
//!
//! In:  `/proc/PID/{stat,cmdline,environ,cgroup,exe}`, see proc(5)
//! Out: the few fields that discovery needs
//! Lost: what is beyond a bound; a process may make its command line and environment as long as it
//!       likes

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::patience;
use super::stand_in::{self, door};
use crate::model::{Pid, ProcessKey};

/// A command line longer than this is cut; the program and script stand at its beginning.
const COMMAND_MAX_BYTES: u64 = 16 << 10;
/// An environment longer than this is cut. `execve` allows 2 MiB and more.
const ENVIRON_MAX_BYTES: u64 = 256 << 10;
/// Bounds of the short files.
const STAT_MAX_BYTES: u64 = 4 << 10;
const CGROUP_MAX_BYTES: u64 = 16 << 10;
/// More than `status` has.
const STATUS_MAX_BYTES: u64 = 16 << 10;

/// `PF_KTHREAD`, <https://github.com/torvalds/linux/blob/v6.12/include/linux/sched.h#L1674>.
const PF_KTHREAD: u64 = 0x0020_0000;

/// What identifies a program in execution, from `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `comm`: at most 15 bytes, set by exec to the file name, and by the process to anything.
    pub name: String,
    /// `starttime` in clock ticks since boot: with the pid it names a process.
    pub start_ticks: u64,
    /// `startstack`: where the stack began. It is random per exec, so with the name it tells one
    /// program of a process from the next; 0 without the right to look.
    pub start_stack: u64,
    /// The state is zombie or dead: there is no memory any more, unless other threads live on
    /// ([`super::stand_in`]).
    pub is_dead: bool,
    /// It is a thread of the kernel.
    pub is_kernel: bool,
}

impl Stat {
    /// The process that it was read of.
    #[must_use]
    pub fn key(&self, pid: Pid) -> ProcessKey {
        ProcessKey {
            pid,
            start_ticks: self.start_ticks,
        }
    }

    /// Whether it is of the same process, which has not executed another program.
    #[must_use]
    pub fn is_same_program(&self, other: &Self) -> bool {
        let of = |stat: &Self| (stat.start_ticks, stat.start_stack);
        of(self) == of(other)
    }

    /// When it started, as time since the host did.
    #[must_use]
    pub fn start_after_boot(&self) -> Duration {
        // Linux tells all its ABIs 100 ticks a second: `USER_HZ`.
        Duration::from_millis(self.start_ticks.saturating_mul(10))
    }
}

/// The inode of a process's folder in /proc; listing /proc tells it at no cost. The next process with the same id
/// gets a new one (`proc_pid_make_inode`, <https://github.com/torvalds/linux/blob/v6.12/fs/proc/base.c>). A process
/// that lives on gets a new one as well when the kernel was short of memory: after a change `stat` has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcFolder(u64);

/// The /proc to read, another one in tests.
#[derive(Clone, Debug)]
pub struct Procfs {
    root: PathBuf,
}

impl Default for Procfs {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl Procfs {
    /// A procfs that is mounted at `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a file of a process; of one whose main thread has left, as another thread shows it.
    #[must_use]
    pub fn path(&self, pid: Pid, file: &str) -> PathBuf {
        self.own_path(door(pid), file)
    }

    /// Path of a file of the process's main thread, dead or alive.
    #[must_use]
    pub fn own_path(&self, pid: Pid, file: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(file)
    }

    /// All process ids with their folders, in no order.
    ///
    /// # Errors
    ///
    /// The root cannot be read.
    pub fn pids(&self) -> io::Result<Vec<(Pid, ProcFolder)>> {
        let entries = std::fs::read_dir(&self.root)?;
        let found = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((Pid(pid), ProcFolder(entry.ino())))
        });
        Ok(found.collect())
    }

    /// The key of the process that has an id now.
    ///
    /// # Errors
    ///
    /// As for [`Self::stat`].
    pub fn key(&self, pid: Pid) -> io::Result<ProcessKey> {
        Ok(self.stat(pid)?.key(pid))
    }

    /// Whether a process still has its id. One that has ended keeps it until its parent has waited for it.
    #[must_use]
    pub fn has(&self, process: ProcessKey) -> bool {
        let pid = process.pid;
        self.stat(pid).is_ok_and(|stat| {
            let lives = !stat.is_dead || stand_in::lives_on(self, pid);
            lives && stat.key(pid) == process
        })
    }

    /// `stat` of a process: of its main thread, whose start is the process's.
    ///
    /// # Errors
    ///
    /// The process is gone, or the text is not what proc(5) says.
    pub fn stat(&self, pid: Pid) -> io::Result<Stat> {
        let bytes = read_bounded(&self.own_path(pid, "stat"), STAT_MAX_BYTES)?;
        parse_stat(&String::from_utf8_lossy(&bytes))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of stat"))
    }

    /// The parent of a process, 0 if it has none in this pid namespace.
    ///
    /// # Errors
    ///
    /// As for [`Self::stat`].
    pub fn parent(&self, pid: Pid) -> io::Result<Pid> {
        let bytes = read_bounded(&self.path(pid, "stat"), STAT_MAX_BYTES)?;
        parse_parent(&String::from_utf8_lossy(&bytes))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of stat"))
    }

    /// Time that the threads of a process have spent in the kernel, in clock ticks.
    ///
    /// # Errors
    ///
    /// As for [`Self::stat`].
    pub fn system_ticks(&self, pid: Pid) -> io::Result<u64> {
        let bytes = read_bounded(&self.own_path(pid, "stat"), STAT_MAX_BYTES)?;
        parse_system_ticks(&String::from_utf8_lossy(&bytes))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of stat"))
    }

    /// Target of the `exe` link, without the mark of a deleted file.
    ///
    /// # Errors
    ///
    /// The process is gone, has no memory, or may not be read.
    pub fn exe(&self, pid: Pid) -> io::Result<PathBuf> {
        let path = std::fs::read_link(self.path(pid, "exe"))?;
        match path
            .to_str()
            .and_then(|path| path.strip_suffix(" (deleted)"))
        {
            Some(path) => Ok(PathBuf::from(path)),
            None => Ok(path),
        }
    }

    /// The arguments, cut at a bound; what is not UTF-8 is replaced.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn command(&self, pid: Pid) -> io::Result<Vec<String>> {
        let bytes = self.read_patiently(pid, "cmdline", COMMAND_MAX_BYTES)?;
        let mut arguments: Vec<String> = bytes
            .split(|&byte| byte == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        // Arguments end with a zero byte; a rewritten title is padded with them.
        while arguments.last().is_some_and(String::is_empty) {
            arguments.pop();
        }
        Ok(arguments)
    }

    /// Variables of the environment the process was started with, those that `is_wanted` takes.
    ///
    /// # Errors
    ///
    /// The process is gone or may not be read.
    pub fn environ(
        &self,
        pid: Pid,
        is_wanted: impl Fn(&str) -> bool,
    ) -> io::Result<Vec<(String, String)>> {
        let bytes = self.read_patiently(pid, "environ", ENVIRON_MAX_BYTES)?;
        let entries = bytes.split(|&byte| byte == 0);
        let pairs = entries.filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='));
        let wanted = pairs.filter(|(name, value)| is_wanted(name) && !value.trim().is_empty());
        Ok(wanted
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect())
    }

    /// The first `max_bytes` of a file for which the kernel needs a lock that the process may hold for as long as it likes:
    /// that of its address space, or of one of its descriptors.
    ///
    /// # Errors
    ///
    /// The process is gone, may not be read, or does not let itself be read.
    pub(super) fn read_patiently(
        &self,
        pid: Pid,
        file: &str,
        max_bytes: u64,
    ) -> io::Result<Vec<u8>> {
        let path = self.path(pid, file);
        patience::look(pid, move || read_bounded(&path, max_bytes))?
    }

    /// The first `max_bytes` of a file that the kernel writes without waiting for the process.
    ///
    /// # Errors
    ///
    /// The process is gone or may not be read.
    pub fn text(&self, pid: Pid, file: &str, max_bytes: u64) -> io::Result<String> {
        let bytes = read_bounded(&self.path(pid, file), max_bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Effective user of a process, as we see it; `None` if the process is gone. The owner of `/proc/PID` would be root
    /// where a process may not be dumped.
    pub(crate) fn effective_uid(&self, pid: Pid) -> Option<u32> {
        let status = self.text(pid, "status", STATUS_MAX_BYTES).ok()?;
        // Uid: real effective saved file-system
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        ids.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    /// Text of `cgroup`.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn cgroup(&self, pid: Pid) -> io::Result<String> {
        self.text(pid, "cgroup", CGROUP_MAX_BYTES)
    }
}

fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    // Most of these files are read whole by the first call then.
    let mut bytes = Vec::with_capacity(1024);
    File::open(path)?.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `PID (comm) state ...`: comm may hold blanks and parentheses, so the last one ends it.
pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    // Field numbers of proc(5) count from 1 and begin with the pid; `tail` begins with field 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        name: name.to_owned(),
        start_ticks: number(22)?,
        start_stack: number(28)?,
        is_dead: matches!(*fields.first()?, "Z" | "X" | "x"),
        is_kernel: number(9)? & PF_KTHREAD != 0,
    })
}

/// Field 4, `ppid`.
fn parse_parent(text: &str) -> Option<Pid> {
    let (_, tail) = text.rsplit_once(')')?;
    tail.split_ascii_whitespace().nth(1)?.parse().ok().map(Pid)
}

/// Field 15, `stime`.
fn parse_system_ticks(text: &str) -> Option<u64> {
    let (_, tail) = text.rsplit_once(')')?;
    tail.split_ascii_whitespace().nth(12)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the fields, with a name that tries to look like the end of the name.
    #[test]
    fn stat_survives_any_name() {
        let text = "77 (a) S 1 (b) R 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 10 11 12 13 140000 15";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.name, "a) S 1 (b");
        assert_eq!((stat.start_ticks, stat.start_stack), (4242, 140_000));
        assert!(!stat.is_dead && !stat.is_kernel);
        assert_eq!(parse_parent(text), Some(Pid(1)));
        assert_eq!(parse_system_ticks(text), Some(6));
        for bad in ["", "1", "1 (a)", "1 (a) R", ")("] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
            assert_eq!(parse_parent(bad), None, "{bad:?}");
        }
    }

    /// Check what we read about ourselves.
    #[test]
    fn we_can_read_ourselves() {
        let procfs = Procfs::default();
        let pid = Pid(std::process::id());
        assert!(procfs.pids().unwrap().iter().any(|&(it, _)| it == pid));
        let stat = procfs.stat(pid).unwrap();
        assert!(stat.start_ticks > 0 && stat.start_stack > 0 && !stat.is_kernel);
        assert_eq!(procfs.exe(pid).unwrap(), std::env::current_exe().unwrap());
        assert_eq!(
            procfs.command(pid).unwrap()[0],
            std::env::args().next().unwrap()
        );
        let path = procfs.environ(pid, |name| name == "PATH").unwrap();
        assert_eq!(path[0].1, std::env::var("PATH").unwrap());
        assert_eq!(
            procfs.parent(pid).unwrap(),
            Pid(std::os::unix::process::parent_id())
        );
        assert!(procfs.stat(Pid(u32::MAX)).is_err());
    }
}
