//! How many connections a server keeps, in all and for one peer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Peer;

/// The limits of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections in all.
    pub(crate) total: usize,
    /// Connections of one peer; the others are left for others.
    pub(crate) per_peer: usize,
    /// Connections of the total, and beyond the limit of a peer, that only root and our own user get: for
    /// `profilerd task` and for the daemon's own results.
    pub(crate) reserved: usize,
}

/// The places of a server.
#[derive(Debug)]
pub(crate) struct Places {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_peer: HashMap<Peer, usize>,
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            taken: Mutex::default(),
        })
    }

    /// A place for a peer, if there is one.
    pub(crate) fn take(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let Limits {
            total,
            per_peer,
            reserved,
        } = self.limits;
        let (total, per_peer) = if peer.is_trusted() {
            (total, per_peer + reserved)
        } else {
            (total.saturating_sub(reserved), per_peer)
        };
        let mut taken = self.lock();
        let own = taken.by_peer.get(&peer).copied().unwrap_or(0);
        if taken.total >= total || own >= per_peer {
            return None;
        }
        taken.total += 1;
        taken.by_peer.insert(peer, own + 1);
        Some(Place {
            places: Arc::clone(self),
            peer,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    peer: Peer,
}

impl Place {
    /// Who has it.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total = taken.total.saturating_sub(1);
        if let Some(own) = taken.by_peer.get_mut(&self.peer) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u8) -> Peer {
        Peer::Host([192, 0, 2, number].into())
    }

    /// Check that one peer leaves places to others, that all others leave some to root, and that a place is free
    /// again after its connection.
    #[test]
    fn every_peer_leaves_places_to_others() {
        let places = Places::new(Limits {
            total: 10,
            per_peer: 4,
            reserved: 2,
        });
        let take = |peer, count: usize| -> Vec<Place> {
            let taken = (0..count).map_while(|_| places.take(peer));
            taken.collect()
        };
        let first = take(host(1), 9);
        assert_eq!(first.len(), 4);
        let second = take(host(2), 9);
        assert_eq!(second.len(), 4);
        assert_eq!(take(host(3), 9).len(), 0);
        let root = take(Peer::User(0), 9);
        assert_eq!(root.len(), 2);
        drop(first);
        assert_eq!(take(host(3), 9).len(), 2);
        drop((second, root));
        assert_eq!(take(Peer::User(0), 9).len(), 6);
        assert_eq!(take(Peer::User(4711), 9).len(), 4);
        let taken = places.lock();
        assert_eq!((taken.total, taken.by_peer.len()), (0, 0));
    }
}
