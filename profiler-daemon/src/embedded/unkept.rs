//! Accepts what agents report besides traces and profiles, and stores none of it.
//!
//! In:  meters, metrics of JVM and CLR, events; questions for configuration
//! Out: empty `Commands`, as from an OAP that has none
//! Lost: all of it; each kind is logged once
//!
//! Without these services an agent with its defaults works as well, but logs an error with each report: the
//! Python agent each minute, the Java agent each second.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use profiler_proto::skywalking as pb;
use profiler_proto::skywalking::clr_metric_report_service_server::ClrMetricReportService;
use profiler_proto::skywalking::configuration_discovery_service_server::ConfigurationDiscoveryService;
use profiler_proto::skywalking::event_service_server::EventService;
use profiler_proto::skywalking::jvm_metric_report_service_server::JvmMetricReportService;
use profiler_proto::skywalking::meter_report_service_server::MeterReportService;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

/// All of these services.
#[derive(Clone, Debug, Default)]
pub(super) struct Unkept {
    told: Arc<Mutex<BTreeSet<&'static str>>>,
}

type Answer = Result<Response<pb::Commands>, Status>;

impl Unkept {
    fn forget(&self, kind: &'static str) -> Answer {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(kind) {
            info!(kind, "agents send data that the built-in OAP does not keep");
        }
        Ok(Response::new(pb::Commands::default()))
    }

    async fn forget_all(&self, kind: &'static str, mut stream: Streaming<pb::Unread>) -> Answer {
        while stream.message().await?.is_some() {}
        self.forget(kind)
    }
}

#[tonic::async_trait]
impl MeterReportService for Unkept {
    async fn collect(&self, request: Request<Streaming<pb::Unread>>) -> Answer {
        self.forget_all("meters", request.into_inner()).await
    }

    async fn collect_batch(&self, request: Request<Streaming<pb::Unread>>) -> Answer {
        self.forget_all("meters", request.into_inner()).await
    }
}

#[tonic::async_trait]
impl JvmMetricReportService for Unkept {
    async fn collect(&self, _: Request<pb::Unread>) -> Answer {
        self.forget("metrics of JVMs")
    }
}

#[tonic::async_trait]
impl ClrMetricReportService for Unkept {
    async fn collect(&self, _: Request<pb::Unread>) -> Answer {
        self.forget("metrics of CLRs")
    }
}

#[tonic::async_trait]
impl EventService for Unkept {
    async fn collect(&self, request: Request<Streaming<pb::Unread>>) -> Answer {
        self.forget_all("events", request.into_inner()).await
    }
}

#[tonic::async_trait]
impl ConfigurationDiscoveryService for Unkept {
    /// Nothing is lost here: there is nothing to configure.
    async fn fetch_configurations(&self, _: Request<pb::Unread>) -> Answer {
        Ok(Response::new(pb::Commands::default()))
    }
}
