//! Who may talk to whom: tokens and certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_tests::{SkywalkingOap, needs_root};

use super::query::{
    create_task, has_service, wait_for_profiled, wait_for_service, wait_until_notified,
};
use crate::daemon::Daemon;
use crate::server::sample_service;

/// Check that an OAP that asks for a token is obeyed, and that the log names a wrong one.
#[test]
fn an_oap_that_asks_for_a_token_gets_it() {
    needs_root!();
    const NAME: &str = "oap-token-sample";
    let folder = tempfile::tempdir().unwrap();
    let token = [("SW_AUTHENTICATION", "open-sesame")];
    let oap = SkywalkingOap::start_with(folder.path(), &token).unwrap();
    let _service = sample_service(NAME);

    let mut stranger = Daemon::reporting_to(oap.grpc());
    stranger.wait_for_log("token", 1);
    drop(stranger);
    assert!(!has_service(&oap, NAME));

    let variables = [("SW_AGENT_AUTHENTICATION", "open-sesame")];
    let mut daemon = Daemon::reporting_with(oap.grpc(), &variables);
    let task_id = create_task(&oap, NAME, "POST:/");
    daemon.wait_for_log("process watched", 1);
    wait_until_notified(&oap, &task_id);
    wait_for_service(&oap, NAME);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    let reason = format!("No process of {NAME} has read an HTTP/1 request");
    assert!(daemon.log().contains(&reason), "{}", daemon.log());
}

/// A key and a certificate that it signs itself, for 127.0.0.1.
struct Certificate {
    key: PathBuf,
    chain: PathBuf,
}

impl Certificate {
    fn new(folder: &Path, name: &str) -> Self {
        let key = folder.join(format!("{name}.key"));
        let chain = folder.join(format!("{name}.pem"));
        let mut command = Command::new("openssl");
        command
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            ])
            .args(["-subj", "/CN=oap", "-addext", "subjectAltName=IP:127.0.0.1"])
            // One that signs others would not be taken as a server's own.
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&chain);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self { key, chain }
    }
}

/// Check that an OAP behind TLS is reached if its certificate is trusted, and that the log names what is
/// wrong if it is not, or if one side speaks plain text.
#[test]
fn an_oap_behind_tls_is_reached_if_it_is_trusted() {
    needs_root!();
    const NAME: &str = "oap-tls-sample";
    let folder = tempfile::tempdir().unwrap();
    let own = Certificate::new(folder.path(), "own");
    let other = Certificate::new(folder.path(), "other");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (key, chain) = (text(&own.key), text(&own.chain));
    let tls = [
        ("SW_CORE_GRPC_SSL_ENABLED", "true"),
        ("SW_CORE_GRPC_SSL_KEY_PATH", &key),
        ("SW_CORE_GRPC_SSL_CERT_CHAIN_PATH", &chain),
        // For the OAPs of a cluster among themselves; it does not start without.
        ("SW_CORE_GRPC_SSL_TRUSTED_CA_PATH", &chain),
    ];
    let oap = SkywalkingOap::start_with(folder.path(), &tls).unwrap();
    let service = sample_service(NAME);

    let mut plain = Daemon::reporting_to(oap.grpc());
    plain.wait_for_log("Disconnected", 1);
    drop(plain);
    let trusting = |certificate: &Certificate| {
        let trusted = text(&certificate.chain);
        let variables = [
            ("SW_AGENT_FORCE_TLS", "true"),
            ("SW_AGENT_SSL_TRUSTED_CA_PATH", trusted.as_str()),
        ];
        Daemon::reporting_with(oap.grpc(), &variables)
    };
    let mut deceived = trusting(&other);
    deceived.wait_for_log("certificate", 1);
    drop(deceived);
    assert!(!has_service(&oap, NAME));

    let mut daemon = trusting(&own);
    let task_id = create_task(&oap, NAME, "POST:/");
    daemon.wait_for_log("process watched", 1);
    service
        .connect()
        .unwrap()
        .request("POST", "/", "{}")
        .unwrap();
    assert_eq!(wait_for_profiled(&oap, &task_id, 1).len(), 1);
}
