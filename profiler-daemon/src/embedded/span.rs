//! Keeps the spans of a trace segment, within a size.
//!
//! In:  the spans of a `SegmentObject`, as an agent or our own reporter sent them
//! Out: spans of one segment, by their number, at most [`SPANS_MAX_BYTES`] as messages
//! Lost: spans, and logs, references and tags of spans, beyond the sizes below -> `StoreLosses::span_parts_over_limit`
//!
//! Span 0 and entry spans are kept first: OAP names a segment by them.

use std::cmp::Reverse;

use profiler_proto::skywalking::{SegmentObject, SpanObject, SpanType};
use prost::Message as _;

use super::trace::{bounded, fitting_tags};
use crate::model::plain::clean;

/// Most bytes of the spans of one segment: a request that asks twenty others has 4 KiB.
pub(super) const SPANS_MAX_BYTES: usize = 16 << 10;
/// Most bytes of one span. Names are at most 600 characters and tags 4 KiB, so a span without logs and references is
/// below.
const SPAN_MAX_BYTES: usize = 8 << 10;

/// The spans that are kept, by their number, and how many parts are not: a span, a log, a reference and a tag is a part.
pub(super) fn keep(mut spans: Vec<SpanObject>) -> (Vec<SpanObject>, u64) {
    spans.sort_by_key(|span| Reverse((span.span_id == 0, span.span_type() == SpanType::Entry)));
    let mut room = SPANS_MAX_BYTES;
    let mut lost = 0;
    let mut kept = Vec::new();
    for mut span in spans {
        lost += lighten(&mut span);
        match room.checked_sub(size(&span)) {
            Some(rest) => {
                room = rest;
                kept.push(span);
            }
            None => lost += 1,
        }
    }
    kept.sort_by_key(|span| span.span_id);
    (kept, lost)
}

/// Bytes in the message that the store keeps, with the span's own length.
fn size(span: &SpanObject) -> usize {
    span.encoded_len() + 4
}

/// Takes parts from a span until it fits, the least telling first; yields how many.
fn lighten(span: &mut SpanObject) -> u64 {
    // Agents take both from URLs and addresses.
    span.operation_name = bounded(&clean(&span.operation_name));
    span.peer = bounded(&clean(&span.peer));
    let mut lost = 0;
    if span.encoded_len() > SPAN_MAX_BYTES {
        lost += span.logs.len();
        span.logs.clear();
    }
    if span.encoded_len() > SPAN_MAX_BYTES {
        let tags = fitting_tags(span);
        lost += span.tags.len() - tags.len();
        span.tags = tags;
    }
    if span.encoded_len() > SPAN_MAX_BYTES {
        lost += span.refs.len();
        span.refs.clear();
    }
    lost as u64
}

/// As the store keeps them: a segment with nothing else.
pub(super) fn to_bytes(spans: Vec<SpanObject>) -> Vec<u8> {
    let object = SegmentObject {
        spans,
        ..SegmentObject::default()
    };
    object.encode_to_vec()
}

/// What [`to_bytes`] wrote; nothing for a segment of an older file.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<SpanObject> {
    SegmentObject::decode(bytes).map_or_else(|_| Vec::new(), |object| object.spans)
}

#[cfg(test)]
mod tests {
    use profiler_proto::skywalking::{KeyStringValuePair, Log, SegmentReference};

    use super::*;

    fn span(span_id: i32, kind: SpanType) -> SpanObject {
        SpanObject {
            span_id,
            span_type: kind.into(),
            operation_name: "x".repeat(400),
            ..SpanObject::default()
        }
    }

    fn ids(spans: &[SpanObject]) -> Vec<i32> {
        spans.iter().map(|span| span.span_id).collect()
    }

    /// Check that spans are kept whole and by their number while there is room, and survive the store.
    #[test]
    fn a_usual_segment_is_kept_whole() {
        let mut exit = span(1, SpanType::Exit);
        exit.logs.push(Log::default());
        exit.refs.push(SegmentReference::default());
        let sent = vec![exit.clone(), span(0, SpanType::Entry)];
        let (kept, lost) = keep(sent);
        assert_eq!((&kept, lost), (&vec![span(0, SpanType::Entry), exit], 0));
        assert_eq!(from_bytes(&to_bytes(kept.clone())), kept);
        assert_eq!(from_bytes(&[]), []);
        assert_eq!(from_bytes(b"no message"), []);
    }

    /// Check that span 0 and entry spans come before others, and that the others are counted.
    #[test]
    fn the_spans_that_name_a_segment_are_kept_first() {
        let mut sent: Vec<SpanObject> = (1..100).map(|id| span(id, SpanType::Exit)).collect();
        sent.push(span(100, SpanType::Entry));
        sent.push(span(0, SpanType::Local));
        let (kept, lost) = keep(sent);
        assert_eq!(ids(&kept)[..2], [0, 1]);
        assert_eq!(kept.last().unwrap().span_id, 100);
        assert_eq!(kept.len() as u64 + lost, 101);
        let bytes = to_bytes(kept).len();
        assert!(
            (SPANS_MAX_BYTES - 500..=SPANS_MAX_BYTES).contains(&bytes),
            "{bytes}"
        );
    }

    /// Check that a span of any size is made to fit, with each part counted, and its names without control characters.
    #[test]
    fn a_huge_span_is_made_to_fit() {
        let pair = KeyStringValuePair {
            key: "k".to_owned(),
            value: "v".repeat(3_000),
        };
        let reference = SegmentReference {
            trace_id: "t".repeat(9_000),
            ..SegmentReference::default()
        };
        let mut huge = span(0, SpanType::Entry);
        huge.operation_name = format!("/a\u{1b}[31m{}", "é".repeat(5_000));
        huge.peer = "p".repeat(50_000);
        huge.logs = vec![
            Log {
                time: 1,
                data: vec![pair.clone(); 9],
            };
            2
        ];
        huge.tags = vec![pair; 5];
        huge.refs = vec![reference; 3];
        let (kept, lost) = keep(vec![huge]);
        assert_eq!((kept.len(), lost), (1, 2 + 4 + 3));
        assert_eq!(kept[0].tags.len(), 1);
        assert!(kept[0].encoded_len() <= SPAN_MAX_BYTES);
        assert!(!kept[0].operation_name.contains('\u{1b}'));
    }
}
