//! The service of the command line: tasks, coverage and results (`profilerd.v1.Tasks`).

use std::sync::Arc;
use std::time::Duration;

use profiler_proto::profilerd as pb;
use profiler_proto::profilerd::result_part::Part;
use profiler_proto::profilerd::tasks_server::Tasks;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info;

use super::cancel::CancelError;
use super::store::{FindError, Store, TaskView};
use super::task::{Refusal, TaskState};
use super::wire;
use crate::model::clock::unix_ms_now;
use crate::model::plain::check_plain;

/// Longest service or endpoint name of a task; OAP's column for the endpoint has 512.
const NAME_MAX_BYTES: usize = 2048;

/// Results on their way to clients: each is in memory as a whole, and holds a thread.
const RESULTS_MAX: usize = 2;
/// How long a client may take for a part of a result.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// `profilerd.v1.Tasks` on a store.
#[derive(Clone, Debug)]
pub(super) struct TaskService {
    store: Arc<Store>,
    results: Arc<Semaphore>,
}

impl TaskService {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            results: Arc::new(Semaphore::new(RESULTS_MAX)),
        }
    }

    async fn view(&self, task_id: String) -> Result<TaskView, Status> {
        let view = self
            .store
            .run(move |store| store.find_task(&task_id, unix_ms_now()));
        Ok(view.await?)
    }
}

impl From<FindError> for Status {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Ambiguous(..) => Self::invalid_argument(error.to_string()),
            FindError::Empty | FindError::Unknown(_) => Self::not_found(error.to_string()),
            FindError::Storage(error) => error.into(),
        }
    }
}

impl From<CancelError> for Status {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::Find(error) => error.into(),
            CancelError::Over(_) => Self::failed_precondition(error.to_string()),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Argument(text) => Self::invalid_argument(text),
            Refusal::Busy => Self::failed_precondition(refusal.to_string()),
            Refusal::Full(_) => Self::resource_exhausted(refusal.to_string()),
            Refusal::Storage(error) => error.into(),
        }
    }
}

#[tonic::async_trait]
impl Tasks for TaskService {
    async fn create_task(
        &self,
        request: Request<pb::CreateTaskRequest>,
    ) -> Result<Response<pb::Task>, Status> {
        let request = wire::request_from_wire(request.into_inner());
        if request.service.len() > NAME_MAX_BYTES || request.endpoint.len() > NAME_MAX_BYTES {
            return Err(Status::invalid_argument(format!(
                "service and endpoint may have at most {NAME_MAX_BYTES} bytes"
            )));
        }
        let now_ms = unix_ms_now();
        let task = self
            .store
            .run(move |store| store.create_task(request, now_ms));
        let task = task.await?;
        info!(task_id = %task.id, endpoint = %task.request.endpoint, "profile task created");
        let state = task.state(&[], now_ms);
        Ok(Response::new(wire::task_to_wire(&task, state)))
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        let filter = request.into_inner();
        let fits = |wanted: &str, name: &str| wanted.is_empty() || wanted == name;
        let tasks = self.store.run(|store| store.tasks(unix_ms_now())).await?;
        let tasks = tasks.into_iter().filter(|(task, _): &(_, TaskState)| {
            fits(&filter.service, &task.request.service)
                && fits(&filter.endpoint, &task.request.endpoint)
        });
        Ok(Response::new(pb::ListTasksResponse {
            tasks: tasks
                .map(|(task, state)| wire::task_to_wire(&task, state))
                .collect(),
        }))
    }

    async fn get_task(
        &self,
        request: Request<pb::GetTaskRequest>,
    ) -> Result<Response<pb::TaskDetail>, Status> {
        let task_id = request.into_inner().task_id;
        let view = self.view(task_id).await?;
        Ok(Response::new(wire::detail_to_wire(&view)))
    }

    async fn cancel_task(
        &self,
        request: Request<pb::CancelTaskRequest>,
    ) -> Result<Response<pb::Task>, Status> {
        let task_id = request.into_inner().task_id;
        let cancelled = self
            .store
            .run(move |store| store.cancel_task(&task_id, unix_ms_now()));
        let task = cancelled.await?;
        info!(task_id = %task.id, "profile task cancelled");
        Ok(Response::new(wire::task_to_wire(
            &task,
            TaskState::Cancelled,
        )))
    }

    type GetResultStream = ReceiverStream<Result<pb::ResultPart, Status>>;

    async fn get_result(
        &self,
        request: Request<pb::GetResultRequest>,
    ) -> Result<Response<Self::GetResultStream>, Status> {
        let task_id = request.into_inner().task_id;
        let view = self.view(task_id).await?;
        let (parts, receiver) = mpsc::channel(2);
        let store = Arc::clone(&self.store);
        let place = Arc::clone(&self.results).acquire_owned().await;
        let runtime = Handle::current();
        // Analysis is computation: it must not hold up the heartbeat of others.
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let head = Part::Head(pb::ResultHead {
                task: Some(wire::task_to_wire(&view.task, view.state)),
                coverage: Some(wire::coverage_to_wire(&view.coverage)),
            });
            let send = |part| {
                let part = pb::ResultPart { part: Some(part) };
                let sent = runtime.block_on(timeout(PART_TIMEOUT, parts.send(Ok(part))));
                matches!(sent, Ok(Ok(())))
            };
            if !send(head) {
                return; // the caller has hung up, or does not read
            }
            match store.segments(&view.task.id) {
                Ok(segments) => {
                    let segments = segments.iter().map(wire::segment_to_wire);
                    for segment in segments.map(Part::Segment) {
                        if !send(segment) {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let failed = parts.send(Err(error.into()));
                    let _ = runtime.block_on(timeout(PART_TIMEOUT, failed));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report_coverage(
        &self,
        request: Request<pb::ReportCoverageRequest>,
    ) -> Result<Response<pb::ReportCoverageResponse>, Status> {
        let report = request.into_inner();
        check_plain("service_instance", &report.service_instance)
            .map_err(Status::invalid_argument)?;
        let coverage = wire::coverage_from_wire(&report.coverage.unwrap_or_default());
        let stored = self.store.run(move |store| {
            store.set_coverage(&report.task_id, &report.service_instance, coverage)
        });
        let is_cancelled = stored.await?;
        Ok(Response::new(pb::ReportCoverageResponse { is_cancelled }))
    }

    async fn list_instances(
        &self,
        _request: Request<pb::ListInstancesRequest>,
    ) -> Result<Response<pb::ListInstancesResponse>, Status> {
        let instances = self.store.run(Store::instances).await?;
        let instances = instances
            .into_iter()
            .map(|((service, service_instance), record)| pb::Instance {
                service,
                service_instance,
                properties: record.properties,
                last_seen_ms: record.last_seen_ms,
            });
        Ok(Response::new(pb::ListInstancesResponse {
            instances: instances.collect(),
        }))
    }

    async fn list_endpoints(
        &self,
        request: Request<pb::ListEndpointsRequest>,
    ) -> Result<Response<pb::ListEndpointsResponse>, Status> {
        let service = request.into_inner().service;
        let endpoints = self
            .store
            .run(move |store| store.endpoints(&service))
            .await?;
        Ok(Response::new(pb::ListEndpointsResponse { endpoints }))
    }
}
