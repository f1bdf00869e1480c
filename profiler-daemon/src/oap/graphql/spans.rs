//! Asks for the segments that agents report: which there are at a time, and their entry spans.
//!
//! Lists come from `queryBasicTraces`; an OAP with BanyanDB knows only `queryTraces` for them since 10.3, and
//! says so.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::GraphqlClient;
use crate::embedded::task::service_id;
use crate::model::AgentSpan;
use crate::model::date::utc;
use crate::model::name::{SERVICE_MAX, cut};

/// Segments of one page, and pages.
const PAGE: usize = 100;
const PAGES_MAX: usize = 3;

const TIME: &str = "query{ it: getTimeInfo{ timezone } }";
const HAS_TRACES_V2: &str = "query{ it: hasQueryTracesV2Support }";
const LIST: &str = "query($c: TraceQueryCondition){ it: queryBasicTraces(condition: $c){ \
    traces{ start duration traceIds } } }";
const LIST_V2: &str = "query($c: TraceQueryCondition){ it: queryTraces(condition: $c){ traces{ \
    spans{ traceId segmentId spanId type serviceCode serviceInstanceName startTime endTime } } } }";
const TRACE: &str = "query($t: ID!){ it: queryTrace(traceId: $t){ spans{ segmentId spanId type \
    serviceCode serviceInstanceName startTime endTime endpointName \
    refs{ parentSegmentId parentSpanId type } } } }";

/// How an OAP is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// How far its clock on the wall is ahead of UTC: times of queries are texts in its zone.
    zone_ms: i64,
    /// It lists traces by `queryTraces` only.
    has_traces_v2: bool,
}

/// Which segments.
#[derive(Clone, Copy, Debug)]
pub struct SegmentQuery<'a> {
    /// Service, `GENERAL` or not.
    pub service: &'a str,
    /// Service instance; all of them if it is not given.
    pub instance: Option<&'a str>,
    /// Began between these, epoch milliseconds.
    pub start_unix_ms: (i64, i64),
    /// Lasted between these, milliseconds.
    pub duration_ms: (i64, i64),
}

/// A segment as lists have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSegment {
    /// Id of the trace that has the segment.
    pub trace_id: String,
    /// Start, epoch milliseconds.
    pub start_unix_ms: i64,
    /// From the first start of its spans to the last end.
    pub duration_ms: i64,
}

#[derive(Deserialize)]
struct TimeRow {
    timezone: Option<String>,
}

#[derive(Deserialize)]
struct ListRow {
    traces: Vec<SegmentRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SegmentRow {
    start: String,
    duration: i64,
    trace_ids: Vec<String>,
}

#[derive(Deserialize)]
struct ListV2Row {
    traces: Vec<TraceRow>,
}

#[derive(Deserialize)]
struct TraceRow {
    spans: Vec<SpanRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpanRow {
    #[serde(default)]
    trace_id: String,
    segment_id: String,
    span_id: i32,
    r#type: String,
    service_code: String,
    service_instance_name: String,
    start_time: i64,
    end_time: i64,
    #[serde(default)]
    endpoint_name: Option<String>,
    #[serde(default)]
    refs: Vec<RefRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefRow {
    parent_segment_id: String,
    parent_span_id: i32,
    r#type: String,
}

impl GraphqlClient {
    /// How this OAP is asked for segments.
    ///
    /// # Errors
    ///
    /// If a call fails.
    pub async fn dialect(&self) -> Result<Dialect> {
        let time: TimeRow = self.query(TIME, Value::Null).await?;
        let zone = time.timezone.context("the OAP tells no time zone")?;
        let zone_ms =
            parse_zone(&zone).with_context(|| format!("the OAP's time zone is {zone:?}"))?;
        let has_traces_v2 = match self.query(HAS_TRACES_V2, Value::Null).await {
            Ok(has) => has,
            // Older ones complain about the field, by its name.
            Err(error) if format!("{error:#}").contains("hasQueryTracesV2Support") => false,
            Err(error) => return Err(error),
        };
        Ok(Dialect {
            zone_ms,
            has_traces_v2,
        })
    }

    /// Segments of a service at a time; `true` if there are more.
    ///
    /// # Errors
    ///
    /// If a call fails.
    pub async fn segments(
        &self,
        wanted: SegmentQuery<'_>,
        dialect: Dialect,
    ) -> Result<(Vec<ListedSegment>, bool)> {
        let mut segments = Vec::new();
        for page in 1..=PAGES_MAX {
            let condition = json!({ "c": condition(wanted, dialect, page) });
            let count = if dialect.has_traces_v2 {
                let list: ListV2Row = self.query(LIST_V2, condition).await?;
                let count = list.traces.len();
                segments.extend(list.traces.into_iter().flat_map(listed_v2));
                count
            } else {
                let list: ListRow = self.query(LIST, condition).await?;
                let count = list.traces.len();
                segments.extend(list.traces.into_iter().filter_map(listed));
                count
            };
            if count < PAGE {
                return Ok((segments, false));
            }
        }
        Ok((segments, true))
    }

    /// The entry span of each segment of a trace.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn entry_spans(&self, trace_id: &str) -> Result<Vec<AgentSpan>> {
        let trace: Option<TraceRow> = self.query(TRACE, json!({ "t": trace_id })).await?;
        Ok(trace.map_or_else(Vec::new, entries))
    }
}

/// A time from the first second to the last, as queries have it.
pub(super) fn between(unix_ms: (i64, i64), dialect: Dialect) -> Value {
    let (start, end) = unix_ms;
    json!({
        "start": second(start.saturating_add(dialect.zone_ms)),
        "end": second(end.saturating_add(dialect.zone_ms)),
        "step": "SECOND",
    })
}

fn condition(wanted: SegmentQuery<'_>, dialect: Dialect, page: usize) -> Value {
    let service_id = service_id(cut(wanted.service, SERVICE_MAX));
    let instance_id = wanted.instance.map(|name| {
        let name = STANDARD.encode(cut(name, SERVICE_MAX));
        format!("{service_id}_{name}")
    });
    let mut condition = json!({
        "serviceId": service_id,
        "serviceInstanceId": instance_id,
        "queryDuration": between(wanted.start_unix_ms, dialect),
        "traceState": "ALL",
        "queryOrder": "BY_START_TIME",
        "paging": { "pageNum": page, "pageSize": PAGE },
    });
    // 0 would be no bound at all.
    let (least, most) = wanted.duration_ms;
    for (name, bound) in [("minTraceDuration", least), ("maxTraceDuration", most)] {
        if let Ok(bound) = i32::try_from(bound)
            && bound > 0
        {
            condition[name] = bound.into();
        }
    }
    condition
}

/// `2023-11-14 221320`.
fn second(unix_ms: i64) -> String {
    let text = utc(unix_ms);
    text.get(..19).unwrap_or_default().replace(':', "")
}

/// Milliseconds of `+0530`.
fn parse_zone(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    // Without a sign of its own.
    let number = i64::from(
        digits
            .parse::<u16>()
            .ok()
            .filter(|_| !digits.starts_with('+'))?,
    );
    let is_zone = digits.len() == 4 && number % 100 < 60 && number <= 1800;
    is_zone.then_some(sign * (number / 100 * 60 + number % 100) * 60_000)
}

fn listed(row: SegmentRow) -> Option<ListedSegment> {
    Some(ListedSegment {
        trace_id: row.trace_ids.into_iter().next()?,
        start_unix_ms: row.start.parse().ok()?,
        duration_ms: row.duration,
    })
}

fn listed_v2(trace: TraceRow) -> Vec<ListedSegment> {
    let first = trace.spans.first();
    let trace_id = first.map_or_else(String::new, |span| span.trace_id.clone());
    let entries = entries(trace).into_iter();
    entries
        .map(|span| ListedSegment {
            trace_id: trace_id.clone(),
            start_unix_ms: span.start_unix_ms,
            duration_ms: span.end_unix_ms.saturating_sub(span.start_unix_ms),
        })
        .collect()
}

/// The first entry span of each segment.
fn entries(trace: TraceRow) -> Vec<AgentSpan> {
    let mut rows: Vec<SpanRow> = trace.spans;
    rows.retain(|row| row.r#type == "Entry");
    rows.sort_by(|a, b| (&a.segment_id, a.span_id).cmp(&(&b.segment_id, b.span_id)));
    rows.dedup_by(|later, first| later.segment_id == first.segment_id);
    let spans = rows.into_iter().map(|row| AgentSpan {
        segment_id: row.segment_id,
        service: row.service_code,
        instance: row.service_instance_name,
        endpoint: row.endpoint_name.unwrap_or_default(),
        start_unix_ms: row.start_time,
        end_unix_ms: row.end_time,
        callers: row.refs.into_iter().filter_map(caller).collect(),
    });
    spans.collect()
}

fn caller(row: RefRow) -> Option<(String, i32)> {
    (row.r#type == "CROSS_PROCESS").then_some((row.parent_segment_id, row.parent_span_id))
}

/// Reads a body as the answer to each of these queries.
#[cfg(feature = "fuzzing")]
pub(super) fn read_as_anything(body: &[u8]) {
    use super::parse_answer;
    if let Ok(list) = parse_answer::<ListRow>(body) {
        list.traces.into_iter().filter_map(listed).for_each(drop);
    }
    if let Ok(list) = parse_answer::<ListV2Row>(body) {
        list.traces.into_iter().flat_map(listed_v2).for_each(drop);
    }
    if let Ok(trace) = parse_answer::<TraceRow>(body) {
        entries(trace);
    }
    if let Ok(TimeRow {
        timezone: Some(zone),
    }) = parse_answer(body)
    {
        parse_zone(&zone);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const START: i64 = 1_700_000_000_123;

    /// Check the condition of a query, in the OAP's own time.
    #[test]
    fn a_query_names_ids_and_times() {
        let wanted = SegmentQuery {
            service: "shop",
            instance: Some("one"),
            start_unix_ms: (START, START + 1_000),
            duration_ms: (0, 700),
        };
        let dialect = Dialect {
            zone_ms: 3_600_000,
            has_traces_v2: false,
        };
        let condition = condition(wanted, dialect, 2);
        assert_eq!(condition["serviceId"], "c2hvcA==.1");
        assert_eq!(condition["serviceInstanceId"], "c2hvcA==.1_b25l");
        assert_eq!(condition["queryDuration"]["start"], "2023-11-14 231320");
        assert_eq!(condition["queryDuration"]["end"], "2023-11-14 231321");
        assert_eq!(condition["minTraceDuration"], Value::Null);
        assert_eq!(condition["maxTraceDuration"], 700);
        assert_eq!(condition["paging"]["pageNum"], 2);
    }

    /// Check that zones are read and other texts are not.
    #[test]
    fn zones_are_read() {
        assert_eq!(parse_zone("+0000"), Some(0));
        assert_eq!(parse_zone("+0530"), Some(19_800_000));
        assert_eq!(parse_zone("-0800"), Some(-28_800_000));
        for bad in ["", "0000", "+99", "+0060", "UTC", "+00a0", "+-100", "é0000"] {
            assert_eq!(parse_zone(bad), None, "{bad}");
        }
    }

    /// Check that traces with their spans are a list of segments.
    #[test]
    fn traces_with_spans_are_listed() {
        let span = |segment: &str, id: i32, start: i64| {
            json!({
                "traceId": "t", "segmentId": segment, "spanId": id, "type": "Entry",
                "serviceCode": "shop", "serviceInstanceName": "one",
                "startTime": start, "endTime": 90,
            })
        };
        let trace = json!({ "spans": [span("a", 1, 20), span("b", 0, 30), span("a", 0, 10)] });
        let segments = listed_v2(serde_json::from_value(trace).unwrap());
        let segments = segments.iter();
        let seen = segments.map(|s| (&*s.trace_id, s.start_unix_ms, s.duration_ms));
        assert_eq!(seen.collect::<Vec<_>>(), [("t", 10, 80), ("t", 30, 60)]);
        assert!(listed_v2(TraceRow { spans: Vec::new() }).is_empty());
    }

    /// An OAP that answers by what stands in the query, on as many connections as are made.
    async fn oap(answers: &'static [(&'static str, &'static str)]) -> GraphqlClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/graphql", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut query = String::new();
                while !query.contains("\"variables\"") {
                    let mut bytes = [0; 1024];
                    let count = stream.read(&mut bytes).await.unwrap();
                    query.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
                }
                let answer = answers.iter().find(|(text, _)| query.contains(text));
                let (_, answer) = answer.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        GraphqlClient::new(&url).unwrap()
    }

    /// Check that an OAP that does not know the newer list is asked for the older one, as OAP 10.1.0
    /// answers, and that other refusals are errors.
    #[tokio::test]
    async fn older_oaps_are_asked_in_the_older_way() {
        const TIME: (&str, &str) = (
            "getTimeInfo",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"data\":{\"it\":{\"timezone\":\"+0100\"}}}",
        );
        const OLDER: &[(&str, &str)] = &[
            TIME,
            (
                "hasQueryTracesV2Support",
                "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{\"errors\":[{\"message\":\
                 \"Field 'hasQueryTracesV2Support' in type 'Query' is undefined\"}]}",
            ),
        ];
        const NEWER: &[(&str, &str)] = &[
            TIME,
            (
                "hasQueryTracesV2Support",
                "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"data\":{\"it\":true}}",
            ),
        ];
        const BROKEN: &[(&str, &str)] = &[
            TIME,
            (
                "hasQueryTracesV2Support",
                "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\nno",
            ),
        ];
        for (answers, has_traces_v2) in [(OLDER, false), (NEWER, true)] {
            let expected = Dialect {
                zone_ms: 3_600_000,
                has_traces_v2,
            };
            assert_eq!(oap(answers).await.dialect().await.unwrap(), expected);
        }
        assert!(oap(BROKEN).await.dialect().await.is_err());
    }

    /// Check that each segment gives its first entry span, with callers of other processes only.
    #[test]
    fn a_trace_gives_its_entry_spans() {
        let span = |segment: &str, id: i32, kind: &str, caller: &str| {
            json!({
                "segmentId": segment, "spanId": id, "type": kind, "serviceCode": "shop",
                "serviceInstanceName": "one", "startTime": 10 + id, "endTime": 20,
                "endpointName": format!("/{id}"),
                "refs": [{ "parentSegmentId": "p", "parentSpanId": 4, "type": caller }],
            })
        };
        let trace = json!({ "spans": [
            span("b", 1, "Entry", "CROSS_THREAD"), span("a", 1, "Entry", "CROSS_PROCESS"),
            span("a", 0, "Entry", "CROSS_PROCESS"), span("b", 0, "Local", "CROSS_THREAD"),
            span("c", 0, "Exit", "CROSS_PROCESS"),
        ]});
        let spans = entries(serde_json::from_value(trace).unwrap());
        let seen = spans
            .iter()
            .map(|span| (&*span.segment_id, &*span.endpoint, span.callers.len()));
        assert_eq!(seen.collect::<Vec<_>>(), [("a", "/0", 1), ("b", "/1", 0)]);
    }
}
