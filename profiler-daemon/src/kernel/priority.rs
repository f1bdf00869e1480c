//! Real-time priority for the few moments in which being preempted would spoil the result.

/// While it lives, ordinary threads do not preempt the calling one. Best effort: without the right to
/// it everything works, less exactly on a busy machine.
#[derive(Debug)]
pub(super) struct Undisturbed {
    was: Option<(libc::c_int, libc::sched_param)>,
}

impl Undisturbed {
    /// Raises the calling thread to `SCHED_FIFO`, priority 1.
    pub(super) fn begin() -> Self {
        let mut parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: 0 names the calling thread; the structure lives through both calls.
        let policy = unsafe {
            let policy = libc::sched_getscheduler(0);
            if libc::sched_getparam(0, &raw mut parameters) != 0 {
                -1
            } else {
                policy
            }
        };
        let raised = libc::sched_param { sched_priority: 1 };
        // SAFETY: as above.
        let is_raised = policy >= 0
            && unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const raised) } == 0;
        Self {
            was: is_raised.then_some((policy, parameters)),
        }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some((policy, parameters)) = self.was {
            // SAFETY: 0 names the calling thread; the structure lives through the call.
            let lowered = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
            if lowered != 0 {
                tracing::warn!("the thread keeps its real-time priority");
            }
        }
    }
}
