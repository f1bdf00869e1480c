use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::bail;

use super::*;
use crate::model::binding::tests::{context, profiled};

const START: i64 = 1_700_000_000_000;
const DURATION: i64 = 500;

/// What the OAP has, and what it was asked.
#[derive(Clone, Default)]
struct Oap(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    traces: HashMap<String, Vec<AgentSpan>>,
    windows: Vec<Window>,
    asked: Vec<String>,
    is_away: bool,
    is_silent: bool,
}

impl Oap {
    fn has(&self, trace_id: &str, spans: &[AgentSpan]) {
        let mut state = self.0.lock().unwrap();
        state.traces.insert(trace_id.to_owned(), spans.to_vec());
    }

    async fn answer(&self) -> Result<()> {
        let (is_away, is_silent) = {
            let state = self.0.lock().unwrap();
            (state.is_away, state.is_silent)
        };
        if is_silent {
            std::future::pending::<()>().await;
        }
        if is_away {
            bail!("nobody there");
        }
        Ok(())
    }
}

impl Source for Oap {
    async fn segments(&self, window: &Window) -> Result<SegmentList> {
        self.answer().await?;
        let mut state = self.0.lock().unwrap();
        state.windows.push(window.clone());
        let rows = state.traces.iter().flat_map(|(trace_id, spans)| {
            spans.iter().map(|span| SegmentRow {
                trace_id: trace_id.clone(),
                start_unix_ms: span.start_unix_ms,
                end_unix_ms: span.end_unix_ms,
            })
        });
        Ok(SegmentList {
            segments: rows.collect(),
            is_cut: false,
        })
    }

    async fn spans(&self, trace_id: &str) -> Result<Vec<AgentSpan>> {
        self.answer().await?;
        let mut state = self.0.lock().unwrap();
        state.asked.push(trace_id.to_owned());
        Ok(state.traces.get(trace_id).cloned().unwrap_or_default())
    }
}

fn span(segment_id: &str, late: i64) -> AgentSpan {
    AgentSpan {
        segment_id: segment_id.to_owned(),
        service: "shop".to_owned(),
        instance: "one".to_owned(),
        endpoint: "/".to_owned(),
        start_unix_ms: START + late,
        end_unix_ms: START + late + DURATION,
        callers: Vec::new(),
    }
}

/// A request that began `late` ms after the first one.
fn request(late: i64) -> Box<ProfiledSegment> {
    let mut request = profiled(&[START + late]);
    request.end_unix_ms = START + late + DURATION;
    Box::new(request)
}

fn agent(instance: Option<&str>) -> AgentNames {
    AgentNames {
        service: "shop".to_owned(),
        instance: instance.map(str::to_owned),
    }
}

fn is_path(_: &ActiveRequest, endpoint: &str) -> bool {
    endpoint == "/"
}

/// What becomes of requests; time runs by itself while nothing else does.
#[expect(clippy::vec_box, reason = "requests are passed on in their boxes")]
async fn settled(oap: &Oap, requests: Vec<Box<ProfiledSegment>>) -> Vec<Settled> {
    let count = requests.len();
    let (binder, mut receiver) = Binder::spawn(oap.clone(), is_path, 1_000);
    for request in requests {
        binder.hold(request, agent(Some("one"))).unwrap();
    }
    let mut settled = Vec::new();
    for _ in 0..count {
        settled.push(receiver.recv().await.unwrap());
    }
    settled.sort_by_key(|settled| settled.segment.start_unix_ms);
    settled
}

async fn binding(oap: &Oap, request: Box<ProfiledSegment>) -> (Binding, String) {
    let settled = settled(oap, vec![request]).await.pop().unwrap();
    let segment_id = settled.segment.request.request.segment_id.clone();
    (settled.segment.binding, segment_id)
}

fn bound(segment_id: &str) -> (Binding, String) {
    (Binding::Agent(BoundBy::Query), segment_id.to_owned())
}

fn synthetic(why: Unbound) -> (Binding, String) {
    (Binding::Synthetic(why), "ours".to_owned())
}

/// Check that the only segment of instance, endpoint and time is taken, with its times, and no other.
#[tokio::test(start_paused = true)]
async fn the_only_segment_that_fits_is_taken() {
    let oap = Oap::default();
    let others = [
        ("late", 51, "shop", "one", "/"),
        ("service", 0, "other", "one", "/"),
        ("instance", 0, "shop", "two", "/"),
        ("endpoint", 0, "shop", "one", "/other"),
    ];
    for (id, late, service, instance, endpoint) in others {
        let other = AgentSpan {
            service: service.to_owned(),
            instance: instance.to_owned(),
            endpoint: endpoint.to_owned(),
            ..span(id, late)
        };
        oap.has(id, &[other]);
    }
    assert_eq!(
        binding(&oap, request(0)).await,
        synthetic(Unbound::NotFound)
    );
    oap.has("trace", &[span("theirs", 3)]);
    let settled = settled(&oap, vec![request(0)]).await.pop().unwrap();
    assert_eq!(settled.segment.binding, Binding::Agent(BoundBy::Query));
    assert_eq!(settled.segment.request.request.segment_id, "theirs");
    assert_eq!(settled.segment.start_unix_ms, START + 3);
    assert_eq!(settled.segment.snapshots[0].unix_ms, START + 3);
}

/// Check that two segments that fit are none, and that a caller tells them apart.
#[tokio::test(start_paused = true)]
async fn of_two_segments_the_callers_is_taken() {
    let oap = Oap::default();
    let mut called = span("called", 2);
    called.callers = vec![("caller".to_owned(), 1)];
    oap.has("trace", &[span("a", 1), called]);
    assert_eq!(binding(&oap, request(0)).await, bound("a"));
    let mut with_caller = request(0);
    with_caller.request.request.sw8 = Some(context("trace", "caller"));
    assert_eq!(binding(&oap, with_caller).await, bound("called"));
    oap.has("trace-2", &[span("b", 2)]);
    assert_eq!(
        binding(&oap, request(0)).await,
        synthetic(Unbound::Ambiguous)
    );
}

/// Check that the segment an own call named is taken with its times from the OAP, and without them if
/// the OAP has none.
#[tokio::test(start_paused = true)]
async fn a_named_segment_is_taken() {
    let oap = Oap::default();
    let named = |id: &str| {
        let mut named = request(0);
        named.request.outbound = Some(context("trace", id));
        named
    };
    oap.has("trace", &[span("a", 1), span("b", 2)]);
    let by_call = |id: &str| (Binding::Agent(BoundBy::OutboundCall), id.to_owned());
    assert_eq!(binding(&oap, named("b")).await, by_call("b"));
    assert_eq!(binding(&oap, named("c")).await, by_call("c"));
    assert!(oap.0.lock().unwrap().windows.is_empty());
}

/// Check that a segment that comes late is found, and is bound to one request only.
#[tokio::test(start_paused = true)]
async fn a_late_segment_is_bound_once() {
    let oap = Oap::default();
    let later = oap.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(15)).await;
        later.has("trace", &[span("theirs", 0)]);
    });
    let settled = settled(&oap, vec![request(0), request(1)]).await;
    let bindings: Vec<Binding> = settled.iter().map(|s| s.segment.binding).collect();
    assert_eq!(
        bindings,
        [
            Binding::Agent(BoundBy::Query),
            Binding::Synthetic(Unbound::NotFound)
        ]
    );
}

/// Check that requests of one second are asked for together.
#[tokio::test(start_paused = true)]
async fn requests_are_asked_for_together() {
    let oap = Oap::default();
    for late in [0, 300, 600, 5_000] {
        oap.has(&late.to_string(), &[span(&late.to_string(), late)]);
    }
    let requests = [0, 300, 600, 5_000].map(request).into();
    for settled in settled(&oap, requests).await {
        let late = settled.segment.start_unix_ms - START;
        assert_eq!(settled.segment.request.request.segment_id, late.to_string());
    }
    assert_eq!(oap.0.lock().unwrap().windows.len(), 2);
}

/// Check that an OAP that is away or silent only costs the binding, and that this is told.
#[tokio::test(start_paused = true)]
async fn an_oap_that_does_not_answer_costs_the_binding() {
    for is_silent in [false, true] {
        let oap = Oap::default();
        oap.0.lock().unwrap().is_silent = is_silent;
        oap.0.lock().unwrap().is_away = true;
        let begun = Instant::now();
        let settled = settled(&oap, vec![request(0)]).await.pop().unwrap();
        assert_eq!(
            settled.segment.binding,
            Binding::Synthetic(Unbound::QueryFailed)
        );
        assert!((2..20).contains(&settled.failures), "{}", settled.failures);
        assert!(begun.elapsed() < 2 * DEADLINE);
    }
}

/// Check that a daemon that ends still asks once, and settles everything.
#[tokio::test(start_paused = true)]
async fn the_end_settles_everything() {
    let oap = Oap::default();
    oap.has("trace", &[span("theirs", 0)]);
    let (binder, mut receiver) = Binder::spawn(oap.clone(), is_path, 1_000);
    binder.hold(request(0), agent(None)).unwrap();
    binder.hold(request(9_000), agent(None)).unwrap();
    drop(binder);
    let mut bindings = Vec::new();
    while let Some(settled) = receiver.recv().await {
        bindings.push(settled.segment.binding);
    }
    assert_eq!(
        bindings,
        [
            Binding::Agent(BoundBy::Query),
            Binding::Synthetic(Unbound::Leaving)
        ]
    );
}

/// Check that neither requests nor snapshots pile up.
#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded() {
    let oap = Oap::default();
    let (binder, mut receiver) = Binder::spawn(oap, is_path, 2);
    for late in 0..3 {
        binder.hold(request(late), agent(None)).unwrap();
    }
    let settled = receiver.recv().await.unwrap();
    assert_eq!(settled.segment.start_unix_ms, START + 2);
    assert_eq!(
        settled.segment.binding,
        Binding::Synthetic(Unbound::TooMany)
    );
    let refused = (0..1_000).find_map(|_| binder.hold(request(0), agent(None)).err());
    assert!(refused.is_some());
}
