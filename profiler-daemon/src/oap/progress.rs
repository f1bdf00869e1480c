//! How far the delivery of some profiled requests is. A request's segment and its snapshots are one unit: an OAP
//! shows neither without the other.
//!
//! In:  what became of each segment and of each row of snapshots
//! Out: what is still to be sent; what is left when nothing more can be
//! Lost: snapshots of a segment that is lost; [`super::report`] counts them

use super::outgoing::Outgoing;

/// How often a request is sent again whole. An OAP that breaks off its snapshots more often has no use for them.
const REPEATS_MAX: u8 = 3;

/// What became of a request's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is to be sent; it may have arrived all the same.
    Waiting,
    /// The OAP has it.
    There,
    /// It is not sent any more.
    Lost,
}

/// The progress of some requests, in their order.
#[derive(Debug)]
pub(super) struct Progress {
    fates: Vec<Fate>,
    /// Snapshots of each that were dealt with, from the first on.
    dealt: Vec<usize>,
    /// Something of it is lost.
    incomplete: Vec<bool>,
    /// How often each was sent again whole.
    repeats: Vec<u8>,
}

impl Progress {
    /// What hangs below an agent's segment has no object of ours.
    pub(super) fn new(segments: &[Outgoing]) -> Self {
        let fate = |segment: &Outgoing| match segment.object {
            Some(_) => Fate::Waiting,
            None => Fate::There,
        };
        Self {
            fates: segments.iter().map(fate).collect(),
            dealt: vec![0; segments.len()],
            incomplete: vec![false; segments.len()],
            repeats: vec![0; segments.len()],
        }
    }

    /// Segments that are still to be sent.
    pub(super) fn waiting(&self) -> Vec<usize> {
        self.with(Fate::Waiting).collect()
    }

    /// Snapshots that are still to be sent and can be: those of segments that the OAP has.
    pub(super) fn rows(&self, segments: &[Outgoing]) -> Vec<(usize, usize)> {
        let rows = |index: usize| self.dealt[index]..segments[index].snapshots.len();
        self.with(Fate::There)
            .flat_map(|index| rows(index).map(move |row| (index, row)))
            .collect()
    }

    /// Has the whole request sent again, under another id; false if that cannot be, or was done often enough. For one of
    /// which nothing is settled but the segment.
    pub(super) fn repeat(&mut self, index: usize, segment: &mut Outgoing) -> bool {
        let may_be = self.repeats[index] < REPEATS_MAX && segment.rename();
        if may_be {
            self.repeats[index] += 1;
            self.fates[index] = Fate::Waiting;
        }
        may_be
    }

    fn with(&self, fate: Fate) -> impl Iterator<Item = usize> {
        let fates = self.fates.iter().enumerate();
        fates.filter_map(move |(index, &now)| (now == fate).then_some(index))
    }

    /// The OAP has the segment, or it is given up.
    pub(super) fn settle_segment(&mut self, index: usize, is_there: bool) {
        self.fates[index] = if is_there { Fate::There } else { Fate::Lost };
    }

    /// Another snapshot of the segment was dealt with.
    pub(super) fn settle_snapshot(&mut self, index: usize) {
        self.dealt[index] += 1;
    }

    /// Something of the request is lost; true the first time.
    pub(super) fn mark_incomplete(&mut self, index: usize) -> bool {
        !std::mem::replace(&mut self.incomplete[index], true)
    }

    /// What is left to send of each request that is not dealt with.
    pub(super) fn rest(&self, segments: &[Outgoing]) -> Vec<Outgoing> {
        let rest = segments.iter().enumerate().filter_map(|(index, segment)| {
            let is_waiting = match self.fates[index] {
                Fate::Waiting => true,
                Fate::There => false,
                Fate::Lost => return None,
            };
            let rest = Outgoing {
                object: segment.object.clone().filter(|_| is_waiting),
                snapshots: segment.snapshots[self.dealt[index]..].to_vec(),
                ..segment.clone()
            };
            (!rest.snapshots.is_empty()).then_some(rest)
        });
        rest.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::tests::segment;
    use super::*;

    /// Check that a request is sent again whole, so many times, and one with an agent's segment not at all.
    #[test]
    fn a_request_is_repeated_whole() {
        let new = |id| Outgoing::new(segment("t", id, &["main", "main"]));
        let mut segments = vec![new("s"), new("agent")];
        segments[1].object = None;
        let mut progress = Progress::new(&segments);
        for _ in 0..REPEATS_MAX {
            progress.settle_segment(0, true);
            assert!(progress.repeat(0, &mut segments[0]));
            assert_eq!(progress.waiting(), [0]);
            assert_eq!(progress.rest(&segments)[0].snapshots.len(), 2);
        }
        progress.settle_segment(0, true);
        assert!(!progress.repeat(0, &mut segments[0]));
        assert!(!progress.repeat(1, &mut segments[1]));
        let ids = segments.iter().map(|segment| segment.segment_id.as_str());
        assert!(ids.eq(["s.4", "agent"]));
        assert_eq!(progress.rows(&segments), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }

    /// Check that snapshots are sent for segments that are there, and that what is left is what was neither
    /// sent nor lost, a segment with all of its snapshots.
    #[test]
    fn a_segment_and_its_snapshots_are_one() {
        let new = |id| Outgoing::new(segment("t", id, &["main", "main"]));
        let mut segments = vec![new("there"), new("waiting"), new("lost"), new("agent")];
        segments[3].object = None;
        let mut progress = Progress::new(&segments);
        assert_eq!(progress.waiting(), [0, 1, 2]);
        progress.settle_segment(0, true);
        progress.settle_segment(2, false);
        assert_eq!(progress.waiting(), [1]);
        assert_eq!(progress.rows(&segments), [(0, 0), (0, 1), (3, 0), (3, 1)]);
        progress.settle_snapshot(0);
        progress.settle_snapshot(3);
        progress.settle_snapshot(3);
        let rest = progress.rest(&segments);
        let rest: Vec<_> = rest
            .iter()
            .map(|rest| {
                let sequences: Vec<_> = rest.snapshots.iter().map(|s| s.sequence).collect();
                (rest.segment_id.as_str(), rest.object.is_some(), sequences)
            })
            .collect();
        assert_eq!(
            rest,
            [("there", false, vec![1]), ("waiting", true, vec![0, 1])]
        );
        assert!(progress.mark_incomplete(0) && !progress.mark_incomplete(0));
        assert_eq!(progress.rows(&segments), [(0, 1)]);
    }
}
