//! Typed handles of the maps, and the errors of reading and writing them.

use std::borrow::Borrow;
use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use aya::{Ebpf, Pod, util::nr_cpus};
use profiler_common::{
    Conn, ConnKey, FILTER_LEN, KERNEL_COUNTERS, KernelCounter, PartialHead, PythonProcess,
    PythonThread, Rule, Target, ThreadState, ThreadTag, Ticks,
};

use super::error::KernelError;

/// A hash map whose errors name it.
pub(super) struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let map = take(ebpf, name)?
            .try_into()
            .map_err(|source| KernelError::Map { name, source })?;
        Ok(Self { name, map })
    }

    /// A second handle of a map that is not taken yet, for another thread.
    pub(super) fn second(ebpf: &Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let failed = error(name);
        let map = ebpf.map(name).ok_or(KernelError::Absent(name))?;
        let Map::HashMap(data) = map else {
            return Err(KernelError::Absent(name));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let data = MapData::from_fd(fd.map_err(|error| failed(error.into()))?).map_err(&failed)?;
        let map = Map::HashMap(data).try_into().map_err(failed)?;
        Ok(Self { name, map })
    }

    /// The value, `None` if the key is absent.
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, KernelError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(self.error(source)),
        }
    }

    pub(super) fn insert(&mut self, key: K, value: impl Borrow<V>) -> Result<(), KernelError> {
        self.map
            .insert(key, value, 0)
            .map_err(|source| self.error(source))
    }

    /// Removes a key; absent is as good as removed.
    pub(super) fn remove(&mut self, key: &K) -> Result<(), KernelError> {
        match self.map.remove(key) {
            Err(error) if !is_absent(&error) => Err(self.error(error)),
            _ => Ok(()),
        }
    }

    /// All entries. Entries that change meanwhile may be missed or seen twice.
    pub(super) fn entries(&self) -> Vec<(K, V)> {
        self.map.iter().filter_map(Result::ok).collect()
    }

    /// Removes the entries for which `matches` holds.
    pub(super) fn remove_if(
        &mut self,
        mut matches: impl FnMut(&K, &V) -> bool,
    ) -> Result<(), KernelError> {
        for (key, value) in self.entries() {
            if matches(&key, &value) {
                self.remove(&key)?;
            }
        }
        Ok(())
    }

    fn error(&self, source: MapError) -> KernelError {
        KernelError::Map {
            name: self.name,
            source,
        }
    }
}

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(nix::libc::ENOENT),
        _ => false,
    }
}

/// An array in front of a hash map, see [`FILTER_LEN`].
struct Filter {
    name: &'static str,
    map: Array<MapData, u32>,
}

impl Filter {
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let map = take(ebpf, name)?.try_into().map_err(error(name))?;
        Ok(Self { name, map })
    }

    /// Tells the programs that an id may be in the map.
    fn note(&mut self, id: u32) -> Result<(), KernelError> {
        self.set(id % FILTER_LEN, 1)
    }

    /// Tells them that none is.
    fn clear(&mut self) -> Result<(), KernelError> {
        for index in 0..FILTER_LEN {
            if self.map.get(&index, 0).map_err(error(self.name))? != 0 {
                self.set(index, 0)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, index: u32, value: u32) -> Result<(), KernelError> {
        self.map.set(index, value, 0).map_err(error(self.name))
    }
}

/// Every map the daemon touches.
pub(super) struct Maps {
    pub(super) targets: Table<u32, Target>,
    pub(super) conns: Table<ConnKey, Conn>,
    pub(super) partial_heads: Table<ConnKey, PartialHead>,
    pub(super) cancels: Table<u64, u32>,
    pub(super) tags: Table<u32, ThreadTag>,
    pub(super) states: Table<u32, ThreadState>,
    pub(super) python: Table<u32, PythonProcess>,
    pub(super) python_threads: Table<u32, PythonThread>,
    rules: Array<MapData, Rule>,
    request_wakeup: Array<MapData, u32>,
    ticks: Array<MapData, Ticks>,
    counters: PerCpuArray<MapData, u64>,
    tagged_tids: Filter,
    target_tgids: Filter,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    ///
    /// A map is missing or of another type: daemon and object do not fit each other.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            targets: Table::take(ebpf, "TARGETS")?,
            conns: Table::take(ebpf, "CONNS")?,
            partial_heads: Table::take(ebpf, "PARTIAL_HEADS")?,
            cancels: Table::take(ebpf, "CANCELS")?,
            tags: Table::take(ebpf, "THREAD_TAGS")?,
            states: Table::take(ebpf, THREAD_STATES)?,
            python: Table::take(ebpf, "PYTHON_PROCS")?,
            python_threads: Table::take(ebpf, "PYTHON_THREADS")?,
            rules: take(ebpf, RULES)?.try_into().map_err(error(RULES))?,
            request_wakeup: take(ebpf, REQUEST_WAKEUP)?
                .try_into()
                .map_err(error(REQUEST_WAKEUP))?,
            ticks: take(ebpf, TICKS)?.try_into().map_err(error(TICKS))?,
            tagged_tids: Filter::take(ebpf, "TAGGED_TIDS")?,
            target_tgids: Filter::take(ebpf, "TARGET_TGIDS")?,
            counters: take(ebpf, COUNTERS)?.try_into().map_err(error(COUNTERS))?,
        })
    }

    pub(super) fn rule(&self, slot: u32) -> Result<Rule, KernelError> {
        self.rules.get(&slot, 0).map_err(error(RULES))
    }

    pub(super) fn set_rule(&mut self, slot: u32, rule: &Rule) -> Result<(), KernelError> {
        self.rules.set(slot, rule, 0).map_err(error(RULES))
    }

    pub(super) fn set_request_wakeup(&mut self, bytes: u32) -> Result<(), KernelError> {
        self.request_wakeup
            .set(0, bytes, 0)
            .map_err(error(REQUEST_WAKEUP))
    }

    pub(super) fn set_ticks(&mut self, ticks: Ticks) -> Result<(), KernelError> {
        self.ticks.set(0, ticks, 0).map_err(error(TICKS))
    }

    /// Tells the programs that a process may be in the target set.
    pub(super) fn note_target(&mut self, tgid: u32) -> Result<(), KernelError> {
        self.target_tgids.note(tgid)
    }

    /// The sum over all CPUs.
    pub(super) fn counter(&self, slot: u32, counter: KernelCounter) -> Result<u64, KernelError> {
        let values = self
            .counters
            .get(&(slot * KERNEL_COUNTERS + counter as u32), 0)
            .map_err(error(COUNTERS))?;
        Ok(values.iter().sum())
    }

    pub(super) fn reset_counters(&mut self, slot: u32) -> Result<(), KernelError> {
        let cpus = nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?;
        for counter in KernelCounter::ALL {
            let zero =
                PerCpuValues::try_from(vec![0; cpus]).map_err(|source| KernelError::Cpus {
                    path: "/sys/devices/system/cpu/possible",
                    source,
                })?;
            self.counters
                .set(slot * KERNEL_COUNTERS + counter as u32, zero, 0)
                .map_err(error(COUNTERS))?;
        }
        Ok(())
    }

    /// Forgets connections, tags and cancellations: what has no meaning once detached.
    pub(super) fn clear_requests(&mut self) -> Result<(), KernelError> {
        self.tags.remove_if(|_, _| true)?;
        self.states.remove_if(|_, _| true)?;
        self.tagged_tids.clear()?;
        self.conns.remove_if(|_, _| true)?;
        self.partial_heads.remove_if(|_, _| true)?;
        self.cancels.remove_if(|_, _| true)
    }
}

pub(super) const THREAD_STATES: &str = "THREAD_STATES";
const RULES: &str = "RULES";
const REQUEST_WAKEUP: &str = "REQUEST_WAKEUP";
const TICKS: &str = "TICKS";
const COUNTERS: &str = "COUNTERS";

/// A ring buffer by name.
pub(super) fn take_ring(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<RingBuf<MapData>, KernelError> {
    take(ebpf, name)?.try_into().map_err(error(name))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Absent(name))
}

fn error(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { name, source }
}
