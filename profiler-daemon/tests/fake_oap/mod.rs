//! A fake OAP on the loopback that writes down what comes and misbehaves on demand.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use profiler_proto::skywalking as pb;
use profiler_proto::skywalking::management_service_server::{
    ManagementService, ManagementServiceServer,
};
use profiler_proto::skywalking::profile_task_server::{ProfileTask, ProfileTaskServer};
use profiler_proto::skywalking::trace_segment_report_service_server::{
    TraceSegmentReportService, TraceSegmentReportServiceServer,
};
use tokio::time::{sleep, timeout};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// Longest wait for anything; reached only by a failing test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// What a stream of snapshots or segments meets.
#[allow(dead_code, reason = "each test binary uses some of them")]
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// Refused before it is read.
    Busy,
    /// So many messages are taken, then an error is answered.
    After(usize),
    /// Each message takes so long.
    Slow(Duration),
    /// All messages are taken, and gone with the OAP.
    Dies,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) queries: Vec<pb::ProfileTaskCommandQuery>,
    /// Answers to task queries; the last one stays.
    pub(crate) answers: Vec<Vec<pb::Command>>,
    pub(crate) is_profiling_unknown: bool,
    /// Instance whose queries are answered with an error.
    pub(crate) refused: Option<String>,
    /// Instance whose queries are never answered.
    pub(crate) unanswered: Option<String>,
    /// Faults of the next streams of snapshots, last first.
    pub(crate) faults: Vec<Fault>,
    /// The same of segments.
    pub(crate) segment_faults: Vec<Fault>,
    /// Segment that cannot be taken, under whatever id ([`original`]): its stream ends with an error.
    pub(crate) poison: Option<String>,
    pub(crate) snapshots: Vec<pb::ThreadSnapshot>,
    pub(crate) segments: Vec<pb::SegmentObject>,
    pub(crate) finishes: Vec<pb::ProfileTaskFinishReport>,
    pub(crate) beats: usize,
}

/// The fake OAP: writes down what comes.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

/// The first id of a request that may have been sent again.
#[allow(dead_code, reason = "each test binary uses some of them")]
pub(crate) fn original(segment_id: &str) -> &str {
    segment_id.split('.').next().unwrap_or(segment_id)
}

type Answer = Result<Response<pb::Commands>, Status>;

fn done() -> Answer {
    Ok(Response::new(pb::Commands::default()))
}

impl Fake {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// Serves on a free port of the loopback.
    pub(crate) fn serve(&self) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        self.serve_at("127.0.0.1:0".parse().unwrap(), None)
    }

    pub(crate) fn serve_at(
        &self,
        address: SocketAddr,
        tls: Option<ServerTlsConfig>,
    ) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let incoming = TcpIncoming::bind(address).unwrap();
        let address = incoming.local_addr().unwrap();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let router = server
            .add_service(ProfileTaskServer::new(self.clone()))
            .add_service(ManagementServiceServer::new(self.clone()))
            .add_service(TraceSegmentReportServiceServer::new(self.clone()));
        let server = tokio::spawn(async move {
            router.serve_with_incoming(incoming).await.unwrap();
        });
        (address, server)
    }

    /// Takes a stream; `keep` says whether a message can be kept.
    async fn take<T>(
        &self,
        mut stream: Streaming<T>,
        fault: Option<Fault>,
        keep: impl Fn(&mut State, T) -> bool,
    ) -> Answer {
        if matches!(fault, Some(Fault::Busy)) {
            return Err(Status::resource_exhausted("Watermark exceeded"));
        }
        let mut count = 0;
        while let Some(message) = stream.message().await? {
            if matches!(fault, Some(Fault::Dies)) {
                continue;
            }
            let is_kept = self.with(|state| keep(state, message));
            count += 1;
            if let Some(Fault::Slow(pause)) = fault {
                sleep(pause).await;
            }
            if !is_kept || matches!(fault, Some(Fault::After(limit)) if count == limit) {
                return Err(Status::unknown("Application error processing RPC"));
            }
        }
        match fault {
            Some(Fault::Dies) => Err(Status::unavailable("gone")),
            _ => done(),
        }
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let wait = async {
            while !self.with(|state| condition(state)) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, wait)
            .await
            .unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

#[tonic::async_trait]
impl ProfileTask for Fake {
    async fn get_profile_task_commands(
        &self,
        request: Request<pb::ProfileTaskCommandQuery>,
    ) -> Answer {
        let query = request.into_inner();
        let instance = Some(query.service_instance.clone());
        if self.with(|state| {
            state.queries.push(query);
            state.unanswered == instance
        }) {
            std::future::pending::<()>().await;
        }
        self.with(|state| {
            if state.refused == instance {
                return Err(Status::unknown("Application error processing RPC"));
            }
            if state.is_profiling_unknown {
                return Err(Status::unimplemented("unknown service"));
            }
            let commands = match state.answers.len() {
                0 => Vec::new(),
                1 => state.answers[0].clone(),
                _ => state.answers.remove(0),
            };
            Ok(Response::new(pb::Commands { commands }))
        })
    }

    async fn collect_snapshot(&self, request: Request<Streaming<pb::ThreadSnapshot>>) -> Answer {
        let fault = self.with(|state| state.faults.pop());
        self.take(request.into_inner(), fault, |state, snapshot| {
            state.snapshots.push(snapshot);
            true
        })
        .await
    }

    async fn report_task_finish(&self, request: Request<pb::ProfileTaskFinishReport>) -> Answer {
        self.with(|state| state.finishes.push(request.into_inner()));
        done()
    }
}

#[tonic::async_trait]
impl ManagementService for Fake {
    async fn report_instance_properties(
        &self,
        _request: Request<pb::InstanceProperties>,
    ) -> Answer {
        done()
    }

    async fn keep_alive(&self, _request: Request<pb::InstancePingPkg>) -> Answer {
        self.with(|state| state.beats += 1);
        done()
    }
}

#[tonic::async_trait]
impl TraceSegmentReportService for Fake {
    async fn collect(&self, request: Request<Streaming<pb::SegmentObject>>) -> Answer {
        let fault = self.with(|state| state.segment_faults.pop());
        self.take(request.into_inner(), fault, |state, segment| {
            let is_taken = state.poison.as_deref() != Some(original(&segment.trace_segment_id));
            if is_taken {
                state.segments.push(segment);
            }
            is_taken
        })
        .await
    }

    async fn collect_in_sync(&self, _request: Request<pb::SegmentCollection>) -> Answer {
        done()
    }
}
