//! A client of `profilerd.v1.Tasks`, for the command line and for tests.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use profiler_proto::profilerd as pb;
use profiler_proto::profilerd::result_part::Part;
use profiler_proto::profilerd::tasks_client::TasksClient;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::wire;
use crate::connection::trust::{Trusted, untrusted};
use crate::model::ProfileReport;
use crate::model::plain::clean;
use crate::oap::auth::{TOKEN_REMEDY, Token};
use crate::oap::dial::dial;

/// Largest part of a result: one segment of 12,000 snapshots whose stacks all differ.
const MESSAGE_MAX_BYTES: usize = 512 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Talks to a built-in OAP.
#[derive(Clone, Debug)]
pub struct TaskClient {
    address: String,
    /// What to do when the token is refused.
    remedy: String,
    client: TasksClient<InterceptedService<Channel, Token>>,
}

impl TaskClient {
    /// Connects to `host:port`.
    ///
    /// # Errors
    ///
    /// See [`Self::connect_to`].
    pub async fn connect(address: &str, token: Option<&str>) -> Result<Self> {
        Self::connect_to(address, token, &[]).await
    }

    /// Connects to `host:port`. On this host, root and our own user may be there, and `local_users`.
    ///
    /// # Errors
    ///
    /// If nothing answers there, or the program of another user does; the text says what to do.
    pub async fn connect_to(
        address: &str,
        token: Option<&str>,
        local_users: &[u32],
    ) -> Result<Self> {
        let token = Token::new(token)?;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("{address} is not an address of the form HOST:PORT"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        let channel = dial(&endpoint, Trusted::new(local_users))
            .await
            .map_err(|error| match untrusted(&error) {
                Some(untrusted) => anyhow!("{untrusted}"),
                None => anyhow!(error).context(format!(
                    "no OAP answers at {address}; start one with `profilerd standalone`, or name \
                     another with --oap HOST:PORT"
                )),
            })?;
        Ok(Self {
            address: address.to_owned(),
            remedy: TOKEN_REMEDY.to_owned(),
            client: TasksClient::with_interceptor(channel, token)
                .max_decoding_message_size(MESSAGE_MAX_BYTES),
        })
    }

    /// The same, with another sentence about what to do when the token is refused.
    #[must_use]
    pub fn with_remedy(self, remedy: String) -> Self {
        Self { remedy, ..self }
    }

    /// Creates a task.
    ///
    /// # Errors
    ///
    /// If it is refused (OAP's text) or the call fails.
    pub async fn create(&mut self, request: pb::CreateTaskRequest) -> Result<pb::Task> {
        let answer = self.client.create_task(request).await;
        Ok(answer.map_err(|status| self.explain(&status))?.into_inner())
    }

    /// Tasks, newest first; an empty filter takes all.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn list(&mut self, service: &str, endpoint: &str) -> Result<Vec<pb::Task>> {
        let request = pb::ListTasksRequest {
            service: service.to_owned(),
            endpoint: endpoint.to_owned(),
        };
        let answer = self.client.list_tasks(request).await;
        let answer = answer.map_err(|status| self.explain(&status))?;
        Ok(answer.into_inner().tasks)
    }

    /// One task with its log and coverage. `task_id` may be a unique beginning, or empty for the
    /// newest.
    ///
    /// # Errors
    ///
    /// If no single task fits or the call fails.
    pub async fn show(&mut self, task_id: &str) -> Result<pb::TaskDetail> {
        let request = pb::GetTaskRequest {
            task_id: task_id.to_owned(),
        };
        let answer = self.client.get_task(request).await;
        Ok(answer.map_err(|status| self.explain(&status))?.into_inner())
    }

    /// Ends a task early; `task_id` may be a unique beginning.
    ///
    /// # Errors
    ///
    /// If no single task fits, it is over, or the call fails.
    pub async fn cancel(&mut self, task_id: &str) -> Result<pb::Task> {
        let request = pb::CancelTaskRequest {
            task_id: task_id.to_owned(),
        };
        let answer = self.client.cancel_task(request).await;
        Ok(answer.map_err(|status| self.explain(&status))?.into_inner())
    }

    /// The whole result of a task; `task_id` as in [`Self::show`].
    ///
    /// # Errors
    ///
    /// If no single task fits, the call fails, or the answer contradicts itself.
    pub async fn result(&mut self, task_id: &str) -> Result<ProfileReport> {
        let request = pb::GetResultRequest {
            task_id: task_id.to_owned(),
        };
        let answer = self.client.get_result(request).await;
        let mut parts = answer.map_err(|status| self.explain(&status))?.into_inner();
        let mut report = ProfileReport::default();
        let mut has_head = false;
        while let Some(part) = parts
            .message()
            .await
            .map_err(|status| self.explain(&status))?
        {
            match part.part {
                Some(Part::Head(head)) => {
                    let task = head.task.context("the result names no task")?;
                    report.task = wire::task_report(&task);
                    report.coverage = wire::coverage_report(head.coverage.as_ref());
                    has_head = true;
                }
                Some(Part::Segment(segment)) => {
                    report.segments.push(wire::segment_report(segment)?);
                }
                None => {}
            }
        }
        if !has_head {
            bail!("the OAP at {} sent no result", self.address);
        }
        Ok(report)
    }

    /// Service instances that have reported.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn instances(&mut self) -> Result<Vec<pb::Instance>> {
        let answer = self
            .client
            .list_instances(pb::ListInstancesRequest {})
            .await;
        let answer = answer.map_err(|status| self.explain(&status))?;
        Ok(answer.into_inner().instances)
    }

    /// Endpoints of a service that are known.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn endpoints(&mut self, service: &str) -> Result<Vec<String>> {
        let request = pb::ListEndpointsRequest {
            service: service.to_owned(),
        };
        let answer = self.client.list_endpoints(request).await;
        let answer = answer.map_err(|status| self.explain(&status))?;
        Ok(answer.into_inner().endpoints)
    }

    /// A status as a sentence for the user.
    fn explain(&self, status: &Status) -> anyhow::Error {
        let address = &self.address;
        match status.code() {
            tonic::Code::Unimplemented => anyhow!(
                "the OAP at {address} is not a `profilerd standalone`; use \
                 --graphql http://HOST:12800/graphql for a SkyWalking OAP"
            ),
            tonic::Code::PermissionDenied => {
                anyhow!("the OAP at {address} refuses the call: {}", self.remedy)
            }
            tonic::Code::InvalidArgument
            | tonic::Code::FailedPrecondition
            | tonic::Code::NotFound
            | tonic::Code::ResourceExhausted => anyhow!("{}", clean(status.message())),
            _ => anyhow!(
                "the call to the OAP at {address} failed: {}",
                clean(&status.to_string())
            ),
        }
    }
}
