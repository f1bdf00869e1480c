//! Protocol tests: certificates, ports that are none of an OAP, and what the log says about them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake_oap;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fake_oap::{DEADLINE, Fake};
use profiler_daemon::model::Service;
use profiler_daemon::oap::{OapClient, OapConfig, OapEvent, OapHandle, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Who signs certificates, and its own certificate.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Signed {
    pem: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Signed {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// For a server on the loopback.
    fn server(&self) -> ServerTlsConfig {
        serving(&self.sign(&["127.0.0.1"], |_| {}))
    }
}

fn serving(signed: &Signed) -> ServerTlsConfig {
    ServerTlsConfig::new().identity(Identity::from_pem(&signed.pem, &signed.key))
}

/// Files for the client.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Trusts the authority.
    fn trust(&self, authority: &Authority) -> TlsConfig {
        TlsConfig {
            ca_file: Some(self.write("ca.pem", &authority.pem)),
            ..TlsConfig::default()
        }
    }

    /// With a certificate of our own.
    fn trust_and_show(&self, authority: &Authority, own: &Signed) -> TlsConfig {
        let certificate = self.write("own.pem", &own.pem);
        let key = self.write("own.key", &own.key);
        TlsConfig {
            identity: Some((certificate, key)),
            ..self.trust(authority)
        }
    }
}

fn client(address: SocketAddr, tls: Option<TlsConfig>) -> (OapHandle, Receiver<OapEvent>) {
    let (handle, events) = OapClient::spawn(OapConfig {
        tls,
        call_timeout: Duration::from_secs(2),
        retry: (Duration::from_millis(5), Duration::from_millis(20)),
        ..OapConfig::new(vec![address.to_string()])
    });
    let service = Service {
        name: "shop".to_owned(),
        instance: "one".to_owned(),
    };
    handle.set_services([(service, Arc::default(), String::new())]);
    (handle, events)
}

async fn next(events: &mut Receiver<OapEvent>) -> OapEvent {
    let event = timeout(DEADLINE, events.recv()).await;
    event.expect("no event came").expect("the client has ended")
}

/// Why the first attempt fails.
async fn reason(address: SocketAddr, tls: Option<TlsConfig>) -> String {
    let (_handle, mut events) = client(address, tls);
    match next(&mut events).await {
        OapEvent::Disconnected { reason } => reason,
        event => panic!("{event:?}"),
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Check that an OAP is reached that shows a certificate and asks for one, and that a certificate that is
/// renewed while the client waits is taken.
#[tokio::test]
async fn both_sides_show_certificates() {
    let (authority, ours) = (Authority::new("theirs"), Authority::new("ours"));
    let fake = Fake::default();
    let ca = Certificate::from_pem(&ours.pem);
    let tls = authority.server().client_ca_root(ca);
    let (address, _server) = fake.serve_at(any(), Some(tls));
    let files = Files::new();
    let own = ours.sign(&["profilerd"], |_| {});
    let stale = Authority::new("theirs");
    let config = files.trust_and_show(&stale, &own);
    let (_handle, mut events) = client(address, Some(config));
    let event = next(&mut events).await;
    assert!(matches!(event, OapEvent::Disconnected { .. }), "{event:?}");
    files.write("ca.pem", &authority.pem);
    assert_eq!(next(&mut events).await, OapEvent::Connected);
    fake.until("a heartbeat", |state| state.beats > 0).await;
}

/// Check that the log says what to do about a certificate of the OAP that does not do.
#[tokio::test]
async fn a_wrong_certificate_is_explained() {
    let authority = Authority::new("theirs");
    let old = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let stranger = |name| Authority::new(name).sign(&["127.0.0.1"], |_| {});
    let cases = [
        (stranger("other"), "not signed by a CA in oap.tls.ca_file"),
        (stranger("theirs"), "another CA with the name"),
        (
            authority.sign(&["oap.example"], |_| {}),
            "oap.tls.server_name",
        ),
        (
            authority.sign(&["127.0.0.1"], old),
            "has expired, or the clock",
        ),
    ];
    for (signed, expected) in cases {
        let (address, _server) = Fake::default().serve_at(any(), Some(serving(&signed)));
        let files = Files::new();
        let reason = reason(address, Some(files.trust(&authority))).await;
        assert!(reason.contains(expected), "{expected}: {reason}");
        assert!(reason.contains(&address.to_string()), "{reason}");
    }
}

/// Check that the name that is configured is the one the certificate must have.
#[tokio::test]
async fn the_configured_name_is_looked_for() {
    let authority = Authority::new("theirs");
    let signed = authority.sign(&["oap.example"], |_| {});
    let (address, _server) = Fake::default().serve_at(any(), Some(serving(&signed)));
    let files = Files::new();
    let tls = TlsConfig {
        domain: Some("oap.example".to_owned()),
        ..files.trust(&authority)
    };
    let (_handle, mut events) = client(address, Some(tls));
    assert_eq!(next(&mut events).await, OapEvent::Connected);
}

/// Check that the log says what to do when the OAP does not like our certificate, or misses it.
#[tokio::test]
async fn a_certificate_of_ours_is_asked_for() {
    let (authority, ours) = (Authority::new("theirs"), Authority::new("ours"));
    let ca = Certificate::from_pem(&ours.pem);
    let tls = authority.server().client_ca_root(ca);
    let (address, _server) = Fake::default().serve_at(any(), Some(tls));
    let files = Files::new();
    let missing = reason(address, Some(files.trust(&authority))).await;
    assert!(
        missing.contains("it asks for a client certificate"),
        "{missing}"
    );
    for name in ["other", "ours"] {
        let stranger = Authority::new(name).sign(&["profilerd"], |_| {});
        let unknown = reason(address, Some(files.trust_and_show(&authority, &stranger))).await;
        assert!(unknown.contains("our certificate"), "{unknown}");
    }
}

/// Check that the log tells TLS from plain text when the two sides differ.
#[tokio::test]
async fn tls_on_one_side_is_explained() {
    let authority = Authority::new("theirs");
    let files = Files::new();
    let (plain, _server) = Fake::default().serve();
    let reason_plain = reason(plain, Some(files.trust(&authority))).await;
    assert!(
        reason_plain.contains("does not speak TLS"),
        "{reason_plain}"
    );
    let (encrypted, _server) = Fake::default().serve_at(any(), Some(authority.server()));
    let (_handle, mut events) = client(encrypted, None);
    let OapEvent::Disconnected { reason } = next(&mut events).await else {
        panic!("connected");
    };
    let expected = "it speaks TLS on this port, but oap.tls.enabled is false: set it to true";
    assert!(reason.contains(expected), "{reason}");
    // Dozens of attempts, which fail in one way or another.
    let again = timeout(Duration::from_secs(1), events.recv()).await;
    assert!(again.is_err(), "{again:?}");
}

/// A certificate of version 1: without the fields of the later ones. Nobody verifies the signature of their own.
fn version_1(pem: &str) -> String {
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(base64).unwrap();
    let [certificate] = &elements(&der)[..] else {
        panic!("more than a certificate")
    };
    let parts = elements(content(certificate));
    let fields = elements(content(parts[0])).into_iter();
    let old = fields.filter(|field| !matches!(field[0], 0xa0 | 0xa3));
    let body = sequence(&old.collect::<Vec<_>>().concat());
    let der = sequence(&[&body, parts[1], parts[2]].concat());
    let text = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// Lengths of header and content of an element of DER.
fn lengths(der: &[u8]) -> (usize, usize) {
    match usize::from(der[1]) {
        short @ ..0x80 => (2, short),
        long => {
            let bytes = &der[2..2 + (long & 0x7f)];
            let length = bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
            (2 + bytes.len(), length)
        }
    }
}

fn content(element: &[u8]) -> &[u8] {
    &element[lengths(element).0..]
}

fn elements(mut der: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    while !der.is_empty() {
        let (header, length) = lengths(der);
        let (element, rest) = der.split_at(header + length);
        elements.push(element);
        der = rest;
    }
    elements
}

fn sequence(content: &[u8]) -> Vec<u8> {
    // A length has no leading zeros.
    let length = match u16::try_from(content.len()).unwrap().to_be_bytes() {
        [0, short @ ..0x80] => vec![short],
        [0, byte] => vec![0x81, byte],
        [high, low] => vec![0x82, high, low],
    };
    [&[0x30], &length[..], content].concat()
}

/// Check that what is wrong with our own certificate or key is said of its file, and not of the OAP.
#[tokio::test]
async fn an_own_certificate_that_cannot_be_used_is_named() {
    let (theirs, ours) = (Authority::new("theirs"), Authority::new("ours"));
    let ca = Certificate::from_pem(&ours.pem);
    let tls = theirs.server().client_ca_root(ca);
    let (address, _server) = Fake::default().serve_at(any(), Some(tls));
    let good = ours.sign(&["profilerd"], |_| {});
    let other = ours.sign(&["profilerd"], |_| {});
    let signed = |pem: &str, key: &str| Signed {
        pem: pem.to_owned(),
        key: key.to_owned(),
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (own, parts) in [
        (
            signed(&version_1(&good.pem), &good.key),
            ["own.pem", "X.509 version 1"],
        ),
        (signed(broken, &good.key), ["own.pem", "cannot be used"]),
        (
            signed(&good.pem, &other.key),
            ["own.key", "is not the one of"],
        ),
    ] {
        let files = Files::new();
        let reason = reason(address, Some(files.trust_and_show(&theirs, &own))).await;
        for part in parts {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        assert!(reason.contains("oap.tls."), "{reason}");
        assert!(!reason.contains("peer certificate"), "{reason}");
    }
}

/// What a port that is none of an OAP says to each connection, after it has heard something.
async fn port(says: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut heard = [0; 16];
            // Whoever connects may leave at once.
            let _heard = stream.read(&mut heard).await;
            let _said = stream.write_all(says).await;
            if says.is_empty() {
                held.push(stream);
            }
        }
    });
    address
}

/// Check that a port that speaks HTTP/1, garbage or nothing is told to be none of an OAP, and that the next
/// address is used.
#[tokio::test]
async fn a_wrong_port_is_explained() {
    const PORTS: [&[u8]; 3] = [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        &[0xff; 4096],
        b"",
    ];
    for says in PORTS {
        let address = port(says).await;
        let reason = reason(address, None).await;
        assert!(
            reason.contains("expected: its gRPC port, usually 11800"),
            "{reason}"
        );
        let fake = Fake::default();
        let (good, _server) = fake.serve();
        let (handle, mut events) = OapClient::spawn(OapConfig {
            call_timeout: Duration::from_millis(200),
            retry: (Duration::from_millis(5), Duration::from_millis(20)),
            ..OapConfig::new(vec![address.to_string(), good.to_string()])
        });
        let service = Service {
            name: "shop".to_owned(),
            instance: "one".to_owned(),
        };
        handle.set_services([(service, Arc::default(), String::new())]);
        while next(&mut events).await != OapEvent::Connected {}
        fake.until("a heartbeat", |state| state.beats > 0).await;
    }
}

/// Check that a certificate file that is no certificate is named.
#[tokio::test]
async fn a_file_that_is_no_certificate_is_named() {
    let (address, _server) =
        Fake::default().serve_at(any(), Some(Authority::new("theirs").server()));
    let files = Files::new();
    let config = |path: &Path| TlsConfig {
        ca_file: Some(path.to_owned()),
        ..TlsConfig::default()
    };
    let missing = reason(address, Some(config(Path::new("/nonexistent/ca.pem")))).await;
    assert!(missing.contains("/nonexistent/ca.pem"), "{missing}");
    let empty = files.write("empty.pem", "no certificate");
    let reason = reason(address, Some(config(&empty))).await;
    assert!(reason.contains("empty.pem"), "{reason}");
}
