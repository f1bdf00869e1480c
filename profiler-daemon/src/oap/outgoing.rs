//! An item that waits for an OAP: a profiled request in the form in which it is sent, or the end of a task.
//!
//! In:  [`ProfiledSegment`]s; records of the [`super::spool`]
//! Out: messages of the protocol; records
//! Lost: a record that contradicts itself is refused as a whole

use std::collections::HashMap;
use std::sync::Arc;

use profiler_proto::profilerd::{self as spooled, SpoolRecord, spool_record::What};
use profiler_proto::skywalking::{KeyStringValuePair, SegmentObject, ThreadSnapshot, ThreadStack};
use prost::Message as _;

use super::queue::TaskAt;
use super::segment;
use crate::embedded::wire::{coverage_from_wire, coverage_to_wire};
use crate::model::{Coverage, ProfiledSegment, Service, Snapshot, TaskId};

/// Tag of a request that was sent again: the id under which it may be in the OAP as well.
const TAG_SENT_AGAIN: &str = "profilerd.sent_again_after";

/// A profiled request, or what is left of it to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outgoing {
    pub(super) key: TaskAt,
    pub(super) segment_id: String,
    /// `None` if it was dealt with before, or comes from an agent.
    pub(super) object: Option<SegmentObject>,
    pub(super) snapshots: Vec<Snapshot>,
}

/// Something that waits, in its order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Segment(Box<Outgoing>),
    Finish(TaskAt, Coverage),
}

impl Outgoing {
    /// Of a segment that [`segment::normalize`] has seen.
    pub(super) fn new(segment: ProfiledSegment) -> Self {
        Self {
            object: segment::is_ours(&segment).then(|| segment::to_object(&segment)),
            key: (segment.task_id, segment.service),
            segment_id: segment.request.request.segment_id,
            snapshots: segment.snapshots,
        }
    }

    /// Gives the request another id, so that nothing of it that may have arrived has the key of what is sent now. False
    /// for one whose id is not ours to choose, because the segment is an agent's or is in the OAP.
    pub(super) fn rename(&mut self) -> bool {
        let Some(object) = &mut self.object else {
            return false;
        };
        let numbered = self.segment_id.rsplit_once('.');
        let numbered = numbered.and_then(|(id, number)| Some((id, number.parse::<u32>().ok()?)));
        let (first, number) = numbered.unwrap_or((&self.segment_id, 1));
        let id = format!("{first}.{}", number.saturating_add(1));
        let former = std::mem::replace(&mut self.segment_id, id);
        object.trace_segment_id.clone_from(&self.segment_id);
        if object.trace_id == former {
            object.trace_id.clone_from(&self.segment_id);
        }
        for span in &mut object.spans {
            span.tags.retain(|tag| tag.key != TAG_SENT_AGAIN);
            span.tags.push(KeyStringValuePair {
                key: TAG_SENT_AGAIN.to_owned(),
                value: former.clone(),
            });
        }
        true
    }

    /// One snapshot as a message.
    pub(super) fn to_message(&self, snapshot: &Snapshot) -> ThreadSnapshot {
        let frames = snapshot.stack.iter().map(|frame| frame.to_string());
        ThreadSnapshot {
            task_id: self.key.0.0.clone(),
            trace_segment_id: self.segment_id.clone(),
            time: snapshot.unix_ms,
            sequence: snapshot.sequence,
            stack: Some(ThreadStack {
                code_signatures: frames.collect(),
            }),
        }
    }

    fn to_spooled(&self) -> spooled::SpooledSegment {
        let mut segment = spooled::SpooledSegment {
            segment_id: self.segment_id.clone(),
            object: self
                .object
                .as_ref()
                .map_or_else(Vec::new, |o| o.encode_to_vec()),
            ..spooled::SpooledSegment::default()
        };
        let mut texts: HashMap<&str, u32> = HashMap::new();
        let mut stacks: HashMap<&[Arc<str>], u32> = HashMap::new();
        for snapshot in &self.snapshots {
            let stack = stacks.get(&*snapshot.stack).copied().unwrap_or_else(|| {
                let frames = snapshot.stack.iter().map(|text| {
                    *texts.entry(text).or_insert_with(|| {
                        segment.texts.push(text.to_string());
                        index(segment.texts.len() - 1)
                    })
                });
                let frames = frames.collect();
                segment.stacks.push(spooled::SpooledStack { frames });
                let stack = index(segment.stacks.len() - 1);
                stacks.insert(&snapshot.stack, stack);
                stack
            });
            segment.snapshots.push(spooled::SpooledSnapshot {
                sequence: snapshot.sequence,
                time_ms: snapshot.unix_ms,
                stack,
            });
        }
        segment
    }

    fn from_spooled(key: TaskAt, segment: spooled::SpooledSegment) -> Option<Self> {
        let object = match segment.object.is_empty() {
            true => None,
            false => Some(SegmentObject::decode(segment.object.as_slice()).ok()?),
        };
        let texts: Vec<Arc<str>> = segment.texts.into_iter().map(Arc::from).collect();
        let stacks = segment.stacks.into_iter().map(|stack| {
            let frames = stack.frames.into_iter();
            let stack: Option<Arc<[Arc<str>]>> = frames
                .map(|frame| texts.get(frame as usize).cloned())
                .collect();
            stack.filter(|stack| !stack.is_empty())
        });
        let stacks: Vec<Arc<[Arc<str>]>> = stacks.collect::<Option<_>>()?;
        let snapshots = segment.snapshots.into_iter().map(|snapshot| {
            Some(Snapshot {
                sequence: snapshot.sequence,
                unix_ms: snapshot.time_ms,
                stack: Arc::clone(stacks.get(snapshot.stack as usize)?),
            })
        });
        Some(Self {
            key,
            segment_id: segment.segment_id,
            object,
            snapshots: snapshots.collect::<Option<_>>()?,
        })
    }
}

impl Item {
    /// Task and instance.
    pub(super) fn key(&self) -> &TaskAt {
        match self {
            Self::Segment(segment) => &segment.key,
            Self::Finish(key, _) => key,
        }
    }

    /// Number of snapshots.
    pub(super) fn snapshots(&self) -> usize {
        match self {
            Self::Segment(segment) => segment.snapshots.len(),
            Self::Finish(..) => 0,
        }
    }

    /// For the spool.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (task_id, service) = self.key();
        let what = match self {
            Self::Segment(segment) => What::Segment(segment.to_spooled()),
            Self::Finish(_, coverage) => What::Finish(coverage_to_wire(coverage)),
        };
        let record = SpoolRecord {
            task_id: task_id.0.clone(),
            service: service.name.clone(),
            service_instance: service.instance.clone(),
            what: Some(what),
        };
        record.encode_to_vec()
    }

    /// From the spool; `None` if the bytes are no record.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let record = SpoolRecord::decode(bytes).ok()?;
        let service = Service {
            name: record.service,
            instance: record.service_instance,
        };
        let key = (TaskId(record.task_id), service);
        Some(match record.what? {
            What::Segment(segment) => {
                Self::Segment(Box::new(Outgoing::from_spooled(key, segment)?))
            }
            What::Finish(coverage) => Self::Finish(key, coverage_from_wire(&coverage)),
        })
    }
}

/// Texts and stacks of one request are fewer than its snapshots times frames, which are bounded.
fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::segment::tests::segment;
    use super::*;
    use crate::model::Counter;

    /// Check that a request that is renamed has a new id wherever it stands, and says which one it had.
    #[test]
    fn a_renamed_request_has_one_new_id() {
        let mut outgoing = Outgoing::new(segment("t", "s", &["main"]));
        for (id, former) in [("s.2", "s"), ("s.3", "s.2")] {
            assert!(outgoing.rename());
            assert_eq!(outgoing.segment_id, id);
            let object = outgoing.object.as_ref().unwrap();
            assert_eq!((&*object.trace_segment_id, &*object.trace_id), (id, id));
            let tags = object.spans[0].tags.iter();
            let said: Vec<_> = tags.filter(|tag| tag.key == TAG_SENT_AGAIN).collect();
            assert_eq!(said.len(), 1);
            assert_eq!(said[0].value, former);
            let message = outgoing.to_message(&outgoing.snapshots[0]);
            assert_eq!(message.trace_segment_id, id);
        }
        // A caller's trace stays the caller's.
        let object = outgoing.object.as_mut().unwrap();
        object.trace_id = "caller".to_owned();
        assert!(outgoing.rename());
        assert_eq!(outgoing.object.as_ref().unwrap().trace_id, "caller");
        outgoing.object = None;
        assert!(!outgoing.rename());
        assert_eq!(outgoing.segment_id, "s.4");
    }

    /// Check that both kinds come back from their bytes as they were.
    #[test]
    fn items_come_back() {
        let outgoing = Outgoing::new(segment("t", "s", &["main>a", "main>b", "main>a"]));
        let item = Item::Segment(Box::new(outgoing.clone()));
        assert_eq!(Item::decode(&item.encode()), Some(item));
        let rest = Item::Segment(Box::new(Outgoing {
            object: None,
            ..outgoing.clone()
        }));
        assert_eq!(Item::decode(&rest.encode()), Some(rest));
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsSeen, 3);
        coverage.note("cut short");
        let finish = Item::Finish(outgoing.key, coverage);
        assert_eq!(Item::decode(&finish.encode()), Some(finish));
    }

    /// Check that records that name what they do not have are refused, and so are empty stacks.
    #[test]
    fn contradictions_are_refused() {
        let outgoing = Outgoing::new(segment("t", "s", &["main>a"]));
        let good = outgoing.to_spooled();
        let read = |segment| Outgoing::from_spooled(outgoing.key.clone(), segment);
        assert!(read(good.clone()).is_some());
        let mut bad = good.clone();
        bad.stacks[0].frames[0] = 7;
        assert_eq!(read(bad), None);
        let mut bad = good.clone();
        bad.snapshots[0].stack = 7;
        assert_eq!(read(bad), None);
        let mut bad = good.clone();
        bad.stacks[0].frames.clear();
        assert_eq!(read(bad), None);
        let mut bad = good;
        bad.object = vec![0xff];
        assert_eq!(read(bad), None);
        assert_eq!(Item::decode(b""), None);
        assert_eq!(Item::decode(&[0xff; 9]), None);
    }
}
