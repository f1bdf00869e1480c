//! A process that is being profiled: its memory, its mappings, its interpreter.
//!
//! In:  a process id
//! Out: [`Process`], to [`crate::unwind`] and [`crate::symbolize`]
//! Lost: nothing

use std::io::{Error, ErrorKind};
use std::time::{Duration, Instant};

use super::procfs::Procfs;
use super::python::PythonRuntime;
use super::{Mappings, ProcessMemory};
use crate::model::{Pid, ProcessKey};

/// Least time between two readings of a process's mappings. Parsing them takes 60 to 160 us, and a
/// stack of garbage would ask for it with every address.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);

/// A process that is being profiled.
#[derive(Debug)]
pub struct Process {
    /// Which one it is.
    pub key: ProcessKey,
    /// Reader of its memory.
    pub memory: ProcessMemory,
    /// Its executable mappings when they were last read.
    pub mappings: Mappings,
    /// Its CPython interpreter, if it has one.
    pub python: Option<PythonRuntime>,
    refreshed: Option<Instant>,
}

impl Process {
    /// Looks at the process that has an id. The interpreter is looked for elsewhere
    /// ([`PythonRuntime::detect`](super::python::PythonRuntime::detect)).
    ///
    /// # Errors
    ///
    /// Its mappings cannot be read: it is gone or belongs to someone else.
    pub fn open(pid: Pid) -> Result<Self, Error> {
        Self::open_same(Procfs::default().key(pid)?)
    }

    /// Looks at a process that was seen before.
    ///
    /// # Errors
    ///
    /// As for [`Self::open`]; or another process has its id.
    pub fn open_same(key: ProcessKey) -> Result<Self, Error> {
        let mappings = Mappings::read(key.pid)?;
        // Asked afterwards: they were read of the process that had the id until here.
        if Procfs::default().key(key.pid)? == key {
            Ok(Self::with_mappings(key, mappings))
        } else {
            let text = format!("process {key} has ended; another one has its id");
            Err(Error::new(ErrorKind::NotFound, text))
        }
    }

    /// A process whose mappings are already known.
    #[must_use]
    pub fn with_mappings(key: ProcessKey, mappings: Mappings) -> Self {
        Self {
            key,
            memory: ProcessMemory::new(key.pid),
            mappings,
            python: None,
            refreshed: None,
        }
    }

    /// Reads the mappings again because an address was in none of them: a library was loaded or code
    /// was generated. Returns whether they changed. Does nothing if the last time was less than
    /// 100 ms ago; keeps what is known if the process is gone.
    pub fn refresh_mappings(&mut self) -> bool {
        let now = Instant::now();
        if self
            .refreshed
            .is_some_and(|last| now.duration_since(last) < REFRESH_INTERVAL)
        {
            return false;
        }
        self.refreshed = Some(now);
        match Mappings::read(self.key.pid) {
            // A process that is exiting has no mappings any more.
            Ok(read) if read.as_slice().is_empty() => false,
            Ok(read) if read.as_slice() == self.mappings.as_slice() => false,
            Ok(read) => {
                self.mappings = read;
                true
            }
            Err(error) => {
                tracing::debug!(pid = %self.key, %error, "mappings are kept as they were");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a list that lacks our code is replaced once, and that the generation tells.
    #[test]
    fn an_old_list_is_refreshed_once() {
        let empty = Mappings::parse(&b""[..]).unwrap();
        let own = Procfs::default().key(Pid(std::process::id())).unwrap();
        let mut process = Process::with_mappings(own, empty);
        let generation = process.mappings.generation();
        let here = an_old_list_is_refreshed_once as *const () as u64;
        assert!(process.mappings.find(here).is_none());
        assert!(process.refresh_mappings());
        assert!(process.mappings.find(here).is_some());
        assert_ne!(process.mappings.generation(), generation);
        assert!(!process.refresh_mappings(), "too soon");
    }

    /// Check that the mappings outlive the process.
    #[test]
    fn mappings_outlive_the_process() {
        let line = &b"1000-2000 r-xp 00000000 fe:00 7 /x\n"[..];
        let gone = ProcessKey {
            pid: Pid(u32::MAX),
            start_ticks: 0,
        };
        let mut process = Process::with_mappings(gone, Mappings::parse(line).unwrap());
        assert!(!process.refresh_mappings());
        assert!(process.mappings.find(0x1000).is_some());
        assert!(Process::open(Pid(u32::MAX)).is_err());
    }

    /// Check that a process is not taken for one that had its id before.
    #[test]
    fn another_process_with_the_id_is_not_opened() {
        let own = Procfs::default().key(Pid(std::process::id())).unwrap();
        assert_eq!(Process::open_same(own).unwrap().key, own);
        let before = ProcessKey {
            start_ticks: own.start_ticks - 1,
            ..own
        };
        let error = Process::open_same(before).unwrap_err();
        assert!(
            error.to_string().contains("another one has its id"),
            "{error}"
        );
    }
}
