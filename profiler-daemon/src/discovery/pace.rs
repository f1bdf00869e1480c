//! When the daemon looks for endpoints: for a while after a service appears, and every so often.
//!
//! ```text
//! service     ──┬───────────────────────────────────┬────────────
//!               appears                             another appears
//! windows       ██████          ██████              ██████
//!               |-- interval -->|                   at once
//! ```
//!
//! # Why a price
//!
//! A look costs the daemon time, most of it for loading the programs, and the services some for each request. So it ends
//! early when it has seen enough requests, and the next one waits until the daemon's time is within the budget again:
//! a look that took 0.3 s is followed by none for 15 s at 2 %.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Decides on windows.
#[derive(Debug)]
pub struct Pace {
    /// Length of a window and time between two, unless there is no time between them.
    window: Duration,
    interval: Option<Duration>,
    budget_percent: u32,
    /// Services that a window has been for.
    known: BTreeSet<String>,
    /// When the latest window began.
    began: Option<Instant>,
    is_open: bool,
    /// Before it no window begins: the budget is used up.
    not_before: Option<Instant>,
}

/// What is wanted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// A look of this length at all services.
    Look(Duration),
}

impl Pace {
    /// A window of this length every `interval`; without an interval one after the other.
    #[must_use]
    pub fn new(window: Duration, interval: Option<Duration>, budget_percent: u32) -> Self {
        Self {
            window,
            interval,
            budget_percent: budget_percent.max(1),
            known: BTreeSet::new(),
            began: None,
            is_open: false,
            not_before: None,
        }
    }

    /// Has another budget from now on.
    pub fn set_budget(&mut self, percent: u32) {
        self.budget_percent = percent.max(1);
    }

    /// Decides, given the services there are; nothing begins while the overhead guard acts.
    pub fn decide<'a>(
        &mut self,
        services: impl IntoIterator<Item = &'a str>,
        guard_acts: bool,
        now: Instant,
    ) -> Wanted {
        let services: BTreeSet<&str> = services.into_iter().collect();
        self.known.retain(|known| services.contains(known.as_str()));
        if self.is_open || guard_acts || services.is_empty() {
            return Wanted::Nothing;
        }
        if self.not_before.is_some_and(|at| now < at) {
            return Wanted::Nothing;
        }
        let is_new = services.iter().any(|name| !self.known.contains(*name));
        let is_due = self.began.is_none_or(|began| {
            now.saturating_duration_since(began) >= self.interval.unwrap_or(Duration::ZERO)
        });
        if !is_new && !is_due {
            return Wanted::Nothing;
        }
        self.known = services.into_iter().map(str::to_owned).collect();
        self.began = Some(now);
        self.is_open = true;
        Wanted::Look(self.window)
    }

    /// A look has ended, which took the daemon so much processor time.
    pub fn on_end(&mut self, cpu: Duration) {
        self.is_open = false;
        let pause = cpu * 100 / self.budget_percent;
        self.not_before = self.began.map(|began| began + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Check that a window comes at once for a new service, and then every interval, one at a time.
    #[test]
    fn windows_come_for_new_services_and_every_interval() {
        let mut pace = Pace::new(10 * SECOND, Some(300 * SECOND), 2);
        let start = Instant::now();
        let at = |seconds| start + seconds * SECOND;
        assert_eq!(pace.decide([], false, start), Wanted::Nothing);
        let look = Wanted::Look(10 * SECOND);
        assert_eq!(pace.decide(["a"], false, start), look);
        assert_eq!(pace.decide(["a", "b"], false, at(5)), Wanted::Nothing);
        pace.on_end(Duration::ZERO);
        assert_eq!(pace.decide(["a", "b"], false, at(10)), look);
        pace.on_end(Duration::ZERO);
        assert_eq!(pace.decide(["a", "b"], false, at(309)), Wanted::Nothing);
        assert_eq!(pace.decide(["b"], false, at(310)), look);
        pace.on_end(Duration::ZERO);
        assert_eq!(pace.decide(["a", "b"], false, at(311)), look);
    }

    /// Check that the budget and the guard delay a window, also where windows follow each other.
    #[test]
    fn windows_stay_within_the_budget() {
        let mut pace = Pace::new(10 * SECOND, None, 2);
        let start = Instant::now();
        let at = |seconds| start + seconds * SECOND;
        let look = Wanted::Look(10 * SECOND);
        assert_eq!(pace.decide(["a"], true, start), Wanted::Nothing);
        assert_eq!(pace.decide(["a"], false, start), look);
        pace.on_end(SECOND / 2);
        assert_eq!(pace.decide(["a", "new"], false, at(24)), Wanted::Nothing);
        assert_eq!(pace.decide(["a"], false, at(25)), look);
        pace.on_end(SECOND / 10);
        assert_eq!(pace.decide(["a"], false, at(35)), look);
    }
}
