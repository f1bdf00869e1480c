//! The client against an API server on loopback that says what the test wants.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::config::Enabled;

const DEADLINE: Duration = Duration::from_secs(20);
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(20));

/// What the server says.
enum Reply {
    /// Status and body.
    Answer(u16, String),
    /// Bytes that are no HTTP.
    Garbage,
    /// Nothing at all.
    Silence,
}

/// An API server.
struct Server {
    address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Replies to lists; the last is repeated.
    lists: Mutex<VecDeque<Reply>>,
    /// Lines for each watch; a watch without any stays open.
    watches: Mutex<VecDeque<Vec<String>>>,
    /// Heads of all requests.
    heads: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    async fn start(lists: Vec<Reply>, watches: Vec<Vec<String>>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            lists: Mutex::new(lists.into()),
            watches: Mutex::new(watches.into()),
            heads: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &state).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, state }
    }

    fn say(&self, reply: Reply) {
        locked(&self.state.lists).push_back(reply);
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, state: &State) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let is_watch = head.contains("watch=1");
    locked(&state.heads).push(head);
    if is_watch {
        let events = locked(&state.watches).pop_front();
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(start.as_bytes()).await;
        for event in events.iter().flatten() {
            let chunk = format!("{:x}\r\n{event}\n\r\n", event.len() + 1);
            let _ = stream.write_all(chunk.as_bytes()).await;
        }
        if events.is_some() {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        } else {
            std::future::pending::<()>().await;
        }
        return;
    }
    let reply = {
        let mut lists = locked(&state.lists);
        match lists.len() {
            1 => match &lists[0] {
                Reply::Answer(status, body) => Reply::Answer(*status, body.clone()),
                Reply::Garbage => Reply::Garbage,
                Reply::Silence => Reply::Silence,
            },
            _ => lists.pop_front().unwrap(),
        }
    };
    match reply {
        Reply::Answer(status, body) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
        Reply::Garbage => {
            let _ = stream.write_all(b"\x16\x03\x01 not HTTP\r\n\r\n").await;
        }
        Reply::Silence => std::future::pending().await,
    }
}

fn pod(name: &str, uid: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"prod","uid":"{uid}","resourceVersion":"5"}}}}"#
    )
}

fn page(pods: &[String], next: &str) -> Reply {
    let pods = pods.join(",");
    Reply::Answer(
        200,
        format!(
            r#"{{"kind":"PodList","metadata":{{"resourceVersion":"4","continue":"{next}"}},"items":[{pods}]}}"#
        ),
    )
}

fn event(kind: &str, object: &str) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn settings(folder: &Path, server: &str) -> KubernetesSettings {
    let token_file = folder.join("token");
    let mut file = std::fs::File::create(&token_file).unwrap();
    file.write_all(b"t0ken\n").unwrap();
    KubernetesSettings {
        enabled: Enabled::True,
        api_server: Some(server.to_owned()),
        node_name: Some("node 1".to_owned()),
        token_file,
        ca_file: folder.join("ca.crt"),
        ..KubernetesSettings::default()
    }
}

fn start(settings: &KubernetesSettings) -> PodWatch {
    let target = Target::from(settings, |_| None).unwrap().unwrap();
    super::start(target, Backoff::new(PAUSES))
}

async fn wait_for(watched: &mut PodWatch, names: &[&str]) {
    let pods = &mut watched.pods;
    let is_there = |pods: &Arc<Pods>| {
        let mut found: Vec<_> = pods.iter().map(|pod| pod.name.clone()).collect();
        found.sort();
        found == names
    };
    let waited = timeout(DEADLINE, pods.wait_for(is_there)).await;
    waited
        .unwrap_or_else(|_| panic!("{names:?} did not come"))
        .unwrap();
}

/// A certificate for 127.0.0.1, with that of its authority in `folder/ca.crt`.
fn acceptor(folder: &Path) -> TlsAcceptor {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(
        folder.join("ca.crt"),
        authority.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    let issuer = Issuer::new(authority, key);
    let own_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let server = server.signed_by(&own_key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Check that pods are listed by pages and then followed, over TLS, with token and node.
#[tokio::test]
async fn pods_are_listed_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let tls = acceptor(folder.path());
    let lists = vec![page(&[pod("a", "1")], "p 2"), page(&[pod("b", "2")], "")];
    let watches = vec![
        vec![
            event("ADDED", &pod("c", "3")),
            event("BOOKMARK", r#"{"metadata":{"resourceVersion":"77"}}"#),
        ],
        vec![
            event("DELETED", &pod("a", "1")),
            event("MODIFIED", &pod("c2", "3")),
        ],
    ];
    let server = Server::start(lists, watches, Some(tls)).await;
    let settings = settings(folder.path(), &format!("https://{}", server.address));
    let mut pods = start(&settings);
    wait_for(&mut pods, &["b", "c2"]).await;
    let heads = locked(&server.state.heads).clone();
    assert!(
        heads[0].contains("fieldSelector=spec%2EnodeName%3Dnode%201&limit="),
        "{heads:?}"
    );
    assert!(
        heads[0].contains("authorization: Bearer t0ken\r\n"),
        "{heads:?}"
    );
    assert!(heads[1].contains("continue=p%202"), "{heads:?}");
    assert!(heads[2].contains("resourceVersion=4"), "{heads:?}");
    assert!(heads[3].contains("resourceVersion=77"), "{heads:?}");
}

/// Check that a version that is too old leads to a new list.
#[tokio::test]
async fn an_old_version_is_listed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let lists = vec![page(&[pod("a", "1")], ""), page(&[pod("b", "2")], "")];
    let watches = vec![vec![event("ERROR", r#"{"code":410,"message":"too old"}"#)]];
    let server = Server::start(lists, watches, None).await;
    let mut pods = start(&settings(
        folder.path(),
        &format!("http://{}", server.address),
    ));
    wait_for(&mut pods, &["b"]).await;
}

/// Check that whatever the server does, what is known stays known, and that pods come when it is well.
#[tokio::test]
async fn a_failing_server_is_outlived() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |status| Reply::Answer(status, r#"{"message":"no"}"#.to_owned());
    let lists = vec![
        refused(401),
        page(&[pod("a", "1")], ""),
        refused(403),
        Reply::Garbage,
        Reply::Answer(200, "<html>".to_owned()),
        refused(500),
    ];
    let watches = vec![vec!["garbage".to_owned()]];
    let server = Server::start(lists, watches, None).await;
    let mut pods = start(&settings(
        folder.path(),
        &format!("http://{}", server.address),
    ));
    wait_for(&mut pods, &["a"]).await;
    let is_repeated = || locked(&server.state.heads).len() >= 9;
    let waited = timeout(DEADLINE, async {
        while !is_repeated() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("it gave up");
    assert_eq!(pods.pods.borrow().len(), 1, "what was known is forgotten");
    let problem = pods.problem().unwrap();
    assert!(problem.starts_with("pods cannot be read"), "{problem}");
    server.say(page(&[pod("b", "2")], ""));
    wait_for(&mut pods, &["b"]).await;
    assert_eq!(pods.problem(), None);
}

/// Check that a server that does not answer, and one with a foreign certificate, are errors in time.
#[tokio::test]
async fn one_look_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let silent = Server::start(vec![Reply::Silence], Vec::new(), None).await;
    let silent = settings(folder.path(), &format!("http://{}", silent.address));
    let error = pods_now(&silent, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error:#}");
    let other = tempfile::tempdir().unwrap();
    let foreign = acceptor(other.path());
    let _ = acceptor(folder.path());
    let foreign = Server::start(vec![page(&[], "")], Vec::new(), Some(foreign)).await;
    let foreign = settings(folder.path(), &format!("https://{}", foreign.address));
    let error = pods_now(&foreign, DEADLINE).await.unwrap_err();
    assert!(format!("{error:#}").contains("TLS failed"), "{error:#}");
    let off = KubernetesSettings::default();
    assert!(pods_now(&off, DEADLINE).await.unwrap().is_none());
}
