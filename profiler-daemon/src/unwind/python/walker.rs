//! Remembers where each thread's state is, so that a walk need not search the list of threads.

use std::hash::Hash;
use std::io::Error;
use std::num::NonZeroUsize;

use lru::LruCache;
use profiler_common::{PythonOffsets, tstate_offset};

use super::extend;
use crate::model::{ProcessKey, PythonChain, Tid};
use crate::process::ReadMemory;
use crate::process::page_cache::PageCache;
use crate::process::python::{
    PythonRuntime, Suits, ThreadIds, ThreadState, find_thread, innermost_tid,
};

/// Threads whose state's address is remembered.
const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Walks frames and remembers where each thread's state is.
pub struct PythonWalker {
    tstates: LruCache<(ProcessKey, u32), u64>,
    native_tids: LruCache<(ProcessKey, Tid), u32>,
}

impl Default for PythonWalker {
    fn default() -> Self {
        Self {
            tstates: LruCache::new(THREADS_MAX),
            native_tids: LruCache::new(THREADS_MAX),
        }
    }
}

impl PythonWalker {
    /// The frames of the thread with this id on the host. Reads the thread's other id from `/proc`
    /// once and remembers it. `thread_pointer` is 0 if unknown.
    pub fn walk_thread(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        tid: Tid,
        thread_pointer: u64,
    ) -> PythonChain {
        let key = (runtime.process, tid);
        let native_tid = match self.native_tids.get(&key) {
            Some(&native_tid) => native_tid,
            None => match innermost_tid(runtime.process.pid, tid) {
                Ok(native_tid) => native_tid,
                Err(error) => {
                    tracing::trace!(pid = %runtime.process, %tid, %error, "no thread id");
                    return PythonChain {
                        no_thread: true,
                        partial: true,
                        ..PythonChain::default()
                    };
                }
            },
        };
        let ids = ThreadIds {
            native_tid,
            thread_pointer,
        };
        let chain = self.walk_by(memory, runtime, ids);
        if chain.no_thread {
            // The id may now be another thread's: ask again next time.
            self.native_tids.pop(&key);
        } else {
            self.native_tids.put(key, native_tid);
        }
        chain
    }

    /// The frames of the thread with this id *in its own pid namespace*
    /// ([`crate::process::python::innermost_tid`]).
    pub fn walk(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        native_tid: u32,
    ) -> PythonChain {
        let ids = ThreadIds {
            native_tid,
            thread_pointer: 0,
        };
        self.walk_by(memory, runtime, ids)
    }

    pub(super) fn walk_by(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        ids: ThreadIds,
    ) -> PythonChain {
        let memory = &PageCache::new(memory);
        let mut chain = PythonChain::default();
        match self.first_frame(memory, runtime, ids) {
            Ok(Some(first)) => {
                chain.next = first;
                extend(memory, runtime, &mut chain);
            }
            Ok(None) => chain.no_thread = true,
            Err(error) => {
                tracing::trace!(pid = %runtime.process, ids.native_tid, %error, "no PyThreadState");
                chain.no_thread = true;
                chain.partial = true;
            }
        }
        chain
    }

    /// Address of the thread's innermost frame, 0 if it runs no Python code; `None` if the
    /// interpreter does not know the thread.
    fn first_frame(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        ids: ThreadIds,
    ) -> Result<Option<u64>, Error> {
        let offsets = &runtime.offsets;
        let key = (runtime.process, ids.native_tid);
        if let Some(&address) = self.tstates.get(&key) {
            if let Some(state) = revisit(memory, offsets, address, ids) {
                return state.first_frame(memory, offsets).map(Some);
            }
            self.tstates.pop(&key);
        }
        let Some(state) = find_thread(memory, runtime.runtime, offsets, ids)? else {
            return Ok(None);
        };
        self.tstates.put(key, state.address);
        state.first_frame(memory, offsets).map(Some)
    }

    /// Drops what is remembered about a process.
    pub fn forget(&mut self, process: ProcessKey) {
        drop_keys(&mut self.tstates, |&(of, _)| of == process);
        drop_keys(&mut self.native_tids, |&(of, _)| of == process);
    }
}

fn drop_keys<K: Copy + Hash + Eq, V>(cache: &mut LruCache<K, V>, is_gone: impl Fn(&K) -> bool) {
    let gone: Vec<K> = cache.iter().map(|(&key, _)| key).filter(is_gone).collect();
    for key in gone {
        cache.pop(&key);
    }
}

/// The thread state at a remembered address, if it still is that thread's. Threads that enter Python
/// from C for each call get a new state each time; the old one's memory keeps its id for a while,
/// but is no longer in the list.
fn revisit(
    memory: &dyn ReadMemory,
    offsets: &PythonOffsets,
    address: u64,
    ids: ThreadIds,
) -> Option<ThreadState> {
    let state = ThreadState::read(memory, offsets, address).ok()?;
    // An idle state may mean that the thread is busy in another interpreter: look again.
    let suits = ids.suit(memory, offsets, &state)?;
    if !matches!(suits, Suits::Fully | Suits::ByPointer) {
        return None;
    }
    let previous = memory
        .read_u64(address.checked_add(tstate_offset::PREV)?)
        .ok()?;
    let link = if previous == 0 {
        state
            .interpreter
            .checked_add(offsets.interp_threads_head.into())?
    } else {
        previous.checked_add(offsets.tstate_next.into())?
    };
    (memory.read_u64(link).ok()? == address).then_some(state)
}
