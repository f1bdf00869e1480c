//! Processes and profiles of SkyWalking Rover, which reports to no built-in OAP: there are none.
//!
//! The processes that profilerd watches are service instances here, as they are on any OAP.

use async_graphql::{Enum, ID, Object, SimpleObject};

use super::long::Long;
use super::metadata::Attribute;
use super::time::Duration;

#[derive(Debug, Default)]
pub(super) struct RoverQuery;

#[derive(Debug, SimpleObject)]
struct Process {
    id: ID,
    name: String,
    service_id: ID,
    service_name: String,
    instance_id: ID,
    instance_name: String,
    agent_id: String,
    detect_type: String,
    attributes: Vec<Attribute>,
    labels: Vec<String>,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
#[graphql(name = "EBPFProfilingTriggerType")]
enum TriggerType {
    FixedTime,
    ContinuousProfiling,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
#[graphql(name = "EBPFProfilingTargetType")]
enum TargetType {
    OnCpu,
    OffCpu,
    Network,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum ContinuousProfilingTargetType {
    OnCpu,
    OffCpu,
    Network,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum ContinuousProfilingMonitorType {
    ProcessCpu,
    ProcessThreadCount,
    SystemLoad,
    HttpErrorRate,
    HttpAvgResponseTime,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "ContinuousProfilingSingleValueCause")]
struct ValueCause {
    threshold: Long,
    current: Long,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "ContinuousProfilingURICause")]
struct UriCause {
    uri_regex: Option<String>,
    uri_path: Option<String>,
    threshold: Long,
    current: Long,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "ContinuousProfilingTriggeredCause")]
struct TriggeredCause {
    #[graphql(name = "type")]
    kind: ContinuousProfilingMonitorType,
    single_value: Option<ValueCause>,
    uri: Option<UriCause>,
    message: String,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "EBPFProfilingTask")]
struct RoverTask {
    task_id: ID,
    service_id: ID,
    service_name: String,
    service_instance_id: Option<ID>,
    service_instance_name: Option<String>,
    process_labels: Vec<String>,
    process_id: Option<ID>,
    process_name: Option<String>,
    task_start_time: Long,
    trigger_type: TriggerType,
    fixed_trigger_duration: Option<Long>,
    continuous_profiling_causes: Option<Vec<TriggeredCause>>,
    target_type: TargetType,
    create_time: Long,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "EBPFProfilingSchedule")]
struct RoverSchedule {
    schedule_id: ID,
    task_id: ID,
    process: Process,
    start_time: Long,
    end_time: Long,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "EBPFProfilingTaskPrepare")]
struct RoverTaskPrepare {
    could_profiling: bool,
    process_labels: Vec<String>,
}

#[derive(Debug, SimpleObject)]
struct ContinuousProfilingPolicyItem {
    #[graphql(name = "type")]
    kind: ContinuousProfilingMonitorType,
    threshold: String,
    period: i32,
    count: i32,
    uri_list: Option<Vec<String>>,
    uri_regex: Option<String>,
}

#[derive(Debug, SimpleObject)]
struct ContinuousProfilingPolicyTarget {
    #[graphql(name = "type")]
    kind: ContinuousProfilingTargetType,
    check_items: Vec<ContinuousProfilingPolicyItem>,
    triggered_count: i32,
    last_trigger_timestamp: Option<Long>,
}

#[Object]
impl RoverQuery {
    async fn list_processes(
        &self,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "instanceId")] _instance_id: ID,
    ) -> Vec<Process> {
        Vec::new()
    }

    async fn get_process(&self, #[graphql(name = "processId")] _process_id: ID) -> Option<Process> {
        None
    }

    async fn estimate_process_scale(
        &self,
        #[graphql(name = "serviceId")] _service_id: ID,
        #[graphql(name = "labels")] _labels: Vec<String>,
    ) -> Long {
        Long(0)
    }

    #[graphql(name = "queryPrepareCreateEBPFProfilingTaskData")]
    async fn prepare(&self, #[graphql(name = "serviceId")] _service_id: ID) -> RoverTaskPrepare {
        RoverTaskPrepare {
            could_profiling: false,
            process_labels: Vec::new(),
        }
    }

    #[graphql(name = "queryEBPFProfilingTasks")]
    async fn tasks(
        &self,
        #[graphql(name = "serviceId")] _service_id: Option<ID>,
        #[graphql(name = "serviceInstanceId")] _service_instance_id: Option<ID>,
        #[graphql(name = "targets")] _targets: Option<Vec<TargetType>>,
        #[graphql(name = "triggerType")] _trigger_type: Option<TriggerType>,
        #[graphql(name = "duration")] _duration: Option<Duration>,
    ) -> Vec<RoverTask> {
        Vec::new()
    }

    #[graphql(name = "queryEBPFProfilingSchedules")]
    async fn schedules(&self, #[graphql(name = "taskId")] _task_id: ID) -> Vec<RoverSchedule> {
        Vec::new()
    }

    async fn query_continuous_profiling_service_targets(
        &self,
        #[graphql(name = "serviceId")] _service_id: ID,
    ) -> Vec<ContinuousProfilingPolicyTarget> {
        Vec::new()
    }
}
