//! A SkyWalking OAP's query side by GraphQL: tasks and results for `profilerd task --graphql`, and the
//! segments of agents for [`crate::bind`].
//!
//! In:  `http://HOST:12800/graphql`, HTTP/1.1, plain
//! Out: the same messages and reports that the built-in OAP gives ([`crate::embedded::TaskClient`])
//! Lost: snapshots and coverage; an OAP does not hand them out
//!
//! The operations have had this shape since OAP 9.5.0.

mod instances;
mod rows;
mod spans;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode, Uri, header};
use profiler_proto::profilerd as pb;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::connection::trust::{Trusted, untrusted};
use crate::embedded::task::service_id;
use crate::embedded::wire;
use crate::http::client::exchange;
use crate::model::clock::unix_ms_now;
use crate::model::plain::clean;
use crate::model::{Coverage, ProfileReport};
use crate::oap::auth::TOKEN_REMEDY;
use crate::oap::dial::connect;
use rows::{
    AnalysisRow, Created, EndpointRow, TaskRow, TraceRow, detail, profiled_segments, record,
    to_tree,
};

pub use instances::ListedInstance;
pub use spans::{Dialect, ListedSegment, SegmentQuery};

/// Largest answer accepted: the trees of one segment.
const ANSWER_MAX_BYTES: usize = 256 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

const CREATE: &str = "mutation($r: ProfileTaskCreationRequest){ \
    it: createProfileTask(creationRequest: $r){ id errorReason } }";
const ENDPOINTS: &str = "query($s: ID!, $n: Int!){ \
    it: findEndpoint(keyword: \"\", serviceId: $s, limit: $n){ name } }";
/// Endpoints asked for: what profilerd tells of a service at most.
const ENDPOINTS_MAX: usize = 500;
const LIST: &str = "query($s: ID, $e: String){ \
    it: getProfileTaskList(serviceId: $s, endpointName: $e){ id serviceName endpointName startTime \
    duration minDurationThreshold dumpPeriod maxSamplingCount \
    logs{ instanceName operationType operationTime } } }";
const SEGMENTS: &str = "query($t: ID!){ \
    it: getProfileTaskSegments(taskID: $t){ traceId instanceName \
    spans{ spanId segmentId startTime endTime endpointName type tags{ key value } profiled } } }";
const ANALYZE: &str = "query($q: [SegmentProfileAnalyzeQuery!]!){ \
    it: getSegmentsProfileAnalyze(queries: $q){ tip trees{ elements{ \
    id parentId codeSignature duration durationChildExcluded count } } } }";

/// Talks to the query side of a SkyWalking OAP.
#[derive(Clone, Debug)]
pub struct GraphqlClient {
    uri: Uri,
    token: Option<HeaderValue>,
    /// What to do when the token is refused.
    remedy: String,
    answer_max_bytes: usize,
    trusted: Trusted,
}

impl GraphqlClient {
    /// For an address like `http://127.0.0.1:12800/graphql`.
    ///
    /// # Errors
    ///
    /// If the address is not of that form.
    pub fn new(url: &str) -> Result<Self> {
        let uri: Uri = url
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some())
            .with_context(|| format!("{url:?} is not of the form http://HOST:12800/graphql"))?;
        Ok(Self {
            uri,
            token: None,
            remedy: TOKEN_REMEDY.to_owned(),
            answer_max_bytes: ANSWER_MAX_BYTES,
            trusted: Trusted::new(&[]),
        })
    }

    /// The same, which on this host speaks to programs of these users as well, beside root's and our own.
    #[must_use]
    pub fn with_local_users(self, local_users: &[u32]) -> Self {
        Self {
            trusted: Trusted::new(local_users),
            ..self
        }
    }

    /// The same, with a token, which built-in OAPs may ask for.
    ///
    /// # Errors
    ///
    /// If no header can carry it.
    pub fn with_token(self, token: Option<&str>) -> Result<Self> {
        let hidden = |text| {
            let mut value = HeaderValue::from_str(text)?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        };
        let token = token.map(hidden).transpose();
        let token = token.context("the token has characters that no header may have")?;
        Ok(Self { token, ..self })
    }

    /// The same, with another sentence about what to do when the token is refused.
    #[must_use]
    pub fn with_remedy(self, remedy: String) -> Self {
        Self { remedy, ..self }
    }

    /// Host that is asked.
    #[must_use]
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// The same, for answers of at most so many bytes.
    #[must_use]
    pub fn with_answers_up_to(self, answer_max_bytes: usize) -> Self {
        Self {
            answer_max_bytes,
            ..self
        }
    }

    /// Endpoints of a service that the OAP knows.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn endpoints(&self, service: &str) -> Result<Vec<String>> {
        let variables = json!({ "s": service_id(service), "n": ENDPOINTS_MAX });
        let rows: Vec<EndpointRow> = self.query(ENDPOINTS, variables).await?;
        Ok(rows.into_iter().map(|row| row.name).collect())
    }

    /// Creates a task.
    ///
    /// # Errors
    ///
    /// If the OAP refuses it (its text) or the call fails.
    pub async fn create(&self, request: pb::CreateTaskRequest) -> Result<pb::Task> {
        let start_ms = (request.start_ms > 0).then_some(request.start_ms);
        let variables = json!({ "r": {
            "serviceId": service_id(&request.service),
            "endpointName": request.endpoint,
            "startTime": start_ms,
            "duration": request.duration_minutes,
            "minDurationThreshold": request.min_duration_threshold_ms,
            "dumpPeriod": request.dump_period_ms,
            "maxSamplingCount": request.max_sampling_count,
        }});
        let created: Created = self.query(CREATE, variables).await?;
        if let Some(reason) = created.error_reason {
            bail!("{reason}");
        }
        let id = created.id.context("the OAP named no task")?;
        let now_ms = unix_ms_now();
        let mut request = wire::request_from_wire(request);
        if request.start_ms <= 0 {
            request.start_ms = now_ms;
        }
        let task = record(id, request);
        Ok(wire::task_to_wire(&task, task.state(&[], now_ms)))
    }

    /// Tasks, newest first; an empty filter takes all.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn list(&self, service: &str, endpoint: &str) -> Result<Vec<pb::Task>> {
        let tasks = self.tasks(service, endpoint).await?;
        Ok(tasks.into_iter().filter_map(|detail| detail.task).collect())
    }

    /// One task with its log. `task_id` may be a unique beginning, or empty for the newest.
    ///
    /// # Errors
    ///
    /// If no single task fits or the call fails.
    pub async fn show(&self, task_id: &str) -> Result<pb::TaskDetail> {
        let tasks = self.tasks("", "").await?;
        let mut detail = pick(tasks, task_id)?;
        if let Some(task) = &detail.task {
            let traces = self.traces(&task.task_id).await?;
            detail.segments = u32::try_from(profiled_segments(&traces).len()).unwrap_or(u32::MAX);
        }
        Ok(detail)
    }

    /// The result of a task, without snapshots and coverage; `task_id` as in [`Self::show`].
    ///
    /// # Errors
    ///
    /// If no single task fits, the call fails, or the answer contradicts itself.
    pub async fn result(&self, task_id: &str) -> Result<ProfileReport> {
        let detail = pick(self.tasks("", "").await?, task_id)?;
        let task = detail.task.context("the OAP named no task")?;
        let traces = self.traces(&task.task_id).await?;
        let mut segments = Vec::new();
        let mut coverage = Coverage::default();
        coverage.note("a SkyWalking OAP keeps no coverage and hands out no snapshots");
        for mut segment in profiled_segments(&traces) {
            let query = json!({ "q": [{
                "segmentId": segment.segment_id,
                "timeRange": {
                    "start": segment.start_ms,
                    "end": segment.start_ms.saturating_add(segment.duration_ms),
                },
            }]});
            let analysis: AnalysisRow = self.query(ANALYZE, query).await?;
            if let Some(tip) = analysis.tip {
                coverage.note(format!("segment {}: {tip}", segment.segment_id));
            }
            for tree in analysis.trees {
                segment.trees.push(to_tree(tree)?.to_node());
            }
            segments.push(segment);
        }
        segments.sort_by_key(|segment| segment.start_ms);
        Ok(ProfileReport {
            task: wire::task_report(&task),
            coverage: coverage.to_report(),
            segments,
        })
    }

    async fn tasks(&self, service: &str, endpoint: &str) -> Result<Vec<pb::TaskDetail>> {
        let variables = json!({
            "s": (!service.is_empty()).then(|| service_id(service)),
            "e": (!endpoint.is_empty()).then_some(endpoint),
        });
        let rows: Vec<TaskRow> = self.query(LIST, variables).await?;
        let now_ms = unix_ms_now();
        let mut details: Vec<_> = rows.into_iter().map(|row| detail(row, now_ms)).collect();
        let created = |detail: &pb::TaskDetail| detail.task.as_ref().map(|task| task.create_ms);
        details.sort_by_key(|detail| std::cmp::Reverse(created(detail)));
        Ok(details)
    }

    async fn traces(&self, task_id: &str) -> Result<Vec<TraceRow>> {
        self.query(SEGMENTS, json!({ "t": task_id })).await
    }

    /// One operation whose result is called `it`.
    async fn query<T: for<'a> Deserialize<'a>>(&self, text: &str, variables: Value) -> Result<T> {
        let body = json!({ "query": text, "variables": variables }).to_string();
        let uri = &self.uri;
        let bytes = timeout(TIMEOUT, self.post(body))
            .await
            .unwrap_or_else(|_| bail!("no answer within {TIMEOUT:?}"))
            .map_err(|error| match untrusted(error.as_ref()) {
                Some(untrusted) => anyhow!("{untrusted}"),
                None => error.context(format!(
                    "the OAP's query side at {uri} cannot be used; check the address (usually \
                     http://HOST:12800/graphql) and that the OAP is running"
                )),
            })?;
        parse_answer(&bytes).with_context(|| format!("the answer of {uri} cannot be used"))
    }

    async fn post(&self, body: String) -> Result<Vec<u8>> {
        let (host, port) = (self.host(), self.uri.port_u16().unwrap_or(80));
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::post(path)
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        if let Some(token) = &self.token {
            request = request.header("authentication", token);
        }
        let request = request.body(Full::new(bytes::Bytes::from(body)))?;
        let stream = connect(host, port, self.trusted.clone())
            .await
            .context("failed to connect")?;
        let (status, bytes) = exchange(stream, request, self.answer_max_bytes).await?;
        if status == StatusCode::UNAUTHORIZED {
            bail!("it refuses the call: {}", self.remedy);
        }
        // An OAP reports an invalid query with status 400, in the usual form of an answer.
        if !status.is_success() && !has_error_text(&bytes) {
            bail!("the answer is HTTP {status}");
        }
        Ok(bytes.to_vec())
    }
}

fn has_error_text(body: &[u8]) -> bool {
    let answer = serde_json::from_slice::<Value>(body);
    answer.is_ok_and(|answer| answer["errors"][0]["message"].is_string())
}

/// The result called `it` in the body of an answer.
fn parse_answer<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T> {
    let mut answer: Value = serde_json::from_slice(body).context("it is not GraphQL")?;
    if let Some(error) = answer["errors"][0]["message"].as_str() {
        bail!("{}", clean(error));
    }
    // Not by index: to change what is not there in a number or a text panics.
    let it = answer.pointer_mut("/data/it").map(Value::take);
    serde_json::from_value(it.unwrap_or_default()).context("it has an unknown shape")
}

/// Reads a body as the answer to each of the queries.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_as_anything(body: &[u8]) {
    for row in parse_answer::<Vec<TaskRow>>(body).into_iter().flatten() {
        let _ = detail(row, 0);
    }
    if let Ok(traces) = parse_answer::<Vec<TraceRow>>(body) {
        let _ = profiled_segments(&traces);
    }
    instances::read(body);
    spans::read_as_anything(body);
    let trees = parse_answer::<AnalysisRow>(body).map(|analysis| analysis.trees);
    for tree in trees
        .into_iter()
        .flatten()
        .filter_map(|row| to_tree(row).ok())
    {
        let _ = tree.to_node();
    }
}

/// The task that a text names.
fn pick(tasks: Vec<pb::TaskDetail>, text: &str) -> Result<pb::TaskDetail> {
    let id = |detail: &pb::TaskDetail| detail.task.as_ref().map(|task| task.task_id.clone());
    let mut fitting: Vec<pb::TaskDetail> = tasks
        .into_iter()
        .filter(|detail| id(detail).is_some_and(|id| id.starts_with(text)))
        .collect();
    if text.is_empty() {
        fitting.truncate(1);
    } else if let Some(exact) = fitting.iter().position(|d| id(d).as_deref() == Some(text)) {
        return Ok(fitting.swap_remove(exact));
    }
    if fitting.len() > 1 {
        let ids: Vec<String> = fitting.iter().take(5).filter_map(id).collect();
        bail!(
            "{text} is the beginning of several task ids: {}",
            ids.join(", ")
        );
    }
    fitting.pop().ok_or_else(|| match text {
        "" => anyhow!("there is no task"),
        _ => anyhow!("no task has the id {text}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check which addresses are taken.
    #[test]
    fn addresses_are_plain_http() {
        assert!(GraphqlClient::new("http://127.0.0.1:12800/graphql").is_ok());
        for bad in ["", "127.0.0.1:12800", "https://oap/graphql", "http://"] {
            assert!(GraphqlClient::new(bad).is_err(), "{bad}");
        }
    }

    /// Check that JSON of any shape is an answer or an error.
    #[test]
    fn an_answer_of_another_shape_is_an_error() {
        let parse = |body: &str| parse_answer::<Vec<u8>>(body.as_bytes());
        assert_eq!(parse(r#"{"data":{"it":[1]}}"#).unwrap(), [1]);
        for body in [
            "22",
            "[]",
            "\"a\"",
            "null",
            r#"{"data":1}"#,
            r#"{"data":[]}"#,
            "{",
        ] {
            assert!(parse(body).is_err(), "{body}");
        }
    }
}
