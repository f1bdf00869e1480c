//! Profile tasks and what instances did with them.

use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};
use tracing::info;

use super::super::task::{
    LogEntry, Operation, Refusal, TaskRecord, TaskRequest, instance_id, service_id, service_name,
};
use super::long::Long;
use super::{LIST, on_store};
use crate::model::clock::unix_ms_now;

#[derive(Debug, Default)]
pub(super) struct TaskQuery;

#[derive(Debug, Default)]
pub(super) struct TaskMutation;

#[derive(Debug, InputObject)]
struct ProfileTaskCreationRequest {
    service_id: ID,
    endpoint_name: String,
    /// None, or not above zero: at once.
    start_time: Option<Long>,
    /// Minutes.
    duration: i32,
    /// Milliseconds.
    min_duration_threshold: i32,
    /// Milliseconds.
    dump_period: i32,
    max_sampling_count: i32,
}

#[derive(Debug, SimpleObject)]
struct ProfileTaskCreationResult {
    /// None if the task was created.
    error_reason: Option<String>,
    id: Option<String>,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum ProfileTaskLogOperationType {
    Notified,
    ExecutionFinished,
}

#[derive(Debug, SimpleObject)]
struct ProfileTaskLog {
    id: String,
    instance_id: ID,
    instance_name: String,
    operation_type: ProfileTaskLogOperationType,
    operation_time: Long,
}

#[derive(Debug, SimpleObject)]
struct ProfileTask {
    id: String,
    service_id: ID,
    service_name: String,
    endpoint_name: String,
    start_time: Long,
    duration: i32,
    min_duration_threshold: i32,
    dump_period: i32,
    max_sampling_count: i32,
    logs: Vec<ProfileTaskLog>,
}

impl ProfileTask {
    fn of((task, logs): (TaskRecord, Vec<LogEntry>)) -> Self {
        let logs = logs_of(&task, &logs);
        let request = task.request;
        Self {
            id: task.id,
            service_id: service_id(&request.service).into(),
            service_name: request.service,
            endpoint_name: request.endpoint,
            start_time: Long(request.start_ms),
            duration: request.duration_minutes,
            min_duration_threshold: request.min_duration_threshold_ms,
            dump_period: request.dump_period_ms,
            max_sampling_count: request.max_sampling_count,
            logs,
        }
    }
}

/// Newest first, as in OAP.
fn logs_of(task: &TaskRecord, logs: &[LogEntry]) -> Vec<ProfileTaskLog> {
    let log = |entry: &LogEntry| {
        let instance = instance_id(&task.request.service, &entry.instance);
        let operation = entry.operation.name();
        ProfileTaskLog {
            id: format!("{}_{instance}_{operation}_{}", task.id, entry.time_ms),
            instance_id: instance.into(),
            instance_name: entry.instance.clone(),
            operation_type: match entry.operation {
                Operation::Notified => ProfileTaskLogOperationType::Notified,
                Operation::Finished => ProfileTaskLogOperationType::ExecutionFinished,
            },
            operation_time: Long(entry.time_ms),
        }
    };
    logs.iter().rev().map(log).collect()
}

#[Object]
impl TaskQuery {
    /// Tasks, the latest start first.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_profile_task_list(
        &self,
        context: &Context<'_>,
        service_id: Option<ID>,
        endpoint_name: Option<String>,
    ) -> Result<Vec<ProfileTask>> {
        let tasks = on_store(context, |store| store.logged_tasks()).await?;
        let mut tasks: Vec<ProfileTask> = tasks.into_iter().map(ProfileTask::of).collect();
        // An empty name is no name to OAP.
        let is_wanted =
            |wanted: Option<&str>, it: &str| wanted.is_none_or(|w| w.is_empty() || w == it);
        tasks.retain(|task| {
            is_wanted(service_id.as_deref().map(String::as_str), &task.service_id)
                && is_wanted(endpoint_name.as_deref(), &task.endpoint_name)
        });
        tasks.sort_by_key(|task| std::cmp::Reverse(task.start_time.0));
        Ok(tasks)
    }

    /// What instances did with a task, or with all.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_profile_task_logs(
        &self,
        context: &Context<'_>,
        #[graphql(name = "taskID")] task_id: Option<String>,
    ) -> Result<Vec<ProfileTaskLog>> {
        let tasks = on_store(context, |store| store.logged_tasks()).await?;
        let wanted = tasks
            .iter()
            .filter(|(task, _)| task_id.as_ref().is_none_or(|id| *id == task.id));
        Ok(wanted
            .flat_map(|(task, logs)| logs_of(task, logs))
            .collect())
    }
}

#[Object]
impl TaskMutation {
    /// Creates a task, or says why not.
    async fn create_profile_task(
        &self,
        context: &Context<'_>,
        creation_request: Option<ProfileTaskCreationRequest>,
    ) -> Result<ProfileTaskCreationResult> {
        let refused = |reason: String| ProfileTaskCreationResult {
            error_reason: Some(reason),
            id: None,
        };
        let Some(wanted) = creation_request else {
            return Err("creationRequest is missing".into());
        };
        let Some(service) = service_name(&wanted.service_id) else {
            let reason = "serviceId must be the service's name in base64, and \".1\"";
            return Ok(refused(reason.to_owned()));
        };
        let request = TaskRequest {
            service,
            endpoint: wanted.endpoint_name,
            start_ms: wanted.start_time.map_or(0, |time| time.0),
            duration_minutes: wanted.duration,
            min_duration_threshold_ms: wanted.min_duration_threshold,
            dump_period_ms: wanted.dump_period,
            max_sampling_count: wanted.max_sampling_count,
        };
        let created = on_store(context, |store| store.create_task(request, unix_ms_now())).await;
        Ok(match created {
            Ok(task) => {
                info!(task_id = %task.id, endpoint = %task.request.endpoint, "profile task created");
                ProfileTaskCreationResult {
                    error_reason: None,
                    id: Some(task.id),
                }
            }
            Err(Refusal::Storage(error)) => return Err(error.into()),
            Err(refusal) => refused(refusal.to_string()),
        })
    }
}
