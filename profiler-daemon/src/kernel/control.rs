//! What the daemon writes for the programs: rules, processes to watch, threads and requests to drop.

use profiler_common::{
    LITERAL_MAX_BYTES, MAX_TASKS, PROGRAM_UNIT_BITS, PythonProcess, PythonThread, Rule, Target,
    cancel, rule_flag, target_flag,
};

use super::{Kernel, KernelError, monotonic_ns};
use crate::model::{EndpointRule, Pid, RequestId, TaskSlot, Tid};

impl Kernel {
    /// Makes a slot's rule live, counting from zero.
    ///
    /// # Errors
    ///
    /// The slot does not exist, the literal is too long, or the map refuses.
    pub fn set_rule(&mut self, slot: TaskSlot, rule: &EndpointRule) -> Result<(), KernelError> {
        check_slot(slot)?;
        let Some(kernel_rule) = rule.to_kernel() else {
            return Err(KernelError::Argument(format!(
                "a rule's literal has {} bytes; at most {LITERAL_MAX_BYTES} fit",
                rule.literal.len()
            )));
        };
        self.clear_rule(slot)?;
        self.maps.set_rule(slot.0, &kernel_rule)
    }

    /// Switches a slot between tagging and only counting its requests.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn set_count_only(&mut self, slot: TaskSlot, count_only: bool) -> Result<(), KernelError> {
        check_slot(slot)?;
        let mut rule = self.maps.rule(slot.0)?;
        if count_only {
            rule.flags |= rule_flag::COUNT_ONLY;
        } else {
            rule.flags &= !rule_flag::COUNT_ONLY;
        }
        self.maps.set_rule(slot.0, &rule)
    }

    /// Says how many unread bytes of request events wake the reader; with 0 each event does that finds it
    /// asleep. Whoever drains the ring at every dump period needs no more than to be told before it is full.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn set_request_wakeup(&mut self, bytes: u32) -> Result<(), KernelError> {
        if self.request_wakeup_bytes != bytes {
            self.maps.set_request_wakeup(bytes)?;
            self.request_wakeup_bytes = bytes;
        }
        Ok(())
    }

    /// Empties a slot: no request passes its rule any more, no process belongs to it, its counters
    /// are zero.
    ///
    /// # Errors
    ///
    /// The slot does not exist or a map refuses.
    pub fn clear_rule(&mut self, slot: TaskSlot) -> Result<(), KernelError> {
        check_slot(slot)?;
        self.maps.set_rule(slot.0, &Rule::EMPTY)?;
        self.maps.reset_counters(slot.0)
    }

    /// Adds a process to a slot's task.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn add_target(&mut self, pid: Pid, slot: TaskSlot) -> Result<(), KernelError> {
        check_slot(slot)?;
        let target = self.maps.targets.get(&pid.0)?.unwrap_or_else(|| Target {
            program: (monotonic_ns() >> PROGRAM_UNIT_BITS) as u32,
            ..Target::default()
        });
        let target = Target {
            task_mask: target.task_mask | 1 << slot.0,
            ..target
        };
        self.maps.note_target(pid.0)?;
        self.maps.targets.insert(pid.0, target)
    }

    /// Has calls shipped that a target's requests make themselves.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn ship_outbound(&mut self, pid: Pid) -> Result<(), KernelError> {
        let Some(target) = self.maps.targets.get(&pid.0)? else {
            return Ok(());
        };
        let target = Target {
            flags: target.flags | target_flag::AGENT,
            ..target
        };
        self.maps.targets.insert(pid.0, target)
    }

    /// Takes a process out of a slot's task; the last slot takes it out of the target set.
    ///
    /// # Errors
    ///
    /// The slot does not exist or the map refuses.
    pub fn remove_target(&mut self, pid: Pid, slot: TaskSlot) -> Result<(), KernelError> {
        check_slot(slot)?;
        let Some(target) = self.maps.targets.get(&pid.0)? else {
            return Ok(());
        };
        let task_mask = target.task_mask & !(1 << slot.0);
        if task_mask == 0 {
            self.maps.targets.remove(&pid.0)
        } else {
            let target = Target {
                task_mask,
                ..target
            };
            self.maps.targets.insert(pid.0, target)
        }
    }

    /// Gives the sampler the layout of a CPython process, or removes it.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn set_python(
        &mut self,
        pid: Pid,
        process: Option<&PythonProcess>,
    ) -> Result<(), KernelError> {
        match process {
            Some(process) => self.maps.python.insert(pid.0, process),
            None => self.maps.python.remove(&pid.0),
        }
    }

    /// Tells the sampler where the interpreter keeps the state of each thread. It finds the newest ones by itself.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn set_python_threads(&mut self, threads: &[(Tid, u64)]) -> Result<(), KernelError> {
        for &(tid, tstate) in threads {
            self.maps
                .python_threads
                .insert(tid.0, PythonThread { tstate })?;
        }
        Ok(())
    }

    /// Stops tracking a request: its thread is not sampled any more, and no further event of it is
    /// sent. A request that has ended stays ended.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn cancel(&mut self, request: RequestId) -> Result<(), KernelError> {
        // The programs change connections and tags at any time, so these are theirs alone to write:
        // they look at this list when they touch the request or its thread next.
        self.maps.cancels.insert(request.0, cancel::REQUEST)
    }

    /// Forgets a thread that a process has left behind, if it served a request. The programs do so when a thread
    /// ends, but for one whose hook the kernel has left out.
    ///
    /// # Errors
    ///
    /// A map refuses.
    pub fn forget_thread(&mut self, pid: Pid, tid: Tid) -> Result<(), KernelError> {
        let tag = self.maps.tags.get(&tid.0)?;
        if tag.is_some_and(|tag| tag.tgid == pid.0) {
            self.maps.tags.remove(&tid.0)?;
            self.maps.states.remove(&tid.0)?;
        }
        Ok(())
    }
}

pub(super) fn check_slot(slot: TaskSlot) -> Result<(), KernelError> {
    if slot.0 < MAX_TASKS {
        Ok(())
    } else {
        Err(KernelError::Argument(format!(
            "task slot {} does not exist: there are {MAX_TASKS}",
            slot.0
        )))
    }
}
