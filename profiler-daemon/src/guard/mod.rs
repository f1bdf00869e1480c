//! Decides how to reduce the cost of profiling when it exceeds the budget.
//!
//! In:  a [`Reading`] a second while a task is live
//! Out: a [`Step`] now and then: first longer dump periods, then fewer tasks; for hooks a word
//!
//! ```text
//!  credit  ████████▆▅▃▁                ▄▅▆▇███            what may still be used before the next step
//!          ^ full: 30 s of the budget  ^ half, after a step
//!  step                ^ Stretch(2)         ^ Relax(1), after half a minute at a third of the budget
//! ```
//!
//! # Why
//! Work comes in bursts: the first stack of a program takes as long as a thousand later ones. So the budget is
//! a rate with credit: a burst is let through, a little too much is seen after half a minute and a lot
//! at once. Stretching halves what samples cost and keeps every request; what is left then costs the same
//! with any period, and only ending a task helps.
//!
//! Hooks run in calls of all processes. What they cost depends on what others do, not on tasks: any user can call in a
//! loop. So they have a credit of their own, and to have used it up changes no task unless that is asked for. For the same
//! reason only those threads of the daemon are measured that work for profiled requests.

mod meter;

use std::time::Duration;

pub use meter::{ProgramMeter, RunTime};

/// Credit when nothing was used for long, as time at the full rate of the budget.
const CREDIT: Duration = Duration::from_secs(30);
/// Least time between two steps, so that the first one can show in the readings.
const SETTLE: Duration = Duration::from_secs(5);
/// How long less than a third of the budget is used before a step is taken back.
const CALM: Duration = Duration::from_secs(30);
/// A task is not sampled less often than this, unless it asks for it.
const LONGEST_PERIOD: Duration = Duration::from_secs(1);
/// Largest factor of dump periods.
const STRETCH_MAX: u32 = 64;
/// Part of the use that must be left after dump periods were doubled for them to be doubled again. It would be half
/// if samples alone cost something.
const STRETCH_HELPS: f64 = 0.9;

/// CPU and memory that may be used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Processor time for profiled requests, and as much again for hooks, in percent of one core.
    pub cpu_percent: u32,
    /// Tasks are ended when hooks exceed it.
    pub ends_for_hooks: bool,
    /// Resident memory of the daemon.
    pub memory_bytes: u64,
}

/// What was used since the reading before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Time between the two.
    pub elapsed: Duration,
    /// Processor time in it of the daemon's threads that work for profiled requests.
    pub daemon_cpu: Duration,
    /// Processor time in it of the programs that sample.
    pub sampling_cpu: Duration,
    /// Processor time in it of the hooks.
    pub hooks_cpu: Duration,
    /// Resident memory now.
    pub rss_bytes: u64,
}

/// A change that reduces or restores the cost of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Too much is used: multiply the dump periods that tasks ask for by this.
    Stretch(u32),
    /// Too much is used, and longer dump periods do not help: end the task that began last.
    EndNewest,
    /// Hooks use too much: say so.
    TellHooks,
    /// Little is used: this smaller factor of dump periods is enough.
    Relax(u32),
}

/// Sum of readings.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    elapsed: Duration,
    /// Of threads and of programs that sample.
    cpu: Duration,
    sampling_cpu: Duration,
}

impl Used {
    fn add(&mut self, reading: Reading) {
        self.elapsed += reading.elapsed;
        self.cpu += reading.daemon_cpu + reading.sampling_cpu;
        self.sampling_cpu += reading.sampling_cpu;
    }

    fn percent(&self, cpu: Duration) -> f64 {
        100.0 * cpu.as_secs_f64() / self.elapsed.as_secs_f64().max(0.001)
    }
}

/// Watches the use of the live tasks.
#[derive(Debug)]
pub struct Guard {
    budget: Budget,
    /// Seconds of processor time that may be used beyond the rate.
    credit_s: f64,
    /// The same for hooks.
    hooks_credit_s: f64,
    hooks: (Duration, Duration),
    stretch: u32,
    /// Percent that were used before dump periods were doubled.
    before_stretch: Option<f64>,
    /// A task was ended, and the credit is not full again.
    has_ended_task: bool,
    /// Since the latest step, or since tasks are live.
    used: Used,
    calm: Used,
    rss_bytes: u64,
}

impl Guard {
    /// With full credit and periods as tasks ask for.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        let mut guard = Self {
            budget,
            credit_s: 0.0,
            hooks_credit_s: 0.0,
            hooks: (Duration::ZERO, Duration::ZERO),
            stretch: 1,
            before_stretch: None,
            has_ended_task: false,
            used: Used::default(),
            calm: Used::default(),
            rss_bytes: 0,
        };
        guard.credit_s = guard.credit_max_s();
        guard.hooks_credit_s = guard.credit_s;
        guard
    }

    fn rate(&self) -> f64 {
        f64::from(self.budget.cpu_percent) / 100.0
    }

    fn credit_max_s(&self) -> f64 {
        self.rate() * CREDIT.as_secs_f64()
    }

    /// How many times as long dump periods are as tasks ask for.
    #[must_use]
    pub fn stretch(&self) -> u32 {
        self.stretch
    }

    /// Holds the daemon to another budget from now on.
    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
    }

    /// No task is live any more.
    pub fn reset(&mut self) {
        *self = Self::new(self.budget);
    }

    /// Takes a reading; a step comes with what was used since the one before. `shortest` is the shortest
    /// dump period that a live task asks for.
    pub fn on_reading(&mut self, reading: Reading, shortest: Duration) -> Option<(Step, String)> {
        if self.are_hooks_over(reading) {
            let reason = self.hooks_reason();
            self.hooks = (Duration::ZERO, Duration::ZERO);
            self.hooks_credit_s = self.credit_max_s();
            self.has_ended_task |= self.budget.ends_for_hooks;
            let step = if self.budget.ends_for_hooks {
                Step::EndNewest
            } else {
                Step::TellHooks
            };
            return Some((step, reason));
        }
        let step = self.step(reading, shortest)?;
        let reason = self.reason();
        // The use from here on is judged anew.
        self.credit_s = self.credit_max_s() / 2.0;
        self.used = Used::default();
        self.calm = Used::default();
        Some((step, reason))
    }

    fn are_hooks_over(&mut self, reading: Reading) -> bool {
        let change_s =
            self.rate() * reading.elapsed.as_secs_f64() - reading.hooks_cpu.as_secs_f64();
        self.hooks_credit_s = (self.hooks_credit_s + change_s).min(self.credit_max_s());
        if self.hooks_credit_s >= self.credit_max_s() {
            self.hooks = (Duration::ZERO, Duration::ZERO);
        }
        self.hooks.0 += reading.elapsed;
        self.hooks.1 += reading.hooks_cpu;
        self.hooks_credit_s <= 0.0
    }

    fn step(&mut self, reading: Reading, shortest: Duration) -> Option<Step> {
        let cpu = reading.daemon_cpu + reading.sampling_cpu;
        let change_s = self.rate() * reading.elapsed.as_secs_f64() - cpu.as_secs_f64();
        self.credit_s = (self.credit_s + change_s).clamp(0.0, self.credit_max_s());
        self.rss_bytes = reading.rss_bytes;
        self.has_ended_task &= self.credit_s < self.credit_max_s();
        self.used.add(reading);
        self.calm.add(reading);
        if self.credit_s > 0.0 && !self.is_over_memory() {
            return self.relax();
        }
        self.calm = Used::default();
        if self.used.elapsed < SETTLE {
            return None;
        }
        let percent = self.used.percent(self.used.cpu);
        let before = self.before_stretch.replace(percent);
        let has_helped =
            self.is_over_memory() || before.is_none_or(|before| percent < STRETCH_HELPS * before);
        if !has_helped || !self.can_stretch(shortest) {
            self.has_ended_task = true;
            self.before_stretch = None;
            return Some(Step::EndNewest);
        }
        self.stretch *= 2;
        Some(Step::Stretch(self.stretch))
    }

    fn relax(&mut self) -> Option<Step> {
        let is_calm = self.calm.percent(self.calm.cpu) < f64::from(self.budget.cpu_percent) / 3.0;
        if !is_calm {
            self.calm = Used::default();
        }
        if self.stretch == 1 || self.calm.elapsed < CALM {
            return None;
        }
        self.stretch /= 2;
        self.before_stretch = None;
        Some(Step::Relax(self.stretch))
    }

    fn is_over_memory(&self) -> bool {
        self.rss_bytes > self.budget.memory_bytes
    }

    fn can_stretch(&self, shortest: Duration) -> bool {
        let twice = self.stretch * 2;
        twice <= STRETCH_MAX && shortest.saturating_mul(twice) <= LONGEST_PERIOD
    }

    /// Why no further task can be taken on, if so. `shortest` as in [`Self::on_reading`].
    #[must_use]
    pub fn refusal(&self, shortest: Duration) -> Option<String> {
        let is_short = self.credit_s < self.credit_max_s() / 4.0;
        let is_over = self.is_over_memory() || (is_short && !self.can_stretch(shortest));
        (is_over || self.has_ended_task)
            .then(|| format!("the overhead guard refuses new tasks: {}", self.reason()))
    }

    /// The use since the latest step, compared with the budget.
    fn reason(&self) -> String {
        if self.is_over_memory() {
            return format!(
                "profilerd uses {} MB of memory, limits.max_memory_mb is {}",
                self.rss_bytes >> 20,
                self.budget.memory_bytes >> 20
            );
        }
        format!(
            "profiled requests took {:.1} % of a core for {} s, {:.1} of it in BPF programs; \
             limits.max_cpu_percent is {}",
            self.used.percent(self.used.cpu),
            self.used.elapsed.as_secs(),
            self.used.percent(self.used.sampling_cpu),
            self.budget.cpu_percent
        )
    }

    /// What hooks have used since their credit was full.
    fn hooks_reason(&self) -> String {
        let (elapsed, cpu) = self.hooks;
        format!(
            "system calls of other processes made the hooks take {:.1} % of a core for {} s; \
             limits.max_cpu_percent is {}",
            100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64().max(0.001),
            elapsed.as_secs(),
            self.budget.cpu_percent
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(100);

    fn guard() -> Guard {
        Guard::new(Budget {
            cpu_percent: 2,
            ends_for_hooks: false,
            memory_bytes: 100 << 20,
        })
    }

    fn second(cpu_ms: u64) -> Reading {
        Reading {
            elapsed: Duration::from_secs(1),
            daemon_cpu: Duration::from_millis(cpu_ms / 2),
            sampling_cpu: Duration::from_millis(cpu_ms - cpu_ms / 2),
            hooks_cpu: Duration::ZERO,
            rss_bytes: 40 << 20,
        }
    }

    /// Steps of so many seconds, each with the second in which it came.
    fn steps(guard: &mut Guard, seconds: u64, cpu_ms: u64) -> Vec<(u64, Step)> {
        let mut steps = Vec::new();
        for at in 1..=seconds {
            if let Some((step, _)) = guard.on_reading(second(cpu_ms), PERIOD) {
                steps.push((at, step));
            }
        }
        steps
    }

    /// Check that a burst and a rate within the budget are let through for ever.
    #[test]
    fn bursts_are_let_through() {
        let mut guard = guard();
        assert_eq!(guard.on_reading(second(500), PERIOD), None);
        assert_eq!(steps(&mut guard, 600, 20), []);
        assert_eq!(guard.stretch(), 1);
    }

    /// Steps of so many seconds in which samples cost this, and what they cost is all there is.
    fn steps_of_samples(guard: &mut Guard, seconds: u64, cpu_ms: u64) -> Vec<(u64, Step)> {
        let second = |at| {
            let step = guard.on_reading(second(cpu_ms / u64::from(guard.stretch())), PERIOD)?;
            Some((at, step.0))
        };
        (1..=seconds).filter_map(second).collect()
    }

    /// Check that much too much is seen soon and a little too much later, and that periods are stretched as long as that
    /// helps before a task is ended.
    #[test]
    fn periods_are_stretched_before_a_task_ends() {
        let all = steps_of_samples(&mut guard(), 60, 2000);
        let expected = [
            Step::Stretch(2),
            Step::Stretch(4),
            Step::Stretch(8),
            Step::EndNewest, // 1.6 s would be too seldom
        ];
        let kinds: Vec<Step> = all.iter().map(|(_, step)| *step).take(4).collect();
        assert_eq!(kinds, expected);
        let all = steps(&mut guard(), 60, 200);
        let kinds: Vec<Step> = all.iter().map(|(_, step)| *step).take(2).collect();
        assert_eq!(
            kinds,
            [Step::Stretch(2), Step::EndNewest],
            "it costs as much as before"
        );
        assert!(all[0].0 <= 6, "{all:?}");
        let slight = steps(&mut guard(), 60, 30);
        assert_eq!(slight.first().map(|(at, _)| *at), Some(60));
    }

    /// Check that a step is taken back after a calm while, and not by a load that would need it again.
    #[test]
    fn a_step_is_taken_back_when_it_is_calm() {
        let mut guard = guard();
        assert_eq!(steps(&mut guard, 6, 200)[0].1, Step::Stretch(2));
        assert_eq!(steps(&mut guard, 300, 10), []);
        let back = steps(&mut guard, 32, 2);
        assert_eq!(
            back.iter().map(|(_, s)| *s).collect::<Vec<_>>(),
            [Step::Relax(1)]
        );
        assert_eq!(steps(&mut guard, 100, 2), []);
    }

    /// Check that hooks that others make expensive change neither periods nor tasks, are told with what they use, again and
    /// again but not all the time, and end a task only where that is asked for.
    #[test]
    fn hooks_are_told_and_change_nothing() {
        let mut guard = guard();
        let dear = Reading {
            hooks_cpu: Duration::from_millis(109),
            ..second(10)
        };
        let told: Vec<_> = (1..=60)
            .filter_map(|at| Some((at, guard.on_reading(dear, PERIOD)?)))
            .collect();
        assert!((5..=9).contains(&told.len()), "{told:?}");
        for (_, (step, reason)) in &told {
            assert_eq!(*step, Step::TellHooks);
            assert!(reason.contains("hooks take 10.9 % of a core"), "{reason}");
        }
        assert_eq!((guard.stretch(), guard.refusal(PERIOD)), (1, None));
        let mut strict = Guard::new(Budget {
            ends_for_hooks: true,
            ..guard.budget
        });
        let ended = (1..=60).find_map(|_| strict.on_reading(dear, PERIOD));
        assert_eq!(ended.unwrap().0, Step::EndNewest);
        assert!(strict.refusal(PERIOD).is_some());
    }

    /// Check that memory over its limit leads to the same steps, and to refusals.
    #[test]
    fn memory_over_its_limit_is_seen() {
        let mut guard = guard();
        let much = Reading {
            rss_bytes: 200 << 20,
            ..second(1)
        };
        let mut first = None;
        for at in 1..=10 {
            if let Some((step, reason)) = guard.on_reading(much, PERIOD) {
                assert!(reason.contains("uses 200 MB of memory"), "{reason}");
                first = Some((at, step));
                break;
            }
        }
        assert_eq!(first, Some((5, Step::Stretch(2))));
        let refusal = guard.refusal(PERIOD).unwrap();
        assert!(
            refusal.contains("uses 200 MB of memory, limits.max_memory_mb is 100"),
            "{refusal}"
        );
    }

    /// Check that a task is refused only when stretching cannot help any more, with what is used.
    #[test]
    fn tasks_are_refused_when_nothing_else_is_left() {
        let mut guard = guard();
        assert_eq!(guard.refusal(PERIOD), None);
        let all = steps(&mut guard, 60, 200);
        assert!(all.iter().any(|(_, step)| *step == Step::EndNewest));
        let refusal = guard.refusal(PERIOD).unwrap();
        assert!(refusal.contains("limits.max_cpu_percent is 2"), "{refusal}");
        assert_eq!(steps(&mut guard, 20, 0), []);
        assert_eq!(guard.refusal(PERIOD), None);
        guard.reset();
        assert_eq!((guard.stretch(), guard.refusal(PERIOD)), (1, None));
    }
}
