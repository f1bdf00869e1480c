//! The processes that are watched: added by a command or by a fork of their parent, removed when they end.
//!
//! In:  commands; fork, exec and exit events
//! Out: targets of the tracker and of the kernel side; [`Work`] about processes
//! Lost: nothing. After lost events every process is looked for in /proc ([`Capture::recheck_processes`])
//!
//! The kernel side names a process by its id, and an id is used again. What an id means here changes with the
//! events and commands about it:
//!
//! ```text
//!  process 7    ──fork──────────exit          ──start──────────────────────exit
//!  ring           Fork          Exit                                       Exit
//!  commands                                             Watch
//!  read                                                           Exit: older than the target, the first 7's
//!  7 means        the first 7 ─────────────────────────│ the second 7 ─────────────│
//! ```

use std::collections::HashSet;
use std::sync::Arc;

use super::clock::now_ktime_ns;
use super::{Capture, Live, NewTarget, Work};
use crate::model::{LeftOut, Pid, ProcessKey, RequestEvent, TaskSlot, Tid};
use crate::process::procfs::Procfs;
use crate::request::Action;

/// A process that has an id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    process: ProcessKey,
    /// Events about the id that are older are another process's.
    since_ktime_ns: u64,
}

/// A process that is not what it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed {
    process: ProcessKey,
    /// It runs another program; else it is gone.
    lives: bool,
}

/// Whether the id of a process is another one's by now, which the kernel side may have added at its fork.
fn has_left_its_id(process: ProcessKey) -> bool {
    let now = Procfs::default().key(process.pid);
    now.is_ok_and(|now| now != process)
}

impl Capture {
    /// Has what stacks of a process need read, before any of its requests is seen.
    pub(super) fn add_target(&mut self, target: NewTarget) {
        if let Some(live) = self.live.get_mut(&target.slot) {
            live.targets.insert(target.process);
            self.send(Work::Target(target));
        }
    }

    /// Watches a process for a task, unless one of them has ended meanwhile. What naming its stacks needs has been read
    /// by now: the first one is named while what it names is still there.
    pub(super) fn watch(&mut self, target: NewTarget) {
        let NewTarget {
            slot,
            process,
            service,
            python,
            python_threads,
            has_agent,
            program: _,
        } = target;
        let is_target = |live: &Live| live.targets.contains(&process);
        if !self.live.get(&slot).is_some_and(is_target) {
            return;
        }
        let pid = process.pid;
        let mut actions = Vec::new();
        let before = self.take_over(process, now_ktime_ns(), &mut actions);
        self.act(actions);
        self.forget(before);
        let record = python.as_ref().map(|python| python.to_kernel());
        self.kernel_do(|kernel| {
            kernel.set_python(pid, record.as_ref())?;
            kernel.set_python_threads(&python_threads)?;
            kernel.add_target(pid, slot)?;
            if has_agent {
                kernel.ship_outbound(pid)?;
            }
            Ok(())
        });
        // From here on its exit is reported. If it ended before, another process may have its id.
        if !Procfs::default().has(process) {
            self.kernel_do(|kernel| kernel.remove_target(pid, slot));
            if let Some(live) = self.live.get_mut(&slot) {
                live.targets.remove(&process);
            }
            self.unwatch(HashSet::from([process]));
            return;
        }
        self.tracker.add_target(slot, process, service);
        match python {
            Some(python) => self.runtimes.insert(process, python),
            None => self.runtimes.remove(&process),
        };
        // Its requests are seen from here on.
        tracing::debug!(tgid = pid.0, "process watched");
    }

    /// Takes note of a fork, an exec or an exit. Yields a process that is not what it was.
    pub(super) fn on_process_event(
        &mut self,
        event: &RequestEvent,
        actions: &mut Vec<Action>,
    ) -> Option<Changed> {
        match *event {
            RequestEvent::Fork {
                parent,
                tid,
                child,
                ktime_ns,
            } => {
                let parent = self.process_at(parent, ktime_ns)?;
                self.tracker.on_fork(parent, tid);
                self.on_fork(parent, child, ktime_ns, actions)
            }
            RequestEvent::Exec { pid, ktime_ns } => {
                let process = self.process_at(pid, ktime_ns)?;
                self.end_program(process, actions);
                Some(Changed {
                    process,
                    lives: true,
                })
            }
            RequestEvent::Exit { pid, ktime_ns } => {
                let process = self.process_at(pid, ktime_ns)?;
                Some(self.end_process(process, actions))
            }
            _ => None,
        }
    }

    fn on_fork(
        &mut self,
        parent: ProcessKey,
        child: Pid,
        ktime_ns: u64,
        actions: &mut Vec<Action>,
    ) -> Option<Changed> {
        // One that has ended cannot be asked for its start; until its exit is read, its parent's does as well.
        let child = Procfs::default().key(child).unwrap_or(ProcessKey {
            pid: child,
            ..parent
        });
        let before = self.take_over(child, ktime_ns, actions);
        let python = self.runtimes.get(&parent);
        let python = python.map(|python| Arc::new(python.for_child(child)));
        if let Some(python) = &python {
            self.runtimes.insert(child, Arc::clone(python));
        }
        for slot in self.tracker.add_child(parent, child) {
            if let Some(live) = self.live.get_mut(&slot) {
                live.targets.insert(child);
            }
        }
        self.send(Work::Forked(child, python));
        before
    }

    /// The process that had an id at an instant, as far as it is watched.
    fn process_at(&self, pid: Pid, ktime_ns: u64) -> Option<ProcessKey> {
        let watched = self.processes.get(&pid)?;
        (ktime_ns >= watched.since_ktime_ns).then_some(watched.process)
    }

    /// A process has its id since an instant. Yields the one that had it before, whose exit has not been read.
    fn take_over(
        &mut self,
        process: ProcessKey,
        since_ktime_ns: u64,
        actions: &mut Vec<Action>,
    ) -> Option<Changed> {
        let known = self.processes.get(&process.pid).copied();
        if known.is_some_and(|known| known.process == process) {
            return None;
        }
        let before = known.map(|known| self.end_process(known.process, actions));
        let watched = Watched {
            process,
            since_ktime_ns,
        };
        self.processes.insert(process.pid, watched);
        before
    }

    /// A process is gone.
    fn end_process(&mut self, process: ProcessKey, actions: &mut Vec<Action>) -> Changed {
        self.end_program(process, actions);
        self.tracker.remove_target(process);
        self.processes.remove(&process.pid);
        let slots = self.live.iter_mut();
        let slots = slots.filter_map(|(&slot, live)| live.targets.remove(&process).then_some(slot));
        let slots: Vec<TaskSlot> = slots.collect();
        let is_reused = has_left_its_id(process);
        for slot in slots.into_iter().filter(|_| !is_reused) {
            self.kernel_do(|kernel| kernel.remove_target(process.pid, slot));
        }
        Changed {
            process,
            lives: false,
        }
    }

    /// The program that a process ran is gone.
    fn end_program(&mut self, process: ProcessKey, actions: &mut Vec<Action>) {
        let pid = process.pid;
        let open = self.tracker.open().filter(|it| it.process == process);
        let threads: Vec<Tid> = open.map(|request| request.tid).collect();
        self.tracker
            .on_process_gone(process, now_ktime_ns(), actions);
        self.runtimes.remove(&process);
        self.memory.walker.forget(process);
        // Records of connections stay: they have the program's number, and are as good as none.
        let is_reused = has_left_its_id(process);
        self.kernel_do(|kernel| {
            for tid in threads {
                kernel.forget_thread(pid, tid)?;
            }
            if is_reused {
                Ok(())
            } else {
                kernel.set_python(pid, None)
            }
        });
    }

    /// Events were lost, ends of processes perhaps among them: looks for each.
    pub(super) fn recheck_processes(&mut self) {
        let procfs = Procfs::default();
        let known = self.processes.values().map(|watched| watched.process);
        let gone: Vec<ProcessKey> = known.filter(|&process| !procfs.has(process)).collect();
        for process in gone {
            let mut actions = Vec::new();
            let changed = self.end_process(process, &mut actions);
            self.act(actions);
            self.forget(Some(changed));
        }
    }

    /// A process does not let itself be read, or must not be profiled: nobody watches it any more.
    pub(super) fn leave_out_target(&mut self, pid: Pid, why: &LeftOut) {
        let Some(watched) = self.processes.get(&pid) else {
            return;
        };
        let process = watched.process;
        let mut actions = Vec::new();
        self.tracker.leave_out(process, why, &mut actions);
        self.act(actions);
        let slots = self.live.iter_mut();
        let slots = slots.filter_map(|(&slot, live)| live.targets.remove(&process).then_some(slot));
        for slot in slots.collect::<Vec<TaskSlot>>() {
            self.kernel_do(|kernel| kernel.remove_target(pid, slot));
        }
        self.unwatch(HashSet::from([process]));
    }

    /// Stops watching the processes of a task that no other task watches.
    pub(super) fn unwatch(&mut self, processes: HashSet<ProcessKey>) {
        for process in processes {
            if self.live.values().any(|it| it.targets.contains(&process)) {
                continue;
            }
            let watched = self.processes.get(&process.pid);
            if watched.is_some_and(|watched| watched.process == process) {
                self.processes.remove(&process.pid);
                self.kernel_do(|kernel| kernel.set_python(process.pid, None));
            }
            self.tracker.remove_target(process);
            self.runtimes.remove(&process);
            self.memory.walker.forget(process);
            let lives = false; // nobody has to look at it again
            self.forget(Some(Changed { process, lives }));
        }
    }

    /// Has forgotten what belongs to processes; after the work about their last requests.
    pub(super) fn forget(&self, changed: impl IntoIterator<Item = Changed>) {
        for Changed { process, lives } in changed {
            self.send(Work::ForgetProcess(process, lives));
        }
    }
}
