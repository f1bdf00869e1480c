//! Sends requests of processes with a SkyWalking agent to the agent's segments.
//!
//! In:  [`ProfiledSegment`]s, the agent of their process
//! Out: the same, bound or with the reason why not; counts and notes for their tasks
//! Lost: nothing, see [`crate::bind`]

use std::collections::HashMap;

use anyhow::{Result, anyhow};
use tokio::sync::{OnceCell, mpsc};

use super::oap_query::OapQuery;
use crate::bind::{Binder, SegmentList, SegmentRow, Settled, Source, Taken, Window};
use crate::config::{AgentProfiler, Config};
use crate::model::{
    ActiveRequest, AgentNames, AgentSpan, Binding, BoundBy, Counter, Coverage, Pid,
    ProfiledSegment, Sw8, TaskId, Unbound,
};
use crate::oap::graphql::{Dialect, SegmentQuery};
use crate::process::Agent;
use crate::process::table::Process;
use crate::request::Endpoint;

/// Requests that wait for their segment, and what became of the others.
pub(super) struct Bindings {
    profiler: AgentProfiler,
    /// Not there if no OAP can be asked.
    binder: Option<Binder>,
    settled: Option<mpsc::Receiver<Settled>>,
    taken: Taken,
    tasks: HashMap<TaskId, Counts>,
}

#[derive(Default)]
struct Counts {
    waiting: usize,
    coverage: Coverage,
}

impl Bindings {
    /// Starts on the current tokio runtime, with the OAP that can be asked.
    pub(super) fn spawn(config: &Config, query: Option<OapQuery>) -> Self {
        let (mut binder, mut settled) = (None, None);
        if let Some(query) = query {
            let source = OapSource {
                query,
                dialect: OnceCell::new(),
            };
            let snapshots_max = config.limits.snapshot_queue as usize;
            let (handle, receiver) = Binder::spawn(source, is_called, snapshots_max);
            (binder, settled) = (Some(handle), Some(receiver));
        }
        Self {
            profiler: config.oap.agent_profiler,
            binder,
            settled,
            taken: Taken::default(),
            tasks: HashMap::new(),
        }
    }

    /// Why a process is left to its agent, for people; `None` if it is not.
    pub(super) fn left_to_agent(&self, pid: Pid, agent: Option<&Agent>) -> Option<String> {
        let agent = agent.filter(|agent| may_profile(agent))?;
        let does = match agent.profiles {
            Some(_) => "runs",
            None => "may run",
        };
        (self.profiler == AgentProfiler::Leave).then(|| {
            format!(
                "process {pid} is left to its own SkyWalking agent ({agent}), which {does} the same \
                 task: snapshots of both under one segment would collide in the OAP. To have it \
                 profiled from outside, start it with SW_AGENT_PROFILE_ACTIVE=false"
            )
        })
    }

    /// Takes a profiled request; gives it back if it can be reported at once.
    pub(super) fn take(
        &mut self,
        mut segment: Box<ProfiledSegment>,
        process: Option<&Process>,
    ) -> Option<Box<ProfiledSegment>> {
        let names = process.and_then(|process| {
            let agent = process.agent.as_ref()?;
            let names = AgentNames {
                service: process.agent_service().to_owned(),
                instance: process.known_agent_instance().map(str::to_owned),
            };
            Some((names, may_profile(agent)))
        });
        let Some((agent, may_profile)) = names else {
            return Some(segment);
        };
        forget_foreign_context(&mut segment, &agent);
        if may_profile {
            segment.binding = Binding::Synthetic(Unbound::AgentProfiles);
        } else if let Some(binder) = &self.binder {
            let task_id = segment.task_id.clone();
            match binder.hold(segment, agent) {
                Ok(()) => {
                    self.tasks.entry(task_id).or_default().waiting += 1;
                    return None;
                }
                Err(back) => segment = back,
            }
            segment.binding = Binding::Synthetic(Unbound::TooMany);
        } else {
            self.bind_without_query(&mut segment);
        }
        self.count(&segment, 0);
        Some(segment)
    }

    fn bind_without_query(&mut self, segment: &mut ProfiledSegment) {
        segment.binding = match &segment.request.outbound {
            None => Binding::Synthetic(Unbound::QueryOff),
            Some(context) if !self.taken.take(&context.parent_segment_id) => {
                Binding::Synthetic(Unbound::Taken)
            }
            Some(context) => {
                let id = context.parent_segment_id.clone();
                return segment.bind(&id, None, BoundBy::OutboundCall);
            }
        };
    }

    /// The next request whose segment is found or given up. Waits for ever if nothing can be asked.
    ///
    /// # Errors
    ///
    /// Nothing will ever be settled any more.
    pub(super) async fn next(&mut self) -> Result<Box<ProfiledSegment>> {
        let settled = match &mut self.settled {
            Some(settled) => settled.recv().await,
            None => std::future::pending().await,
        };
        let Settled { segment, failures } = settled
            .ok_or_else(|| anyhow!("requests cannot be shown in agents' segments any more"))?;
        if let Some(counts) = self.tasks.get_mut(&segment.task_id) {
            counts.waiting = counts.waiting.saturating_sub(1);
        }
        self.count(&segment, failures);
        Ok(segment)
    }

    /// Has everything settled within some seconds; [`Self::next`] then gives what is left, and fails.
    pub(super) fn close(&mut self) {
        self.binder = None;
    }

    /// Whether requests can still come from [`Self::next`] after [`Self::close`].
    pub(super) fn can_settle(&self) -> bool {
        self.settled.is_some()
    }

    /// Whether requests of the task wait.
    pub(super) fn is_waiting(&self, task_id: &TaskId) -> bool {
        self.tasks
            .get(task_id)
            .is_some_and(|counts| counts.waiting > 0)
    }

    /// Requests of all tasks that wait.
    pub(super) fn waiting(&self) -> usize {
        self.tasks.values().map(|counts| counts.waiting).sum()
    }

    /// Adds what became of a task's requests.
    pub(super) fn add_to(&self, task_id: &TaskId, coverage: &mut Coverage) {
        if let Some(counts) = self.tasks.get(task_id) {
            coverage.merge(&counts.coverage);
        }
    }

    /// The task is over.
    pub(super) fn forget(&mut self, task_id: &TaskId) {
        self.tasks.remove(task_id);
    }

    fn count(&mut self, segment: &ProfiledSegment, failures: u64) {
        let coverage = &mut self
            .tasks
            .entry(segment.task_id.clone())
            .or_default()
            .coverage;
        coverage.add(Counter::SegmentQueriesFailed, failures);
        let counter = match segment.binding {
            Binding::Own => return,
            Binding::Agent(BoundBy::OutboundCall) => Counter::SegmentsBoundByCall,
            Binding::Agent(BoundBy::Query) => Counter::SegmentsBoundByQuery,
            Binding::Synthetic(why) => {
                coverage.note(format!(
                    "a request of a process with a SkyWalking agent is shown beside the agent's \
                     segment: {why}"
                ));
                Counter::SegmentsSynthetic
            }
        };
        coverage.bump(counter);
    }
}

/// Unless it is known not to.
fn may_profile(agent: &Agent) -> bool {
    agent.profiles != Some(false)
}

/// A gateway may pass on the headers it got: they name its caller's segment and not its own.
fn forget_foreign_context(segment: &mut ProfiledSegment, agent: &AgentNames) {
    let caller = segment.request.request.sw8.as_ref();
    let is_own = |context: &Sw8| {
        context.parent_service == agent.service
            && caller.is_none_or(|caller| caller.parent_segment_id != context.parent_segment_id)
    };
    if !segment.request.outbound.as_ref().is_some_and(is_own) {
        segment.request.outbound = None;
    }
}

/// Whether an agent would give the request this name: the one the task has for it, or one that stands for
/// its method and path.
fn is_called(request: &ActiveRequest, name: &str) -> bool {
    let matches = |endpoint: Endpoint| {
        endpoint.matches(&request.method, &request.path, request.host.as_deref())
    };
    name == request.endpoint || Endpoint::parse(name).is_ok_and(matches)
}

/// A SkyWalking OAP.
struct OapSource {
    query: OapQuery,
    dialect: OnceCell<Dialect>,
}

impl Source for OapSource {
    async fn segments(&self, window: &Window) -> Result<SegmentList> {
        let client = self.query.client()?;
        let dialect = self.dialect.get_or_try_init(|| client.dialect());
        let query = SegmentQuery {
            service: &window.service,
            instance: window.instance.as_deref(),
            start_unix_ms: window.start_unix_ms,
            duration_ms: window.duration_ms,
        };
        let (listed, is_cut) = client.segments(query, *dialect.await?).await?;
        let rows = listed.into_iter().map(|segment| SegmentRow {
            trace_id: segment.trace_id,
            start_unix_ms: segment.start_unix_ms,
            end_unix_ms: segment.start_unix_ms.saturating_add(segment.duration_ms),
        });
        Ok(SegmentList {
            segments: rows.collect(),
            is_cut,
        })
    }

    async fn spans(&self, trace_id: &str) -> Result<Vec<AgentSpan>> {
        self.query.client()?.entry_spans(trace_id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::binding::tests::{context, profiled};
    use crate::process::AgentLanguage;

    fn agent(profiles: Option<bool>) -> Agent {
        Agent {
            language: AgentLanguage::Python,
            version: Some("1.2.0".to_owned()),
            evidence: String::new(),
            profiles,
            service: None,
            instance: None,
        }
    }

    /// Check that a process whose agent profiles, or may, is left to it with the fix named, unless the
    /// configuration says otherwise.
    #[test]
    fn an_agent_that_may_profile_is_left_alone() {
        let mut bindings = Bindings::spawn(&Config::default(), None);
        let left = |profiles| bindings.left_to_agent(Pid(7), Some(&agent(profiles)));
        for (profiles, expected) in [(Some(true), "runs"), (None, "may run")] {
            let text = left(profiles).unwrap();
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("SW_AGENT_PROFILE_ACTIVE=false"), "{text}");
        }
        assert_eq!(left(Some(false)), None);
        assert_eq!(bindings.left_to_agent(Pid(7), None), None);
        bindings.profiler = AgentProfiler::Beside;
        let agent = agent(Some(true));
        assert_eq!(bindings.left_to_agent(Pid(7), Some(&agent)), None);
    }

    /// Check which names agents give a request.
    #[test]
    fn agents_name_a_request_in_several_ways() {
        let mut request = profiled(&[0]).request.request;
        request.endpoint = "GET:/orders/{id}".to_owned();
        request.path = "/orders/7".to_owned();
        for name in ["GET:/orders/{id}", "/orders/7", "GET:/orders/7"] {
            assert!(is_called(&request, name), "{name}");
        }
        for name in ["POST:/orders/{id}", "/orders", "com.shop.Orders.get", ""] {
            assert!(!is_called(&request, name), "{name}");
        }
    }

    /// Check that a context is the request's own only if it is of its service and not passed on.
    #[test]
    fn a_context_that_is_passed_on_is_not_the_requests() {
        let shop = AgentNames {
            service: "shop".to_owned(),
            instance: None,
        };
        let kept = |outbound: &str, inbound: Option<&str>, agent: &AgentNames| {
            let mut segment = profiled(&[0]);
            segment.request.outbound = Some(context("trace", outbound));
            segment.request.request.sw8 = inbound.map(|id| context("trace", id));
            forget_foreign_context(&mut segment, agent);
            segment.request.outbound.is_some()
        };
        assert!(kept("own", None, &shop));
        assert!(kept("own", Some("caller"), &shop));
        assert!(!kept("caller", Some("caller"), &shop));
        let other = AgentNames {
            service: "other".to_owned(),
            ..shop
        };
        assert!(!kept("own", None, &other));
    }

    /// Check that without an OAP to ask a request's own call is enough, once, and that the ways are counted.
    #[test]
    fn without_a_query_own_calls_bind() {
        let mut bindings = Bindings::spawn(&Config::default(), None);
        let mut bound = |outbound: Option<&str>| {
            let mut segment = profiled(&[0]);
            segment.request.outbound = outbound.map(|id| context("trace", id));
            bindings.bind_without_query(&mut segment);
            bindings.count(&segment, 0);
            segment.binding
        };
        let by_call = Binding::Agent(BoundBy::OutboundCall);
        assert_eq!(bound(Some("a")), by_call);
        assert_eq!(bound(Some("a")), Binding::Synthetic(Unbound::Taken));
        assert_eq!(bound(None), Binding::Synthetic(Unbound::QueryOff));
        let mut coverage = Coverage::default();
        let task_id = TaskId("t".to_owned());
        bindings.add_to(&task_id, &mut coverage);
        assert_eq!(coverage.get(Counter::SegmentsBoundByCall), 1);
        assert_eq!(coverage.get(Counter::SegmentsSynthetic), 2);
        assert_eq!(coverage.notes().count(), 2);
        assert!(!bindings.is_waiting(&task_id));
    }
}
