//! Clients that want to take the servers from others: as another user, over real sockets.
//!
//! Root and our own user have places of their own, so the attacks run in a process that is neither: this test
//! binary again, under another user id. It says when it has taken what it gets, and holds that until it is killed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::future::pending;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use profiler_daemon::embedded::{EmbeddedConfig, EmbeddedOap, TaskClient};
use profiler_daemon::metrics::{MetricsServer, Questions, listen};
use profiler_daemon::model::Observation;
use profiler_proto::skywalking::profile_task_client::ProfileTaskClient;
use profiler_proto::skywalking::trace_segment_report_service_client::TraceSegmentReportServiceClient;
use profiler_proto::skywalking::{
    SegmentCollection, SegmentObject, SpanObject, ThreadSnapshot, ThreadStack,
};
use profiler_test_support::{ChildGuard, HttpClient, needs_root};
use tokio::time::{sleep, timeout};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Longest wait for anything; reached only by a failing test.
const DEADLINE: Duration = Duration::from_secs(60);
/// Whoever attacks. Nobody else is it.
const STRANGER: u32 = 65_533;
/// Tells this binary that it is to attack: kind and address.
const ATTACK: &str = "PROFILERD_TEST_ATTACK";
/// Begins the line that says what an attack has got.
const TAKEN: &str = "taken: ";

/// A message that is said to be longer than it is by one byte.
const MESSAGE_BYTES: usize = 4 << 20;
const CONNECTIONS: usize = 16;
const STREAMS: usize = 64;

/// Starts an attack, and waits until it has taken what it gets. Returns what it says that is.
fn attack(kind: &str, address: SocketAddr) -> (ChildGuard, usize) {
    let (child, _, taken) = start_as_stranger(kind, address);
    (child, taken)
}

type Output = BufReader<std::process::ChildStdout>;

fn start_as_stranger(kind: &str, address: SocketAddr) -> (ChildGuard, Output, usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "attacker", "--nocapture", "--test-threads=1"])
        .env(ATTACK, format!("{kind} {address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = ChildGuard::spawn("attacker", &mut command).unwrap();
    let mut output = BufReader::new(child.process().stdout.take().unwrap());
    let taken = output.by_ref().lines().map_while(Result::ok);
    let taken = taken.filter_map(|line| {
        let at = line.find(TAKEN)?;
        line[at + TAKEN.len()..].trim().parse().ok()
    });
    let taken = { taken }.next();
    (
        child,
        output,
        taken.expect("an attack that says what it has taken"),
    )
}

/// No test, but what the tests start as another process.
#[test]
fn attacker() {
    let Ok(text) = std::env::var(ATTACK) else {
        return;
    };
    let (kind, address) = text.split_once(' ').unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    // SAFETY: system calls with plain numbers.
    assert_eq!(unsafe { libc::setgid(STRANGER) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setuid(STRANGER) }, 0);
    match kind {
        "starved" => starved(),
        "silent" => silent(address),
        "deaf" => deaf(address),
        path => unfinished(path, address),
    }
}

/// A server that has descriptors for three clients only. Tells its port.
fn starved() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        tracing_subscriber::fmt()
            .with_writer(std::io::stdout)
            .init();
        let (server, daemon) = metrics();
        let most = open_descriptors() as u64 + 3;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        told(server.local_addr().port().into());
        daemon.await.unwrap();
    });
}

fn told(taken: usize) {
    println!("\n{TAKEN}{taken}");
    std::io::stdout().flush().unwrap();
}

fn connect(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(address).unwrap();
    (0..count).map(connect).collect()
}

/// Whether the server has closed a connection; waits for a moment.
fn is_closed(stream: &mut TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    match stream.read(&mut [0; 64]) {
        // What a server of HTTP/2 says first.
        Ok(count) if count > 0 => is_closed(stream, patience),
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ),
    }
}

/// A thousand connections on which nothing is said. Tells how many stay, then how many stay for long.
fn silent(address: SocketAddr) {
    let mut streams = connect(address, 1_000);
    // The server has gone through all of them when it has closed one that came last.
    let moment = Duration::from_millis(5);
    streams.retain_mut(|stream| !is_closed(stream, moment));
    told(streams.len());
    streams.retain_mut(|stream| !is_closed(stream, DEADLINE));
    told(streams.len());
    std::thread::park();
}

/// Connections that ask without end and read nothing.
fn deaf(address: SocketAddr) {
    let streams = connect(address, 64);
    let requests = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    let mut full = 0;
    for mut stream in &streams {
        stream.set_nonblocking(true).unwrap();
        while let Ok(count) = stream.write(&requests)
            && count > 0
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        full += 1;
    }
    told(full);
    std::thread::park();
}

/// Calls whose messages lack their last byte. Tells how many bytes were sent.
fn unfinished(path: &str, address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let sent = Arc::new(AtomicUsize::new(0));
        for _ in 0..CONNECTIONS {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let handshake =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (sender, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            for _ in 0..STREAMS {
                let request = Request::post(format!("http://{address}{path}"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(endless(Arc::clone(&sent)))
                    .unwrap();
                let mut sender = sender.clone();
                tokio::spawn(async move {
                    let _answer = sender.send_request(request).await;
                    pending::<()>().await;
                });
            }
        }
        loop {
            let before = sent.load(Ordering::Relaxed);
            sleep(Duration::from_secs(1)).await;
            let now = sent.load(Ordering::Relaxed);
            if now == before {
                told(now);
                pending::<()>().await;
            }
        }
    });
}

type Part = Result<Frame<Bytes>, std::io::Error>;

fn endless(
    sent: Arc<AtomicUsize>,
) -> impl hyper::body::Body<Data = Bytes, Error = std::io::Error> + Send + Unpin {
    const CHUNK: usize = 16 << 10;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Part>(1);
    tokio::spawn(async move {
        let mut header = vec![0];
        header.extend((MESSAGE_BYTES as u32).to_be_bytes());
        let chunk = Bytes::from(vec![7; CHUNK]);
        let last = chunk.slice(1..);
        let chunks = std::iter::repeat_n(chunk, MESSAGE_BYTES / CHUNK - 1);
        for bytes in std::iter::once(header.into()).chain(chunks).chain([last]) {
            let count = bytes.len();
            if sender.send(Ok(Frame::data(bytes))).await.is_err() {
                return;
            }
            sent.fetch_add(count, Ordering::Relaxed);
        }
        pending::<()>().await;
    });
    StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

async fn start(token: Option<&str>) -> EmbeddedOap {
    let any_port = "127.0.0.1:0".parse().unwrap();
    EmbeddedOap::start_with(EmbeddedConfig {
        http_listen: Some(any_port),
        token: token.map(str::to_owned),
        ..EmbeddedConfig::new(any_port)
    })
    .await
    .unwrap()
}

/// Asks everything that a built-in OAP answers, on new connections.
async fn everything_is_answered(oap: &EmbeddedOap, token: Option<&str>) {
    let address = oap.local_addr().to_string();
    let asked = async {
        let mut tasks = TaskClient::connect(&address, token).await.unwrap();
        tasks.list("", "").await.unwrap();
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        let mut health = HealthClient::new(channel.unwrap().connect().await.unwrap());
        health.check(HealthCheckRequest::default()).await.unwrap();
    };
    timeout(DEADLINE, asked).await.unwrap();
    let query = oap.query_addr().unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(query, DEADLINE).unwrap();
        client.request("GET", "/healthcheck", "").unwrap().status
    });
    assert_eq!(answer.await.unwrap(), 200);
}

fn status_kib(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib = line.split_ascii_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Check that a thousand silent connections take no more than the places of one user, and lose these when the time for
/// their greeting is over; others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_stop_nobody() {
    needs_root!();
    let oap = start(None).await;
    let before = open_descriptors();
    let (mut child, stay) = attack("silent", oap.local_addr());
    assert!(stay <= 128, "{stay} connections stay");
    assert!(open_descriptors() < before + 300);
    everything_is_answered(&oap, None).await;
    child.still_running().unwrap();
}

/// Check that messages without an end take bounded memory, on calls that need no token and on those that do, and that
/// others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_take_bounded_memory() {
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const SNAPSHOTS: &str = "/skywalking.v3.ProfileTask/collectSnapshot";
    const METERS: &str = "/skywalking.v3.MeterReportService/collect";
    needs_root!();
    // Without a token all connections keep 32 MiB, and the allocator some times as much; sixteen calls of each connection
    // would be 1 GiB.
    for (path, token, most_mib) in [
        (HEALTH, Some("secret"), 48),
        (SNAPSHOTS, Some("secret"), 48),
        (SNAPSHOTS, None, 256),
        (METERS, None, 256),
    ] {
        let oap = start(token).await;
        let before = status_kib("VmRSS:");
        let (mut child, sent) = attack(path, oap.local_addr());
        let more_mib = status_kib("VmRSS:").saturating_sub(before) >> 10;
        assert!(
            more_mib < most_mib,
            "{path}: {more_mib} MiB for {sent} bytes"
        );
        everything_is_answered(&oap, token).await;
        child.still_running().unwrap();
        oap.shutdown().await;
    }
}

/// Check that small messages that would be large in memory are refused before they are decoded, and that the connection
/// goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_multiply_are_refused() {
    let oap = start(None).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", oap.local_addr()));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut segments = TraceSegmentReportServiceClient::new(channel.clone());
    let mut snapshots = ProfileTaskClient::new(channel);
    for (count, is_taken) in [(1_000, true), (100_000, false), (1_000, true)] {
        let collection = SegmentCollection {
            segments: vec![SegmentObject {
                spans: vec![SpanObject::default(); count],
                ..SegmentObject::default()
            }],
        };
        let answer = segments.collect_in_sync(collection).await;
        assert_eq!(answer.map_err(|status| status.code()).is_ok(), is_taken);
        let snapshot = ThreadSnapshot {
            stack: Some(ThreadStack {
                code_signatures: vec![String::new(); count],
            }),
            ..ThreadSnapshot::default()
        };
        let answer = snapshots
            .collect_snapshot(tokio_stream::once(snapshot))
            .await;
        let code = answer.err().map(|status| status.code());
        assert_eq!(code.is_none(), is_taken);
        assert!(
            code.is_none_or(|code| code == tonic::Code::OutOfRange),
            "{code:?}"
        );
    }
}

fn metrics() -> (MetricsServer, tokio::task::JoinHandle<()>) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let (server, questions) = MetricsServer::start(listener, &[]).unwrap();
    (server, tokio::spawn(answer_all(questions)))
}

async fn answer_all(mut questions: Questions) {
    loop {
        questions.next().await.answer(Observation::default());
    }
}

/// Check that clients that pipeline and do not read leave places to others: health is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_stop_nobody() {
    needs_root!();
    let (server, daemon) = metrics();
    let address = server.local_addr();
    let (mut child, full) = attack("deaf", address);
    assert_eq!(full, 64);
    let asked = tokio::task::spawn_blocking(move || {
        let mut statuses = Vec::new();
        for _ in 0..20 {
            let mut client = HttpClient::connect(address, DEADLINE).unwrap();
            statuses.push(client.request("GET", "/healthz", "").unwrap().status);
        }
        statuses
    });
    assert_eq!(asked.await.unwrap(), [200; 20]);
    child.still_running().unwrap();
    daemon.abort();
}

/// Check that a server without descriptors says so once, and answers when it has some again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_descriptors_says_so_once() {
    needs_root!();
    let (mut child, mut output, port) =
        start_as_stranger("starved", "127.0.0.1:0".parse().unwrap());
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
    let streams = connect(address, 16);
    let mut failed = String::new();
    while !failed.contains("was not accepted") {
        failed.clear();
        assert_ne!(output.read_line(&mut failed).unwrap(), 0);
    }
    assert!(failed.contains("Too many open files"), "{failed}");
    // It tries again ten times a second.
    sleep(Duration::from_secs(2)).await;
    drop(streams);
    let asked = tokio::task::spawn_blocking(move || {
        let mut client = HttpClient::connect(address, DEADLINE).unwrap();
        client.request("GET", "/healthz", "").unwrap().status
    });
    assert_eq!(asked.await.unwrap(), 200);
    child.process().kill().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("was not accepted"), "{rest}");
}
