//! Answers queries on threads of their own, so many at a time.
//!
//! In:  work that may compute for long, and cannot be interrupted while it does
//! Out: its result, or that it took too long
//! Lost: what comes after the deadline
//!
//! A thread of the runtime that computes answers nobody else: health checks, gRPC and the daemon itself would wait.
//! Work that exceeds the deadline keeps its thread and its place, and nothing else. The threads are not those of
//! `spawn_blocking`, for which the end of the runtime waits.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Queries answered at a time; others wait for their place. Two may read the store, the others compute.
const QUERIES_MAX: usize = 4;

/// The places.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    places: Arc<Semaphore>,
    deadline: Duration,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Neither a place nor the result was there in time.
    Late,
    /// The system has no thread, or the work panicked.
    Failed,
}

impl Threads {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(QUERIES_MAX)),
            deadline,
        }
    }

    /// Runs work, for at most the deadline.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        timeout(self.deadline, self.start(work))
            .await
            .unwrap_or(Err(NoAnswer::Late))
    }

    async fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| NoAnswer::Failed)?; // never: nobody closes it
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let result = work();
            // Whoever hears of the result finds a free place.
            drop(place);
            // The client may have gone.
            let _ = answer.send(result);
        };
        let thread = thread::Builder::new().name("graphql".to_owned());
        thread.spawn(work).map_err(|_| NoAnswer::Failed)?;
        answered.await.map_err(|_| NoAnswer::Failed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Check that work that does not end is given up on a runtime of one thread, keeps its place, and that others
    /// are answered until no place is left.
    #[tokio::test]
    async fn endless_work_takes_one_place() {
        let threads = Threads::new(Duration::from_millis(200));
        let mut ends = Vec::new();
        for _ in 1..QUERIES_MAX {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let late = threads.run(move || ended.recv().is_err()).await;
            assert_eq!(late, Err(NoAnswer::Late));
            let patient = Threads {
                deadline: Duration::from_secs(30),
                ..threads.clone()
            };
            assert_eq!(patient.run(|| 1).await, Ok(1));
        }
        assert_eq!(threads.places.available_permits(), 1);
        drop(ends);
        let all = threads.places.acquire_many(QUERIES_MAX as u32).await;
        drop(all.unwrap());
    }

    /// Check that a panic is an error, and gives its place back.
    #[tokio::test]
    async fn a_panic_is_no_answer() {
        let threads = Threads::new(Duration::from_secs(30));
        for _ in 0..=QUERIES_MAX {
            let result = threads.run(|| panic!("on purpose")).await;
            assert_eq!(result, Err::<(), _>(NoAnswer::Failed));
        }
    }
}
