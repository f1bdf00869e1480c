//! How far the delivery of some profiled requests is. A request's segment and its snapshots are one unit: an OAP
//! shows neither without the other.
//!
//! In:  what became of each segment and of each row of snapshots
//! Out: what is still to be sent; what is left when nothing more can be
//! Lost: snapshots of a segment that is lost; [`super::report`] counts them

use super::outgoing::Outgoing;

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
        }
    }

    /// Segments that are still to be sent.
    pub(super) fn waiting(&self) -> Vec<usize> {
        self.with(Fate::Waiting).collect()
    }

    /// Snapshots that can be sent: those of segments that the OAP has.
    pub(super) fn rows(&self, segments: &[Outgoing]) -> Vec<(usize, usize)> {
        self.with(Fate::There)
            .flat_map(|index| (0..segments[index].snapshots.len()).map(move |row| (index, row)))
            .collect()
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
    }
}
