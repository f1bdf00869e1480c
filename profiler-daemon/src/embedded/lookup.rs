//! What the query side reads from the [`Store`].
//!
//! In:  ids and names from queries
//! Out: tasks, segments and snapshots that fit; what is not there is an empty list, as in OAP

use super::storage::{StorageError, segments, snapshots, tasks, traces};
use super::store::{Store, TraceFilter};
use super::task::{LogEntry, TaskRecord};
use super::trace::StoredSegment;
use crate::model::Snapshot;

impl Store {
    /// All tasks with their logs, newest first.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn logged_tasks(&self) -> Result<Vec<(TaskRecord, Vec<LogEntry>)>, StorageError> {
        self.read(|db| {
            let newest = tasks::all(db)?.into_iter().rev();
            let logged = newest.map(|row| Ok((row.task, tasks::logs(db, row.key)?)));
            logged.collect()
        })
    }

    /// The segments of a task that can be shown, oldest first, without their snapshots.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn listed_segments(&self, task_id: &str) -> Result<Vec<StoredSegment>, StorageError> {
        self.read(|db| match tasks::find(db, task_id)? {
            Some(row) => traces::of_task(db, row.key),
            None => Ok(Vec::new()),
        })
    }

    /// The segments that a condition has, one page of them.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn find_segments(&self, filter: &TraceFilter) -> Result<Vec<StoredSegment>, StorageError> {
        self.read(|db| traces::find(db, filter))
    }

    /// The segments of a trace, oldest first; 200 at most.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn segments_of_trace(&self, trace_id: &str) -> Result<Vec<StoredSegment>, StorageError> {
        self.read(|db| traces::of_trace(db, trace_id))
    }

    /// The snapshots of a segment, of whichever task.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn snapshots_of(&self, segment_id: &str) -> Result<Vec<Snapshot>, StorageError> {
        self.read(|db| {
            let mut all = Vec::new();
            for key in segments::keys(db, segment_id)? {
                all.extend(snapshots::of_segment(db, key)?);
            }
            Ok(all)
        })
    }

    /// Keys of the tags of segments, by name.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn tag_keys(&self) -> Result<Vec<String>, StorageError> {
        self.read(traces::tag_keys)
    }

    /// Values of a tag of segments, in their order.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn tag_values(&self, key: &str) -> Result<Vec<String>, StorageError> {
        self.read(|db| traces::tag_values(db, key))
    }

    /// Endpoints of a service by name: those that tasks were created for, and those of profiled requests.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn endpoints(&self, service: &str) -> Result<Vec<String>, StorageError> {
        self.read(|db| segments::endpoints(db, service))
    }
}

#[cfg(test)]
mod tests {
    use profiler_proto::skywalking::{KeyStringValuePair, SegmentObject, SpanObject, SpanType};

    use super::super::store::StoreLimits;
    use super::*;

    /// A segment of a trace, with one entry span.
    fn segment(id: &str, trace_id: &str, start_time: i64, length_ms: i64) -> SegmentObject {
        let tag = KeyStringValuePair {
            key: "http.method".to_owned(),
            value: format!("a \"{length_ms}\" ä"),
        };
        SegmentObject {
            trace_id: trace_id.to_owned(),
            trace_segment_id: id.to_owned(),
            spans: vec![SpanObject {
                start_time,
                end_time: start_time + length_ms,
                operation_name: format!("/{length_ms}"),
                is_error: length_ms > 25,
                tags: vec![tag],
                ..SpanObject::default()
            }],
            service: "shop".to_owned(),
            service_instance: format!("shop-{trace_id}"),
            is_size_limited: false,
        }
    }

    fn found(store: &Store, filter: &TraceFilter) -> Vec<String> {
        let segments = store.find_segments(filter).unwrap().into_iter();
        segments.map(|segment| segment.summary.segment_id).collect()
    }

    /// Check each part of a condition alone, both orders, and pages.
    #[test]
    fn segments_are_found_by_each_part_of_a_condition() {
        let store = Store::new(StoreLimits::default());
        let other = SegmentObject {
            service: "bank".to_owned(),
            ..segment("d", "t3", 400, 5)
        };
        let segments = [
            segment("a", "t1", 100, 30),
            segment("b", "t1", 200, 10),
            segment("c", "t2", 300, 20),
            other,
        ];
        store.add_segments(segments).unwrap();
        let all = || TraceFilter {
            count: 10,
            ..TraceFilter::default()
        };
        let text = |text: &str| Some(text.to_owned());
        let tag = |value: &str| vec![("http.method".to_owned(), value.to_owned())];
        for (filter, expected) in [
            (all(), "dcba"),
            (
                TraceFilter {
                    by_duration: true,
                    ..all()
                },
                "acbd",
            ),
            (
                TraceFilter {
                    service: text("shop"),
                    ..all()
                },
                "cba",
            ),
            (
                TraceFilter {
                    instance: text("shop-t1"),
                    ..all()
                },
                "ba",
            ),
            (
                TraceFilter {
                    endpoint: text("/20"),
                    ..all()
                },
                "c",
            ),
            (
                TraceFilter {
                    trace_id: text("t1"),
                    ..all()
                },
                "ba",
            ),
            (
                TraceFilter {
                    since_ms: Some(200),
                    ..all()
                },
                "dcb",
            ),
            (
                TraceFilter {
                    before_ms: Some(200),
                    ..all()
                },
                "a",
            ),
            (
                TraceFilter {
                    duration_ms: (Some(10), Some(20)),
                    ..all()
                },
                "cb",
            ),
            (
                TraceFilter {
                    is_error: Some(true),
                    ..all()
                },
                "a",
            ),
            (
                TraceFilter {
                    is_error: Some(false),
                    ..all()
                },
                "dcb",
            ),
            (
                TraceFilter {
                    tags: tag("a \"20\" ä"),
                    ..all()
                },
                "c",
            ),
            (
                TraceFilter {
                    tags: tag("a"),
                    ..all()
                },
                "",
            ),
            (
                TraceFilter {
                    tags: [tag("a \"20\" ä"), tag("x")].concat(),
                    ..all()
                },
                "",
            ),
            (
                TraceFilter {
                    skip: 1,
                    count: 2,
                    ..all()
                },
                "cb",
            ),
            (TraceFilter { skip: 9, ..all() }, ""),
        ] {
            assert_eq!(found(&store, &filter).concat(), expected, "{filter:?}");
        }
        assert_eq!(store.tag_keys().unwrap(), ["http.method"]);
        let values = store.tag_values("http.method").unwrap();
        assert_eq!(values, [10, 20, 30, 5].map(|ms| format!("a \"{ms}\" ä")));
        assert_eq!(store.tag_values("url").unwrap(), [""; 0]);
    }

    /// Check that a trace has the spans of all its segments, the oldest first, and that none is profiled.
    #[test]
    fn a_trace_has_the_spans_of_its_segments() {
        let store = Store::new(StoreLimits::default());
        let mut late = segment("b", "t", 200, 10);
        late.spans.push(SpanObject {
            span_id: 1,
            start_time: 205,
            end_time: 206,
            span_type: SpanType::Exit.into(),
            ..SpanObject::default()
        });
        let early = segment("a", "t", 100, 10);
        store.add_segments([late.clone(), early.clone()]).unwrap();
        let read = store.segments_of_trace("t").unwrap();
        let spans: Vec<_> = read.iter().map(|segment| &segment.spans).collect();
        assert_eq!(spans, [&early.spans, &late.spans]);
        assert!(read.iter().all(|segment| !segment.is_profiled));
        assert_eq!(store.segments_of_trace("u").unwrap(), []);
    }

    /// Check that spans of segments without snapshots take an eighth of the store at most, and that the oldest go.
    #[test]
    fn spans_of_loose_segments_have_a_share() {
        let store = Store::new(StoreLimits {
            bytes: 1 << 20,
            ..StoreLimits::default()
        });
        for number in 0..100 {
            let mut segment = segment(&format!("s{number:02}"), "t", number, 1);
            segment.spans[0].peer = "x".repeat(600);
            let more = (1..5).map(|span_id| SpanObject {
                span_id,
                ..segment.spans[0].clone()
            });
            segment.spans.extend(more.collect::<Vec<_>>());
            store.add_segments([segment]).unwrap();
        }
        let all = TraceFilter {
            count: 1_000,
            ..TraceFilter::default()
        };
        let kept = found(&store, &all);
        assert!((30..45).contains(&kept.len()), "{}", kept.len());
        assert_eq!((kept[0].as_str(), kept[1].as_str()), ("s99", "s98"));
    }
}
