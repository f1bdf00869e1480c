//! The gRPC server: its services, and what a client may take of it.
//!
//! In:  connections on a listening socket
//! Out: calls to the services; all but the health check ask for the token
//! Lost: connections over the limits, closed at once, and those that stand still
//!
//! | what a client may take | bound | where |
//! |---|---|---|
//! | connections, in all and of one peer | [`LIMITS`] | `connection/places.rs` |
//! | time until HTTP/2 has begun | [`PATIENCE`] | `connection/watched.rs` |
//! | time for a head, or with a dead connection | [`PING_INTERVAL`] and [`PING_TIMEOUT`] | hyper |
//! | time without reading what it is sent | [`PATIENCE`] | `connection/watched.rs` |
//! | calls of a connection | [`STREAMS_MAX`] | hyper |
//! | bytes that no call has taken yet | [`WINDOW_BYTES`] of a connection | hyper |
//! | bytes and time of unfinished messages | per connection and in all | `unfinished.rs` |
//! | bytes of a message | by service, below | tonic |
//! | parts of a message | 65,536 | `profiler_proto::parts` |
//!
//! `:authority` is not checked, while the HTTP servers check `Host` ([`crate::http`]): no page of a browser can speak
//! HTTP/2 without TLS, and HTTP/1.1 is not spoken here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use profiler_proto::profilerd::tasks_server::TasksServer;
use profiler_proto::skywalking::clr_metric_report_service_server::ClrMetricReportServiceServer;
use profiler_proto::skywalking::configuration_discovery_service_server::ConfigurationDiscoveryServiceServer;
use profiler_proto::skywalking::event_service_server::EventServiceServer;
use profiler_proto::skywalking::jvm_metric_report_service_server::JvmMetricReportServiceServer;
use profiler_proto::skywalking::log_report_service_server::LogReportServiceServer;
use profiler_proto::skywalking::management_service_server::ManagementServiceServer;
use profiler_proto::skywalking::meter_report_service_server::MeterReportServiceServer;
use profiler_proto::skywalking::profile_task_server::ProfileTaskServer;
use profiler_proto::skywalking::trace_segment_report_service_server::TraceSegmentReportServiceServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::agents::Agents;
use super::door::Door;
use super::store::Store;
use super::tasks::TaskService;
use super::unfinished::{Kept, KeptByConnection, WithBounds};
use super::unkept::Unkept;
use crate::connection::{Acceptor, Limits, Patience, Place, Watched};

/// Connections. Each agent has one, and several hundred processes of a user may have agents; one peer leaves some to
/// others.
const LIMITS: Limits = Limits {
    total: 256,
    per_peer: 128,
    reserved: 16,
};
/// The first bytes of HTTP/2, the same for all, see RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
const PATIENCE: Patience = Patience {
    greeting: (PREFACE_BYTES, Duration::from_secs(10)),
    write: Duration::from_secs(30),
};
/// A client that is silent is asked whether it still lives. It cannot answer within a frame that it does not end.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls that a connection may have open.
const STREAMS_MAX: u32 = 16;
/// Bytes that a connection may send before they are taken, and one of its calls.
const WINDOW_BYTES: u32 = 256 << 10;
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// Fields of a head; the longest that is used is a token.
const HEAD_MAX_BYTES: u32 = 16 << 10;

/// Largest message accepted. A snapshot of 1024 frames of 5,000 bytes fits; OAP takes ten times
/// more, which no agent needs.
const MESSAGE_MAX_BYTES: usize = 8 << 20;
/// Largest message about an instance: 64 properties of 1 KiB are kept.
const INSTANCE_MAX_BYTES: usize = 256 << 10;
/// Largest question for health: the name of a service.
const HEALTH_MAX_BYTES: usize = 1 << 10;

/// What belongs to a connection.
#[derive(Debug)]
struct Caller {
    bytes: KeptByConnection,
    _place: Place,
}

impl Connected for Watched<TcpStream, Caller> {
    type ConnectInfo = KeptByConnection;

    fn connect_info(&self) -> KeptByConnection {
        self.kept().bytes.clone()
    }
}

/// Serves until `stopped`.
pub(super) async fn serve(
    listener: TcpListener,
    services: Routes,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (sender, accepted) = mpsc::channel(1);
    let acceptor = Acceptor::new(listener, LIMITS, "gRPC");
    // Ends, and closes the listening socket, when nobody waits for connections any more.
    tokio::spawn(accept(acceptor, sender));
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_max_header_list_size(HEAD_MAX_BYTES)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .serve_with_incoming_shutdown(WithBounds(services), ReceiverStream::new(accepted), stopped)
        .await
}

async fn accept(
    mut acceptor: Acceptor,
    sender: mpsc::Sender<io::Result<Watched<TcpStream, Caller>>>,
) {
    let kept = Kept::default();
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.next() => accepted,
            () = sender.closed() => return,
        };
        // Answers are small, and somebody waits for each.
        let _stays_slower = accepted.stream.set_nodelay(true);
        let caller = Caller {
            bytes: kept.connection(accepted.place.peer().is_trusted()),
            _place: accepted.place,
        };
        let stream = Watched::new(accepted.stream, PATIENCE, caller);
        if sender.send(Ok(stream)).await.is_err() {
            return;
        }
    }
}

/// All services; all but the health check ask for the token.
pub(super) async fn services(store: &Arc<Store>, door: Door) -> Routes {
    let check = move |request: Request<()>| door.check(request);
    let agents = Agents::new(Arc::clone(store));
    let tasks = TaskService::new(Arc::clone(store));
    let unkept = Unkept::default();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ProfileTaskServer<Agents>>().await;
    let health_service = health_service.max_decoding_message_size(HEALTH_MAX_BYTES);
    Routes::new(health_service)
        .add_service(InterceptedService::new(
            ProfileTaskServer::new(agents.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES),
            check.clone(),
        ))
        .add_service(InterceptedService::new(
            ManagementServiceServer::new(agents.clone())
                .max_decoding_message_size(INSTANCE_MAX_BYTES),
            check.clone(),
        ))
        .add_service(InterceptedService::new(
            TraceSegmentReportServiceServer::new(agents.clone())
                .max_decoding_message_size(MESSAGE_MAX_BYTES),
            check.clone(),
        ))
        .add_service(InterceptedService::new(
            LogReportServiceServer::new(agents).max_decoding_message_size(MESSAGE_MAX_BYTES),
            check.clone(),
        ))
        .add_service(MeterReportServiceServer::with_interceptor(
            unkept.clone(),
            check.clone(),
        ))
        .add_service(JvmMetricReportServiceServer::with_interceptor(
            unkept.clone(),
            check.clone(),
        ))
        .add_service(ClrMetricReportServiceServer::with_interceptor(
            unkept.clone(),
            check.clone(),
        ))
        .add_service(EventServiceServer::with_interceptor(
            unkept.clone(),
            check.clone(),
        ))
        .add_service(ConfigurationDiscoveryServiceServer::with_interceptor(
            unkept.clone(),
            check.clone(),
        ))
        .add_service(InterceptedService::new(
            TasksServer::new(tasks).max_decoding_message_size(MESSAGE_MAX_BYTES),
            check,
        ))
}
