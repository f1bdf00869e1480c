//! Stands between a reporter and an OAP: passes every call on unchanged and keeps what was said, because
//! an OAP hands out trees, but never the snapshots they are made of.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use profiler_proto::skywalking::management_service_client::ManagementServiceClient;
use profiler_proto::skywalking::management_service_server::{
    ManagementService, ManagementServiceServer,
};
use profiler_proto::skywalking::profile_task_client::ProfileTaskClient;
use profiler_proto::skywalking::profile_task_server::{ProfileTask, ProfileTaskServer};
use profiler_proto::skywalking::trace_segment_report_service_client::TraceSegmentReportServiceClient;
use profiler_proto::skywalking::trace_segment_report_service_server::{
    TraceSegmentReportService, TraceSegmentReportServiceServer,
};
use profiler_proto::skywalking::{
    Commands, InstancePingPkg, InstanceProperties, ProfileTaskCommandQuery,
    ProfileTaskFinishReport, SegmentCollection, SegmentObject, ThreadSnapshot,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// What went through, in order of arrival.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) segments: Vec<SegmentObject>,
    pub(crate) snapshots: Vec<ThreadSnapshot>,
    pub(crate) finished: Vec<ProfileTaskFinishReport>,
}

/// A running relay; ends when dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    said: Arc<Mutex<Said>>,
    _runtime: Runtime,
}

impl Relay {
    /// In front of the OAP at this address.
    pub(crate) fn start(oap: SocketAddr) -> Self {
        let runtime = Runtime::new().unwrap();
        let said = Arc::<Mutex<Said>>::default();
        let hop = runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{oap}")).unwrap();
            Hop {
                oap: endpoint.connect_lazy(),
                said: Arc::clone(&said),
            }
        });
        let address = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = Server::builder()
                .add_service(ManagementServiceServer::new(hop.clone()))
                .add_service(ProfileTaskServer::new(hop.clone()))
                .add_service(TraceSegmentReportServiceServer::new(hop));
            tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
            address
        });
        Self {
            address,
            said,
            _runtime: runtime,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was said so far.
    pub(crate) fn said(&self) -> Said {
        self.said.lock().unwrap().clone()
    }
}

#[derive(Clone)]
struct Hop {
    oap: Channel,
    said: Arc<Mutex<Said>>,
}

type Answer = Result<Response<Commands>, Status>;

async fn collected<T>(mut stream: Streaming<T>) -> Result<Vec<T>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

#[tonic::async_trait]
impl ManagementService for Hop {
    async fn report_instance_properties(&self, call: Request<InstanceProperties>) -> Answer {
        let mut oap = ManagementServiceClient::new(self.oap.clone());
        oap.report_instance_properties(call.into_inner()).await
    }

    async fn keep_alive(&self, call: Request<InstancePingPkg>) -> Answer {
        let mut oap = ManagementServiceClient::new(self.oap.clone());
        oap.keep_alive(call.into_inner()).await
    }
}

#[tonic::async_trait]
impl ProfileTask for Hop {
    async fn get_profile_task_commands(&self, call: Request<ProfileTaskCommandQuery>) -> Answer {
        let mut oap = ProfileTaskClient::new(self.oap.clone());
        oap.get_profile_task_commands(call.into_inner()).await
    }

    async fn collect_snapshot(&self, call: Request<Streaming<ThreadSnapshot>>) -> Answer {
        let snapshots = collected(call.into_inner()).await?;
        self.said
            .lock()
            .unwrap()
            .snapshots
            .extend(snapshots.clone());
        let mut oap = ProfileTaskClient::new(self.oap.clone());
        oap.collect_snapshot(tokio_stream::iter(snapshots)).await
    }

    async fn report_task_finish(&self, call: Request<ProfileTaskFinishReport>) -> Answer {
        let report = call.into_inner();
        self.said.lock().unwrap().finished.push(report.clone());
        let mut oap = ProfileTaskClient::new(self.oap.clone());
        oap.report_task_finish(report).await
    }
}

#[tonic::async_trait]
impl TraceSegmentReportService for Hop {
    async fn collect(&self, call: Request<Streaming<SegmentObject>>) -> Answer {
        let segments = collected(call.into_inner()).await?;
        self.said.lock().unwrap().segments.extend(segments.clone());
        let mut oap = TraceSegmentReportServiceClient::new(self.oap.clone());
        oap.collect(tokio_stream::iter(segments)).await
    }

    async fn collect_in_sync(&self, call: Request<SegmentCollection>) -> Answer {
        let collection = call.into_inner();
        let segments = collection.segments.clone();
        self.said.lock().unwrap().segments.extend(segments);
        let mut oap = TraceSegmentReportServiceClient::new(self.oap.clone());
        oap.collect_in_sync(collection).await
    }
}
