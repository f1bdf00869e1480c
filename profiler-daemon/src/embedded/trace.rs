//! Turns a `SegmentObject` into what a profile needs to know of it.
//!
//! In:  `SegmentObject` of an agent or of our own reporter
//! Out: [`SegmentSummary`]; the spans themselves are kept by [`super::span`]
//! Lost: tags beyond [`TAGS_MAX`] and [`TAGS_MAX_BYTES`]; segments without spans, without a span 0 or with an unusable id -> [`BadSegment`]

use profiler_proto::skywalking::{KeyStringValuePair, SegmentObject, SpanObject, SpanType};
use thiserror::Error;

use crate::model::name::shorten;
use crate::model::plain::{clean, is_plain};

/// Longest segment or trace id, the width of OAP's column.
pub(super) const ID_MAX_BYTES: usize = 150;
/// Longest other name kept, in UTF-16 units; whatever the other services take ([`super::agents`]) fits.
const NAME_UNITS_MAX: usize = 600;
/// Most tags kept of a segment: our own spans have at most a dozen.
const TAGS_MAX: usize = 32;
/// Bytes of keys and values kept of a segment's tags; a value may be a whole SQL statement.
const TAGS_MAX_BYTES: usize = 4096;
/// The tag of the HTTP status: in Java and here, and in older agents.
const STATUS_TAGS: [&str; 2] = ["http.status_code", "status_code"];

/// A trace segment, without its spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Segment id.
    pub segment_id: String,
    /// Trace id.
    pub trace_id: String,
    /// Service name.
    pub service: String,
    /// Service instance name.
    pub instance: String,
    /// Operation name of the last entry span, else of span 0.
    pub endpoint: String,
    /// Earliest start of a span, epoch milliseconds.
    pub start_ms: i64,
    /// Latest end of a span, epoch milliseconds.
    pub end_ms: i64,
    /// HTTP status from the tags of the entry span, if there is one.
    pub status: Option<u16>,
    /// Tags of that span, key and value, as far as they are kept.
    pub tags: Vec<(String, String)>,
    /// Whether one of its spans is marked as failed.
    pub is_error: bool,
}

/// A segment as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSegment {
    /// What it is.
    pub summary: SegmentSummary,
    /// Its spans, by their number, as far as they are kept; none if an older profilerd stored it.
    pub spans: Vec<SpanObject>,
    /// Whether a task has snapshots of it.
    pub is_profiled: bool,
}

/// Why a segment is not stored.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadSegment {
    /// OAP ignores such segments too.
    #[error("segment without spans")]
    NoSpans,
    /// OAP reads ids and times from span 0.
    #[error("segment without span 0")]
    NoSpanZero,
    /// Empty, wider than OAP's column, or not plain.
    #[error(
        "segment id or trace id is empty, longer than {ID_MAX_BYTES} bytes, or has control characters"
    )]
    BadId,
    /// An instance of this name cannot have reported.
    #[error("service or service instance has control characters")]
    BadName,
}

impl SegmentSummary {
    /// Reads a segment.
    ///
    /// # Errors
    ///
    /// [`BadSegment`] for a segment that OAP would not show either.
    pub fn try_from_object(object: &SegmentObject) -> Result<Self, BadSegment> {
        let id_ok = |id: &str| !id.is_empty() && id.len() <= ID_MAX_BYTES && is_plain(id);
        if !id_ok(&object.trace_segment_id) || !id_ok(&object.trace_id) {
            return Err(BadSegment::BadId);
        }
        if !is_plain(&object.service) || !is_plain(&object.service_instance) {
            return Err(BadSegment::BadName);
        }
        let start_ms = object.spans.iter().map(|span| span.start_time).min();
        let end_ms = object.spans.iter().map(|span| span.end_time).max();
        let (Some(start_ms), Some(end_ms)) = (start_ms, end_ms) else {
            return Err(BadSegment::NoSpans);
        };
        let first = object.spans.iter().find(|span| span.span_id == 0);
        let first = first.ok_or(BadSegment::NoSpanZero)?;
        let is_entry = |span: &&SpanObject| span.span_type() == SpanType::Entry;
        let named = object.spans.iter().rfind(is_entry).unwrap_or(first);
        Ok(Self {
            // Agents take it from the URL.
            endpoint: bounded(&clean(&named.operation_name)),
            status: status(named),
            tags: tags(named),
            service: bounded(&object.service),
            instance: bounded(&object.service_instance),
            segment_id: object.trace_segment_id.clone(),
            trace_id: object.trace_id.clone(),
            start_ms,
            end_ms: end_ms.max(start_ms),
            is_error: object.spans.iter().any(|span| span.is_error),
        })
    }
}

fn status(span: &SpanObject) -> Option<u16> {
    let mut tags = span.tags.iter();
    let tag = tags.find(|tag| STATUS_TAGS.contains(&tag.key.as_str()));
    tag.and_then(|tag| tag.value.parse().ok())
}

fn tags(span: &SpanObject) -> Vec<(String, String)> {
    let fitting = fitting_tags(span).into_iter();
    fitting.map(|tag| (tag.key, tag.value)).collect()
}

/// Whole tags, in their order; those without room are left out.
pub(super) fn fitting_tags(span: &SpanObject) -> Vec<KeyStringValuePair> {
    let mut room = TAGS_MAX_BYTES;
    let fitting = span.tags.iter().filter(|tag| {
        let rest = room.checked_sub(tag.key.len() + tag.value.len());
        room = rest.unwrap_or(room);
        rest.is_some()
    });
    fitting.take(TAGS_MAX).cloned().collect()
}

/// A name as it is kept.
pub(super) fn bounded(name: &str) -> String {
    shorten(name, NAME_UNITS_MAX).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(span_id: i32, kind: SpanType, name: &str, start_time: i64) -> SpanObject {
        SpanObject {
            span_id,
            start_time,
            end_time: start_time + 10,
            operation_name: name.to_owned(),
            span_type: kind.into(),
            ..SpanObject::default()
        }
    }

    fn object(spans: Vec<SpanObject>) -> SegmentObject {
        SegmentObject {
            trace_id: "t".to_owned(),
            trace_segment_id: "s".to_owned(),
            spans,
            ..SegmentObject::default()
        }
    }

    /// Check that the endpoint is the last entry span's and the times are the outermost ones.
    #[test]
    fn a_segment_is_named_by_its_last_entry_span() {
        let mut entry = span(1, SpanType::Entry, "POST:/", 95);
        entry.tags.push(KeyStringValuePair {
            key: "http.status_code".to_owned(),
            value: "503".to_owned(),
        });
        let spans = vec![
            span(2, SpanType::Exit, "mysql", 120),
            span(0, SpanType::Entry, "/raw", 100),
            entry,
        ];
        let summary = SegmentSummary::try_from_object(&object(spans)).unwrap();
        assert_eq!(summary.endpoint, "POST:/");
        assert_eq!((summary.start_ms, summary.end_ms), (95, 130));
        assert_eq!(summary.status, Some(503));
        let status = ("http.status_code".to_owned(), "503".to_owned());
        assert_eq!(summary.tags, [status]);
    }

    /// Check that the tags of a segment are bounded in number and bytes, and that those kept are whole.
    #[test]
    fn tags_are_bounded() {
        let kept = |values: Vec<String>| {
            let mut entry = span(0, SpanType::Entry, "a", 1);
            let tags = values.into_iter().map(|value| KeyStringValuePair {
                key: "k".to_owned(),
                value,
            });
            entry.tags.extend(tags);
            let summary = SegmentSummary::try_from_object(&object(vec![entry])).unwrap();
            let values = summary.tags.into_iter().map(|(_, value)| value.len());
            values.collect::<Vec<_>>()
        };
        assert_eq!(kept(vec![String::new(); 40]), [0; TAGS_MAX]);
        let long = "x".repeat(TAGS_MAX_BYTES);
        let rest = "x".repeat(TAGS_MAX_BYTES - 4);
        let last = "x".to_owned();
        assert_eq!(
            kept(vec![last.clone(), long, rest, last]),
            [1, TAGS_MAX_BYTES - 4]
        );
    }

    /// Check that a segment without an entry span is named by span 0.
    #[test]
    fn without_entry_span_zero_names_the_segment() {
        let spans = vec![
            span(1, SpanType::Exit, "b", 2),
            span(0, SpanType::Local, "a", 1),
        ];
        let summary = SegmentSummary::try_from_object(&object(spans)).unwrap();
        assert_eq!(summary.endpoint, "a");
        assert_eq!(summary.status, None);
    }

    /// Check that what OAP would not show is refused.
    #[test]
    fn unusable_segments_are_refused() {
        let refused = |object| SegmentSummary::try_from_object(&object).unwrap_err();
        assert_eq!(refused(object(Vec::new())), BadSegment::NoSpans);
        let lone = vec![span(1, SpanType::Entry, "a", 1)];
        assert_eq!(refused(object(lone)), BadSegment::NoSpanZero);
        let mut long = object(vec![span(0, SpanType::Entry, "a", 1)]);
        long.trace_segment_id = "x".repeat(151);
        assert_eq!(refused(long), BadSegment::BadId);
    }
}
