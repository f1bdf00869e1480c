//! Pauses between attempts.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubles the pause with each attempt, up to a limit. A fifth of each pause is random: the daemons
/// of a thousand nodes must not come back in the same instant.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// From the first pause to the longest.
    #[must_use]
    pub fn new((first, longest): (Duration, Duration)) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.longest);
        self.next = (pause * 2).min(self.longest);
        let random = RandomState::new().hash_one(()) % 1000;
        pause.mul_f64(0.8 + random as f64 / 5000.0)
    }

    /// The next pause is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that pauses double up to the limit, lose at most a fifth, and start over.
    #[test]
    fn pauses_double_up_to_the_limit() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new((seconds(1), seconds(5)));
        for full in [1, 2, 4, 5, 5] {
            let pause = backoff.pause();
            assert!(pause <= seconds(full) && pause >= seconds(full).mul_f64(0.8));
        }
        backoff.reset();
        assert!(backoff.pause() <= seconds(1));
    }
}
