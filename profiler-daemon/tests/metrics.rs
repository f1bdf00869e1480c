//! The metrics' server over HTTP: what it answers, to whom, and what `profilerd status` makes of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use profiler_daemon::metrics::{MetricsServer, Questions, ask, listen, text};
use profiler_daemon::model::{Counter, Observation};
use tokio::net::TcpStream;

/// An answer: status, `Content-Type`, body.
struct Answer {
    status: StatusCode,
    kind: String,
    allow: String,
    body: String,
}

async fn request(address: SocketAddr, method: Method, path: &str) -> Answer {
    request_with(address, method, path, &[("host", "localhost")]).await
}

async fn request_with(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<bytes::Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let header = |name: &str| {
        let value = response.headers().get(name);
        value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
    };
    let (kind, allow) = (header("content-type"), header("allow"));
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer {
        status,
        kind,
        allow,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

fn start() -> (MetricsServer, Questions) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    MetricsServer::start(listener, &[]).unwrap()
}

fn observation() -> Observation {
    let mut observation = Observation::default();
    observation.process.version = "1.2.3".to_owned();
    observation.tasks.live = 2;
    observation.counters.insert("requests_seen".to_owned(), 17);
    observation
}

/// Answers every question the same.
async fn answer_all(mut questions: Questions) {
    loop {
        questions.next().await.answer(observation());
    }
}

/// Check that a scrape is text with the figures of that moment, that `profilerd status` hears the same, and
/// that other paths and methods are refused.
#[tokio::test]
async fn a_scrape_is_answered_and_nothing_else() {
    let (server, questions) = start();
    let daemon = tokio::spawn(answer_all(questions));
    let address = server.local_addr();

    let scrape = request(address, Method::GET, "/metrics").await;
    assert_eq!(scrape.status, StatusCode::OK);
    assert_eq!(scrape.kind, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(scrape.body, text(&observation()));
    for line in [
        "profilerd_build_info{version=\"1.2.3\"} 1",
        "profilerd_tasks_live 2",
        "profilerd_requests_seen_total 17",
        "profilerd_ring_size_bytes{ring=\"samples\"} 0",
    ] {
        assert!(scrape.body.lines().any(|it| it == line), "{line}");
    }
    let head = request(address, Method::HEAD, "/metrics").await;
    assert_eq!((head.status, head.body.as_str()), (StatusCode::OK, ""));
    let health = request(address, Method::GET, "/healthz").await;
    assert_eq!(
        (health.status, health.body.as_str()),
        (StatusCode::OK, "ok\n")
    );
    let ready = request(address, Method::GET, "/readyz").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (StatusCode::OK, "ready\n")
    );
    assert_eq!(ask(address).await.unwrap(), observation());

    for path in ["/", "/metrics/", "/graphql"] {
        let answer = request(address, Method::GET, path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.body.contains("/metrics"), "{}", answer.body);
    }
    for path in ["/metrics", "/status.json", "/healthz", "/readyz"] {
        let answer = request(address, Method::POST, path).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(answer.allow, "GET, HEAD", "{path}");
    }
    daemon.abort();
}

/// Check that a page of the web is not told figures by a name of its own, nor of another origin; a probe, which names an
/// address, is answered.
#[tokio::test]
async fn a_page_of_the_web_is_told_nothing() {
    let (server, questions) = start();
    let daemon = tokio::spawn(answer_all(questions));
    let address = server.local_addr();
    for path in ["/metrics", "/status.json", "/healthz", "/readyz"] {
        let get = |headers| request_with(address, Method::GET, path, headers);
        assert_eq!(get(&[("host", "evil.example:9464")]).await.status, 421);
        let foreign = [("host", "127.0.0.1"), ("origin", "http://evil.example")];
        assert_eq!(get(&foreign).await.status, StatusCode::FORBIDDEN);
        for headers in [
            &[("host", "10.1.2.3:9464")][..],
            &[("host", "[2001:db8::1]")],
            &[],
        ] {
            assert_eq!(get(headers).await.status, StatusCode::OK);
        }
    }
    daemon.abort();
}

/// Check that readiness is 503 with a line for each reason, which the metrics and `profilerd status` have as well, while the
/// daemon is alive.
#[tokio::test]
async fn what_is_in_the_way_is_told_line_by_line() {
    let (server, mut questions) = start();
    let obstacles = ["no OAP has been reached yet".to_owned(), "b".to_owned()];
    let not_ready = Observation {
        obstacles: obstacles.to_vec(),
        ..Observation::default()
    };
    let answered = not_ready.clone();
    let daemon = tokio::spawn(async move {
        loop {
            questions.next().await.answer(answered.clone());
        }
    });
    let address = server.local_addr();
    let answer = request(address, Method::GET, "/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.body, "no OAP has been reached yet\nb\n");
    let health = request(address, Method::GET, "/healthz").await;
    assert_eq!(health.status, StatusCode::OK);
    let scrape = request(address, Method::GET, "/metrics").await;
    assert!(scrape.body.contains("\nprofilerd_ready 0\n"));
    assert_eq!(ask(address).await.unwrap(), not_ready);
    daemon.abort();
}

/// Check that a daemon that leaves is said to, at once.
#[tokio::test]
async fn a_daemon_that_leaves_answers_503() {
    let (server, questions) = start();
    drop(questions);
    for path in ["/metrics", "/status.json", "/healthz", "/readyz"] {
        let answer = request(server.local_addr(), Method::GET, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(answer.body.contains("is stopping"), "{}", answer.body);
    }
    let error = ask(server.local_addr()).await.unwrap_err();
    assert!(format!("{error:#}").contains("it is stopping"), "{error:#}");
}

/// Check that an address that is taken is refused with its name, the flag and what to do.
#[tokio::test]
async fn a_taken_address_is_named() {
    let (server, _questions) = start();
    let error = listen(server.local_addr()).unwrap_err().to_string();
    for part in [
        &format!("failed to listen on {} for metrics", server.local_addr()),
        "another address with --metrics",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// Check that nobody, and somebody else, are told from a daemon.
#[tokio::test]
async fn another_server_is_no_daemon() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let other = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n[1,2]";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
                .await
                .unwrap();
        }
    });
    let error = format!("{:#}", ask(address).await.unwrap_err());
    assert!(error.contains("is not profilerd"), "{error}");
    other.abort();
    let _ = other.await;
    let error = format!("{:#}", ask(address).await.unwrap_err());
    assert!(
        error.starts_with(&format!("no profilerd answers at {address}")),
        "{error}"
    );
}

/// A family of the text: name, type, help.
fn families(text: &str) -> Vec<(String, String, String)> {
    let mut families = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("# HELP ") else {
            continue;
        };
        let (name, help) = rest.split_once(' ').unwrap();
        let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
        let kind = kind.strip_prefix(name).unwrap().trim();
        let sample = lines.peek().unwrap();
        assert!(sample.starts_with(name), "{name} has no sample: {sample}");
        families.push((name.to_owned(), kind.to_owned(), help.to_owned()));
    }
    families
}

/// Check that every counter is one family, named once, with type and help.
#[test]
fn every_counter_is_a_family() {
    let families = families(&text(&Observation::default()));
    let names: BTreeSet<&str> = families.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names.len(), families.len(), "a name comes twice");
    for counter in Counter::all() {
        let name = format!("profilerd_{}_total", counter.name());
        let family = (name, "counter".to_owned(), counter.text().to_owned());
        assert!(families.contains(&family), "{family:?}");
    }
}

/// Check that the page in docs has a line for each metric, with the type and the help that are told, and no
/// other line.
#[test]
fn the_page_has_a_line_for_each_metric() {
    let page = include_str!("../../docs/metrics.md");
    let documented: BTreeSet<_> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
            let name = cells[0].strip_suffix('`')?.split('{').next()?;
            let help = cells.get(2)?.strip_suffix(" |")?;
            Some((name.to_owned(), cells[1].to_owned(), help.to_owned()))
        })
        .collect();
    let told: BTreeSet<_> = families(&text(&Observation::default()))
        .into_iter()
        .collect();
    let missing: Vec<_> = told.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&told).collect();
    assert!(missing.is_empty(), "not on the page: {missing:#?}");
    assert!(stale.is_empty(), "on the page alone: {stale:#?}");
}
