//! Orders service instances by the time of their next call, a few at once, and limits the calls per
//! second.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::model::Service;

/// Calls on their way at a time: one that is answered late does not hold up the others.
pub(super) const CALLS_AT_ONCE: usize = 8;

/// The instances that wait for their turn.
#[derive(Debug)]
pub(super) struct Turns {
    per_second: u32,
    due: BTreeSet<(Instant, Service)>,
    times: HashMap<Service, Instant>,
    /// Before that the calls of a second are used up.
    free_at: Option<Instant>,
}

impl Turns {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            due: BTreeSet::new(),
            times: HashMap::new(),
            free_at: None,
        }
    }

    /// Gives an instance its next turn, in place of another it may have.
    pub(super) fn set(&mut self, service: &Service, at: Instant) {
        self.forget(service);
        self.times.insert(service.clone(), at);
        self.due.insert((at, service.clone()));
    }

    /// Gives an instance a turn, unless it has one before that.
    pub(super) fn bring_forward(&mut self, service: &Service, at: Instant) {
        if self.times.get(service).is_none_or(|&time| time > at) {
            self.set(service, at);
        }
    }

    pub(super) fn forget(&mut self, service: &Service) {
        if let Some((service, at)) = self.times.remove_entry(service) {
            self.due.remove(&(at, service));
        }
    }

    /// Takes those that are due, the longest waiting first, while `calls` are on their way.
    pub(super) fn take(&mut self, now: Instant, calls: usize) -> Vec<Service> {
        let mut taken = Vec::new();
        if self.free_at.is_some_and(|at| now < at) {
            return taken;
        }
        while calls + taken.len() < CALLS_AT_ONCE
            && self.due.first().is_some_and(|&(at, _)| at <= now)
            && let Some((_, service)) = self.due.pop_first()
        {
            self.times.remove(&service);
            taken.push(service);
        }
        if !taken.is_empty() {
            let seconds = Duration::from_secs(taken.len() as u64);
            self.free_at = Some(now + seconds / self.per_second);
        }
        taken
    }

    /// When to take the next ones; `None` if nobody waits or a call has to end first.
    pub(super) fn next_at(&self, calls: usize) -> Option<Instant> {
        let (due, _) = self.due.first().filter(|_| calls < CALLS_AT_ONCE)?;
        Some(self.free_at.map_or(*due, |free| free.max(*due)))
    }
}

/// Waits until then; for ever if there is no such time.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(n: usize) -> Service {
        Service {
            name: format!("service-{n}"),
            instance: "one".to_owned(),
        }
    }

    /// Check that a thousand instances that are due together are spread over the seconds they need, in the
    /// order of their turns, and never more than some at once.
    #[test]
    fn a_thousand_are_spread() {
        let start = Instant::now();
        let mut turns = Turns::new(50);
        for n in 0..1000 {
            turns.set(&service(n), start + Duration::from_micros(n as u64));
        }
        let mut now = start + Duration::from_millis(1);
        let mut order = Vec::new();
        while let Some(at) = turns.next_at(0) {
            now = now.max(at);
            let taken = turns.take(now, 0);
            assert!((1..=CALLS_AT_ONCE).contains(&taken.len()));
            order.extend(taken);
        }
        assert_eq!(order.len(), 1000);
        assert!(
            order
                .iter()
                .eq((0..1000).map(service).collect::<Vec<_>>().iter())
        );
        let seconds = (now - start).as_secs_f64();
        assert!((19.5..=20.1).contains(&seconds), "{seconds}");
    }

    /// Check that a turn can be moved both ways, brought forward only to an earlier time, and taken away.
    #[test]
    fn turns_are_moved() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let mut turns = Turns::new(50);
        turns.set(&service(1), now);
        turns.set(&service(1), later);
        assert!(turns.take(now, 0).is_empty());
        turns.bring_forward(&service(1), now);
        turns.bring_forward(&service(1), later);
        assert_eq!(turns.next_at(0), Some(now));
        turns.set(&service(2), now);
        turns.forget(&service(2));
        assert_eq!(turns.take(now, 0), [service(1)]);
        assert_eq!(turns.next_at(0), None);
        turns.set(&service(3), later);
        assert_eq!(turns.next_at(CALLS_AT_ONCE), None);
    }
}
