//! Another user on the port where the OAP should be: nothing is said to it. The impostor is this test binary again, under
//! another user id; it writes down how many bytes it is sent.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use profiler_daemon::embedded::{EmbeddedOap, TaskClient};
use profiler_daemon::oap::graphql::GraphqlClient;
use profiler_daemon::oap::{OapClient, OapConfig, OapEvent, TokenSource};
use profiler_test_support::{ChildGuard, needs_root};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);
const STRANGER: u32 = 65_533;
/// Tells this binary that it is the impostor.
const IMPOSTOR: &str = "PROFILERD_TEST_IMPOSTOR";
const LINE: &str = "impostor: ";
const TOKEN: &str = "top-s3cret-token";

struct Impostor {
    _child: ChildGuard,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Impostor {
    fn start(kind: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "impostor", "--nocapture", "--test-threads=1"])
            .env(IMPOSTOR, kind)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = ChildGuard::spawn("impostor", &mut command).unwrap();
        let output = BufReader::new(child.process().stdout.take().unwrap());
        let mut it = Self {
            _child: child,
            output,
            address: "127.0.0.1:0".parse().unwrap(),
        };
        it.address = it.line().parse().unwrap();
        it
    }

    /// The next thing that it says.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it has ended");
            if let Some(at) = line.find(LINE) {
                return line[at + LINE.len()..].trim().to_owned();
            }
        }
    }

    /// What came on the next connection to it, as text.
    fn heard(&mut self) -> String {
        self.line()
    }
}

/// No test, but what the tests start as another process. It accepts connections, or leaves them in its queue until it is
/// told nothing more, and says what comes on each until its end.
#[test]
fn impostor() {
    let Ok(kind) = std::env::var(IMPOSTOR) else {
        return;
    };
    // SAFETY: system calls with plain numbers.
    assert_eq!(unsafe { libc::setgid(STRANGER) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setuid(STRANGER) }, 0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("\n{LINE}{}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    if kind == "lazy" {
        // The connection is made by the kernel, and belongs to nobody until it is accepted.
        std::thread::sleep(Duration::from_secs(2));
    }
    for stream in listener.incoming() {
        let mut bytes = Vec::new();
        let mut stream = stream.unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _broken = stream.read_to_end(&mut bytes);
        println!("\n{LINE}{:?}", String::from_utf8_lossy(&bytes));
        std::io::stdout().flush().unwrap();
    }
}

async fn disconnected(events: &mut Receiver<OapEvent>) -> String {
    loop {
        match timeout(DEADLINE, events.recv()).await.unwrap().unwrap() {
            OapEvent::Disconnected { reason } => return reason,
            OapEvent::Connected => panic!("connected"),
            _ => {}
        }
    }
}

fn config(address: SocketAddr) -> OapConfig {
    OapConfig {
        token: TokenSource::Given(TOKEN.to_owned()),
        retry: (Duration::from_millis(10), Duration::from_millis(50)),
        ..OapConfig::new(vec![address.to_string()])
    }
}

/// Check that the daemon's client says nothing to another user's port, whether the connection is accepted or not, says
/// why once, and does not give up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_is_told_nothing_by_the_daemon() {
    needs_root!();
    for kind in ["eager", "lazy"] {
        let mut impostor = Impostor::start(kind);
        let (handle, mut events) = OapClient::spawn(config(impostor.address));
        let reason = disconnected(&mut events).await;
        let user = format!("runs as user {STRANGER}");
        for part in [&impostor.address.to_string(), &user, "oap.local_users"] {
            assert!(reason.contains(part), "{kind}: {reason}");
        }
        for _ in 0..3 {
            assert_eq!(impostor.heard(), "\"\"", "{kind}");
        }
        assert!(events.try_recv().is_err(), "it is told once");
        handle.shutdown(Duration::ZERO).await;
    }
}

/// Check that a configured user is spoken to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_user_is_spoken_to() {
    needs_root!();
    let mut impostor = Impostor::start("eager");
    let address = impostor.address.to_string();
    let connected = TaskClient::connect_to(&address, Some(TOKEN), &[STRANGER]).await;
    drop(connected.unwrap());
    let heard = impostor.heard();
    assert!(heard.contains("PRI * HTTP/2.0"), "{heard}");
}

/// Check that `profilerd task` says nothing to another user's port by either protocol, and names the user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_is_told_nothing_by_task() {
    needs_root!();
    let mut impostor = Impostor::start("eager");
    let address = impostor.address.to_string();
    let user = format!("runs as user {STRANGER}");
    let error = TaskClient::connect(&address, Some(TOKEN))
        .await
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains(&user) && text.contains("oap.local_users"),
        "{text}"
    );
    assert_eq!(impostor.heard(), "\"\"");
    let client = GraphqlClient::new(&format!("http://{address}/graphql")).unwrap();
    let client = client.with_token(Some(TOKEN)).unwrap();
    let error = client.list("", "").await.unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains(&user) && text.contains("oap.local_users"),
        "{text}"
    );
    assert_eq!(impostor.heard(), "\"\"");
}

/// Check that our own OAP is spoken to, by each address of the loopback and of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_oap_is_spoken_to() {
    for (listen, to) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "localhost"),
        ("[::1]:0", "[::1]"),
        ("[::]:0", "127.0.0.1"),
    ] {
        let oap = EmbeddedOap::start(listen.parse().unwrap()).await.unwrap();
        let address = format!("{to}:{}", oap.local_addr().port());
        let mut tasks = TaskClient::connect(&address, None).await.unwrap();
        assert_eq!(tasks.list("", "").await.unwrap(), [], "{listen}");
        oap.shutdown().await;
    }
}
