//! What scans may spend on the processes of a user.
//!
//! In:  time that looking at a process took, by user
//! Out: whether there is time for another one
//! Lost: nothing; what there is no time for is looked at in a later scan
//!
//! Any user can start processes without end, and make each of them as large as the kernel allows. So each user has an account that
//! fills with time, up to a limit that all processes of an ordinary host fit in: only who goes on and on is slowed
//! down. Root has no account of its own: what it runs is what the host is for. All users together have one more, because
//! a container may have thousands of them.

use std::collections::HashMap;
use std::time::Duration;

/// Most that may be saved for one user, and for all: looking at a process takes a millisecond, hundreds if it is hostile.
const USER_MAX: Duration = Duration::from_secs(2);
const ALL_MAX: Duration = Duration::from_secs(20);
/// Parts of the time that passes: 0.5 % of a CPU for one user, 2 % for all.
const USER_SHARE: u32 = 200;
const ALL_SHARE: u32 = 50;
/// Users that are remembered; others share an account.
const USERS_MAX: usize = 1024;

const ROOT: u32 = 0;

/// Time that is left, negative if more was spent than there was.
#[derive(Clone, Copy, Debug)]
struct Account {
    left_ns: i64,
    at: Duration,
}

impl Account {
    /// `now` is since any fixed moment.
    fn fill(&mut self, now: Duration, share: u32, most: Duration) {
        let earned = now.saturating_sub(self.at) / share;
        self.at = now;
        self.left_ns = self.left_ns.saturating_add(nanos(earned)).min(nanos(most));
    }

    fn spend(&mut self, spent: Duration) {
        self.left_ns = self.left_ns.saturating_sub(nanos(spent));
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// The accounts.
#[derive(Debug)]
pub(super) struct ScanBudget {
    all: Account,
    users: HashMap<Option<u32>, Account>,
}

impl ScanBudget {
    /// Full accounts.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            all: Account {
                left_ns: nanos(ALL_MAX),
                at: now,
            },
            users: HashMap::new(),
        }
    }

    /// Whether there is time for a process of a user; `None` is a user who could not be told.
    pub(super) fn has_time(&mut self, user: Option<u32>, now: Duration) -> bool {
        self.all.fill(now, ALL_SHARE, ALL_MAX);
        if self.all.left_ns <= 0 {
            return false;
        }
        let Some(account) = self.account(user, now) else {
            return true;
        };
        account.fill(now, USER_SHARE, USER_MAX);
        account.left_ns > 0
    }

    /// Notes what a look has taken.
    pub(super) fn spend(&mut self, user: Option<u32>, spent: Duration, now: Duration) {
        self.all.spend(spent);
        if let Some(account) = self.account(user, now) {
            account.spend(spent);
        }
    }

    fn account(&mut self, user: Option<u32>, now: Duration) -> Option<&mut Account> {
        if user == Some(ROOT) {
            return None;
        }
        let is_known = self.users.contains_key(&user);
        let user = if is_known || self.users.len() < USERS_MAX {
            user
        } else {
            None
        };
        let full = Account {
            left_ns: nanos(USER_MAX),
            at: now,
        };
        Some(self.users.entry(user).or_insert(full))
    }

    /// Forgets users whose accounts are full again.
    pub(super) fn forget_idle(&mut self, now: Duration) {
        self.users.retain(|_, account| {
            account.fill(now, USER_SHARE, USER_MAX);
            account.left_ns < nanos(USER_MAX)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Check that a user who spends all has to wait, that others and root do not, and that time gives it back.
    #[test]
    fn a_user_that_spends_too_much_waits_alone() {
        let mut budget = ScanBudget::new(SECOND);
        let (eager, other) = (Some(1001), Some(1002));
        let mut spent = Duration::ZERO;
        while budget.has_time(eager, SECOND) {
            let look = Duration::from_millis(300);
            budget.spend(eager, look, SECOND);
            spent += look;
        }
        assert_eq!(spent, Duration::from_millis(2100));
        assert!(budget.has_time(other, SECOND) && budget.has_time(Some(ROOT), SECOND));
        assert!(budget.has_time(None, SECOND));
        assert!(!budget.has_time(eager, 10 * SECOND));
        // 0.1 s too much at 0.5 %
        assert!(budget.has_time(eager, 22 * SECOND));
        budget.forget_idle(10_000 * SECOND);
        assert!(budget.users.is_empty());
    }

    /// Check that users without number spend no more than all may.
    #[test]
    fn many_users_share_a_limit() {
        let mut budget = ScanBudget::new(SECOND);
        let looks = (1..100_000).take_while(|&user| {
            let has_time = budget.has_time(Some(user), SECOND);
            budget.spend(Some(user), Duration::from_millis(25), SECOND);
            has_time
        });
        assert_eq!(looks.count(), 800);
        assert!(!budget.has_time(Some(ROOT), SECOND));
        assert!(budget.users.len() <= USERS_MAX + 1);
    }
}
