//! The services that agents speak: `ProfileTask`, `ManagementService`, `TraceSegmentReportService`, `LogReportService`.
//!
//! In:  what language agents and profilerd's own reporter send
//! Out: rows in the [`Store`], commands in the answers; of a log, its service and endpoint alone
//! Lost: rows the store refuses, counted there; the call succeeds all the same, as in OAP. When SQLite
//! fails the call fails
//!
//! A call is answered when what it brought is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use profiler_proto::skywalking as pb;
use profiler_proto::skywalking::log_report_service_server::LogReportService;
use profiler_proto::skywalking::management_service_server::ManagementService;
use profiler_proto::skywalking::profile_task_server::ProfileTask;
use profiler_proto::skywalking::trace_segment_report_service_server::TraceSegmentReportService;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::chunk::Chunk;
use super::storage::StorageError;
use super::store::Store;
use crate::model::clock::unix_ms_now;
use crate::model::plain::{check_plain, is_plain};

/// Most properties kept per instance, and the longest kept value.
const PROPERTIES_MAX: usize = 64;
const PROPERTY_MAX_BYTES: usize = 512;
/// Longest service or instance name: OAP cuts at 70 characters, agents may send more.
const NAME_MAX_BYTES: usize = 600;

/// The three services on one store.
#[derive(Clone, Debug)]
pub(super) struct Agents {
    store: Arc<Store>,
}

type Answer = Result<Response<pb::Commands>, Status>;

fn no_commands() -> Answer {
    Ok(Response::new(pb::Commands::default()))
}

fn check_names(service: &str, instance: &str) -> Result<(), Status> {
    for (what, name) in [("service", service), ("serviceInstance", instance)] {
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            return Err(Status::invalid_argument(format!(
                "{what} must have 1 to {NAME_MAX_BYTES} bytes"
            )));
        }
        check_plain(what, name).map_err(Status::invalid_argument)?;
    }
    Ok(())
}

impl Agents {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn seen(
        &self,
        service: String,
        instance: String,
        properties: Option<BTreeMap<String, String>>,
    ) -> Answer {
        let stored = self
            .store
            .run(move |store| store.seen(&service, &instance, properties, unix_ms_now()));
        stored.await?;
        no_commands()
    }
}

impl From<StorageError> for Status {
    /// None of the answers after which profilerd or an agent would send the same again: part of a
    /// stream may be stored.
    fn from(error: StorageError) -> Self {
        Self::internal(error.to_string())
    }
}

#[tonic::async_trait]
impl ProfileTask for Agents {
    async fn get_profile_task_commands(
        &self,
        request: Request<pb::ProfileTaskCommandQuery>,
    ) -> Answer {
        let query = request.into_inner();
        check_names(&query.service, &query.service_instance)?;
        let commands = self.store.run(move |store| {
            store.commands(
                &query.service,
                &query.service_instance,
                query.last_command_time,
                unix_ms_now(),
            )
        });
        let commands = commands.await?;
        Ok(Response::new(pb::Commands { commands }))
    }

    async fn collect_snapshot(&self, request: Request<Streaming<pb::ThreadSnapshot>>) -> Answer {
        let mut stream = request.into_inner();
        let mut count = 0;
        loop {
            let Chunk { rows, end } = Chunk::next(&mut stream).await;
            count += rows.len();
            let stored = self
                .store
                .run(|store| store.add_snapshots(rows, unix_ms_now()));
            stored.await?;
            if let Some(end) = end {
                debug!(count, "snapshots collected");
                return end.and_then(|()| no_commands());
            }
        }
    }

    async fn report_task_finish(&self, request: Request<pb::ProfileTaskFinishReport>) -> Answer {
        let report = request.into_inner();
        check_names(&report.service, &report.service_instance)?;
        let stored = self.store.run(move |store| {
            store.finished(&report.task_id, &report.service_instance, unix_ms_now())
        });
        stored.await?;
        no_commands()
    }
}

#[tonic::async_trait]
impl ManagementService for Agents {
    async fn report_instance_properties(&self, request: Request<pb::InstanceProperties>) -> Answer {
        let report = request.into_inner();
        check_names(&report.service, &report.service_instance)?;
        let mut properties: BTreeMap<String, String> = BTreeMap::new();
        let fits = |text: &str| text.len() <= PROPERTY_MAX_BYTES && is_plain(text);
        for pair in report.properties.into_iter().take(PROPERTIES_MAX) {
            if !fits(&pair.key) || !fits(&pair.value) {
                continue;
            }
            // `ipv4` comes once for each address; OAP joins them as well.
            properties
                .entry(pair.key)
                .and_modify(|value| {
                    value.push(',');
                    value.push_str(&pair.value);
                })
                .or_insert(pair.value);
        }
        self.seen(report.service, report.service_instance, Some(properties))
            .await
    }

    async fn keep_alive(&self, request: Request<pb::InstancePingPkg>) -> Answer {
        let ping = request.into_inner();
        check_names(&ping.service, &ping.service_instance)?;
        self.seen(ping.service, ping.service_instance, None).await
    }
}

#[tonic::async_trait]
impl TraceSegmentReportService for Agents {
    async fn collect(&self, request: Request<Streaming<pb::SegmentObject>>) -> Answer {
        let mut stream = request.into_inner();
        loop {
            let Chunk { rows, end } = Chunk::next(&mut stream).await;
            self.store.run(|store| store.add_segments(rows)).await?;
            if let Some(end) = end {
                return end.and_then(|()| no_commands());
            }
        }
    }

    async fn collect_in_sync(&self, request: Request<pb::SegmentCollection>) -> Answer {
        let segments = request.into_inner().segments;
        self.store.run(|store| store.add_segments(segments)).await?;
        no_commands()
    }
}

#[tonic::async_trait]
impl LogReportService for Agents {
    async fn collect(&self, request: Request<Streaming<pb::LogData>>) -> Answer {
        let mut stream = request.into_inner();
        // A message without a name has that of the one before.
        let mut service = String::new();
        loop {
            let Chunk { rows, end } = Chunk::next(&mut stream).await;
            let mut seen = Vec::with_capacity(rows.len());
            for log in rows {
                if !log.service.is_empty() {
                    service = log.service;
                }
                seen.push((service.clone(), log.endpoint));
            }
            let stored = self
                .store
                .run(move |store| store.seen_endpoints(seen, unix_ms_now()));
            stored.await?;
            if let Some(end) = end {
                return end.and_then(|()| no_commands());
            }
        }
    }
}
