//! Who is next, where each service has its turn.
//!
//! In:  work by the name of its service
//! Out: work, of the services in turn
//! Lost: nothing
//!
//! A service may start processes without end. Its work waits in a queue of its own, and one place is kept free of it.

use std::collections::{HashMap, VecDeque};

/// Work that waits and places in use.
#[derive(Debug)]
pub(super) struct Turns<T> {
    places: usize,
    /// The service that is next comes first; none of the queues is empty.
    waiting: VecDeque<(String, VecDeque<T>)>,
    running: HashMap<String, usize>,
}

impl<T> Turns<T> {
    /// With so many places, two at least.
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: places.max(2),
            waiting: VecDeque::new(),
            running: HashMap::new(),
        }
    }

    /// Adds work behind that of the same service.
    pub(super) fn push(&mut self, service: &str, work: T) {
        if let Some((_, queue)) = self.waiting.iter_mut().find(|(name, _)| name == service) {
            queue.push_back(work);
        } else {
            let queue = VecDeque::from([work]);
            self.waiting.push_back((service.to_owned(), queue));
        }
    }

    /// Takes a place for the next work, if there is some for a place that is free. [`Self::end`] gives it back.
    pub(super) fn begin(&mut self) -> Option<T> {
        if self.running.values().sum::<usize>() >= self.places {
            return None;
        }
        let has_turn = |name: &String| self.running.get(name).is_none_or(|&n| n + 1 < self.places);
        let next = self.waiting.iter().position(|(name, _)| has_turn(name))?;
        let (service, mut queue) = self.waiting.remove(next)?;
        let work = queue.pop_front();
        *self.running.entry(service.clone()).or_default() += 1;
        if !queue.is_empty() {
            self.waiting.push_back((service, queue));
        }
        work
    }

    /// Work of a service is done.
    pub(super) fn end(&mut self, service: &str) {
        if let Some(running) = self.running.get_mut(service) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a service with much work neither takes all places nor lets others wait until it is done.
    #[test]
    fn services_have_their_turns() {
        let mut turns = Turns::new(4);
        (0..10).for_each(|number| turns.push("many", number));
        assert_eq!([0, 1, 2].map(Some), [(); 3].map(|()| turns.begin()));
        assert_eq!(turns.begin(), None, "the last place is for others");
        turns.push("other", 100);
        turns.push("other", 101);
        assert_eq!(turns.begin(), Some(100));
        turns.end("many");
        assert_eq!(turns.begin(), Some(3));
        turns.end("many");
        assert_eq!(turns.begin(), Some(101));
        turns.end("other");
        turns.end("other");
        turns.end("many");
        assert_eq!([4, 5].map(Some), [(); 2].map(|()| turns.begin()));
    }

    /// Check that nothing is lost, and that places come back.
    #[test]
    fn everything_has_its_turn() {
        let mut turns = Turns::new(2);
        for number in 0..9 {
            turns.push(["a", "b", "c"][number % 3], number);
        }
        let mut done = Vec::new();
        while let Some(number) = turns.begin() {
            done.push(number);
            turns.end(["a", "b", "c"][number % 3]);
        }
        assert_eq!(done, (0..9).collect::<Vec<_>>());
        assert!(turns.running.is_empty() && turns.waiting.is_empty());
    }
}
