//! How much of the resolve thread's time a process may take before others have to wait for it.
//!
//! In:  the time that each stack took, and each preparation of a process
//! Out: whether a process or a service has used more than its share
//! Lost: stacks of such a process while the thread is late, for [`super::resolve`] to count
//!
//! A stack takes some 50 µs. Whoever writes the program can make it take seconds: by names that are hard to demangle, by
//! debug information, by files that are read slowly. All processes share one thread and one queue. A process pays for
//! its stacks with its own samples, and only while others would wait otherwise.
//!
//! The processes of a service together have a share as well, whichever instance they are: a service that starts ever more of
//! them has no more.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::model::{ProcessKey, Service};

/// The first stacks of a process read its symbols.
const FREE: Duration = Duration::from_secs(2);
/// One part in so many of the time since the first stack: of a process, and of all processes of a service.
const PROCESS_PART: u32 = 5;
const SERVICE_PART: u32 = 2;
/// A sample that is older than this when its turn comes was delayed by others: usual is less than a dump period.
const LATE: Duration = Duration::from_secs(1);
/// Processes and services that are remembered.
const KEPT_MAX: usize = 4096;

/// The use of all processes and services.
#[derive(Default)]
pub(super) struct Budgets {
    processes: HashMap<ProcessKey, Use>,
    /// By name.
    services: HashMap<String, Use>,
}

#[derive(Clone, Copy)]
struct Use {
    since: Instant,
    spent: Duration,
}

impl Use {
    fn exceeds(&self, part: u32, now: Instant) -> bool {
        self.spent > FREE.max(now.duration_since(self.since) / part)
    }
}

impl Budgets {
    /// Whether a process has to do without a stack: it has used up its time, or its service has, and the sample's turn
    /// has come so late after it was taken that others wait.
    pub(super) fn is_refused(
        &self,
        process: ProcessKey,
        service: &Service,
        age: Duration,
        now: Instant,
    ) -> bool {
        let exceeds = |used: Option<&Use>, part| used.is_some_and(|used| used.exceeds(part, now));
        age >= LATE
            && (exceeds(self.processes.get(&process), PROCESS_PART)
                || exceeds(self.services.get(&service.name), SERVICE_PART))
    }

    /// Whether a service has used up its share: its next processes are not prepared, and their first stacks take longer.
    /// Processes of one program take a few milliseconds each after the first, whose symbols they share.
    pub(super) fn is_spent(&self, service: &Service, now: Instant) -> bool {
        let used = self.services.get(&service.name);
        used.is_some_and(|used| used.exceeds(SERVICE_PART, now))
    }

    /// Takes note of the time that a stack or a preparation took, from `start` to `now`.
    pub(super) fn charge(
        &mut self,
        process: ProcessKey,
        service: &Service,
        start: Instant,
        now: Instant,
    ) {
        let spent = now.duration_since(start);
        add(&mut self.processes, &process, start, spent);
        add(&mut self.services, &service.name, start, spent);
    }

    /// A process is over. Its service remembers what it has used.
    pub(super) fn forget(&mut self, process: ProcessKey) {
        self.processes.remove(&process);
    }
}

fn add<K: Clone + Eq + Hash>(uses: &mut HashMap<K, Use>, key: &K, start: Instant, spent: Duration) {
    if let Some(used) = uses.get_mut(key) {
        used.spent += spent;
        return;
    }
    if uses.len() >= KEPT_MAX {
        uses.clear();
    }
    let used = Use {
        since: start,
        spent,
    };
    uses.insert(key.clone(), used);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey {
            pid: Pid(pid),
            start_ticks: 1,
        }
    }

    fn service(name: &str) -> Service {
        Service {
            name: name.to_owned(),
            instance: "one".to_owned(),
        }
    }

    /// Check that a process may take a fifth of the time and two seconds at once, that only samples whose turn comes late
    /// are refused, and that another process is never.
    #[test]
    fn a_process_pays_for_its_own_stacks() {
        let (slow, fast) = (service("slow"), service("fast"));
        let mut budgets = Budgets::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let refused = |budgets: &Budgets, pid, service: &Service, age_ms, now| {
            budgets.is_refused(key(pid), service, Duration::from_millis(age_ms), at(now))
        };
        budgets.charge(key(1), &slow, at(0), at(1_900));
        assert!(!refused(&budgets, 1, &slow, 1_900, 1_900));
        budgets.charge(key(1), &slow, at(1_900), at(2_900));
        budgets.charge(key(2), &fast, at(2_900), at(2_901));
        assert!(refused(&budgets, 1, &slow, 1_000, 2_901));
        assert!(!refused(&budgets, 1, &slow, 999, 2_901));
        assert!(!refused(&budgets, 2, &fast, 5_000, 2_901));
        // A fifth of 15 s.
        assert!(!refused(&budgets, 1, &slow, 5_000, 15_000));
    }

    /// Check that preparations are left out for a service that has used up its share, until time gives it back.
    #[test]
    fn preparations_have_a_share() {
        let (many, other) = (service("many"), service("other"));
        let mut budgets = Budgets::default();
        let start = Instant::now();
        let now = start + Duration::from_secs(3);
        budgets.charge(key(1), &many, start, now);
        assert!(budgets.is_spent(&many, now));
        assert!(!budgets.is_spent(&other, now));
        assert!(!budgets.is_spent(&many, start + Duration::from_secs(7)));
    }

    /// Check that a service with many processes has half of the time, also through processes that are over.
    #[test]
    fn a_service_has_no_more_by_more_processes() {
        let mut many = service("many");
        let mut budgets = Budgets::default();
        let start = Instant::now();
        for number in 0..10 {
            let from = start + Duration::from_secs(number);
            let process = key(u32::try_from(number).unwrap());
            many.instance = number.to_string();
            budgets.charge(process, &many, from, from + Duration::from_millis(900));
            budgets.forget(process);
        }
        let late = Duration::from_secs(2);
        let now = start + Duration::from_secs(10);
        assert!(budgets.is_refused(key(99), &many, late, now));
        assert!(!budgets.is_refused(key(99), &service("other"), late, now));
    }

    /// Check that what is remembered is bounded.
    #[test]
    fn uses_are_bounded() {
        let mut budgets = Budgets::default();
        let now = Instant::now();
        for pid in 0..=u32::try_from(KEPT_MAX).unwrap() {
            budgets.charge(key(pid), &service("one"), now, now);
        }
        assert!(budgets.processes.len() <= KEPT_MAX);
    }
}
