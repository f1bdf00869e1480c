//! TLS to an OAP: the configured files, and whether a port that gets plain text expects TLS.
//!
//! In:  PEM files; the address of a port
//! Out: tonic's configuration; errors that name the file
//! Lost: nothing

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, ClientConnection, InconsistentKeys, RootCertStore,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::cause;

/// How long a port may take to answer a greeting.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// First bytes of a record of TLS: an alert or a handshake, version 3.
/// <https://datatracker.ietf.org/doc/html/rfc8446#section-5.1>
const RECORDS: [[u8; 2]; 2] = [[21, 3], [22, 3]];

/// Files for TLS, in PEM. They are read again for each connection, so renewed ones are picked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain and its key, for an OAP that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in the server's certificate, if it differs from the address.
    pub domain: Option<String>,
}

impl TlsConfig {
    pub(super) fn to_tonic(&self) -> Result<ClientTlsConfig> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.ca_file {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read_pem(path, "CERTIFICATE")?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(identity(certificate, key)?);
        }
        if let Some(domain) = &self.domain {
            tls = tls.domain_name(domain);
        }
        Ok(tls)
    }
}

/// Our certificate and key. What is wrong with them is known before an OAP is asked, and is not the OAP's.
fn identity(certificate_file: &Path, key_file: &Path) -> Result<Identity> {
    let certificate_pem = read_pem(certificate_file, "CERTIFICATE")?;
    let key_pem = read_pem(key_file, "PRIVATE KEY")?;
    let certificate = || {
        format!(
            "our certificate, oap.tls.cert_file {}",
            certificate_file.display()
        )
    };
    let key = || format!("our key, oap.tls.key_file {}", key_file.display());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate_pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{}, is not PEM", certificate()))?;
    let key_der = PrivateKeyDer::from_pem_slice(&key_pem)
        .with_context(|| format!("{}, is not PEM", key()))?;
    let provider = ring::default_provider();
    match CertifiedKey::from_der(chain, key_der, &provider) {
        Ok(_) => Ok(Identity::from_pem(certificate_pem, key_pem)),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            bail!("{}, is not the one of {}", key(), certificate())
        }
        Err(rustls::Error::InvalidCertificate(error)) => {
            bail!("{}, cannot be used: {}", certificate(), explain(&error))
        }
        Err(error) => Err(anyhow!(error).context(format!("{}, cannot be used", key()))),
    }
}

fn explain(error: &CertificateError) -> String {
    let text = format!("{error:?}");
    match cause::version_hint(&text) {
        Some(hint) => hint.to_owned(),
        None => text,
    }
}

/// Reads a file that has to have such a part. Without it nobody would be trusted, and nothing would say why.
fn read_pem(path: &Path, part: &str) -> Result<Vec<u8>> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("failed to read {shown}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(part);
    if !text.lines().any(begins) {
        bail!("{shown} has no {part} in PEM");
    }
    Ok(bytes)
}

/// Whether a port answers a greeting of TLS with TLS. A server of TLS says nothing useful to plain text: the
/// connection is reset, or a pipe is broken, as it comes.
pub(super) async fn is_spoken_at(backend: &str) -> bool {
    matches!(timeout(PROBE_TIMEOUT, probe(backend)).await, Ok(Ok(true)))
}

async fn probe(backend: &str) -> Result<bool> {
    let greeting = greeting(backend)?;
    let mut stream = TcpStream::connect(backend).await?;
    stream.write_all(&greeting).await?;
    let mut first = [0; 2];
    stream.read_exact(&mut first).await?;
    Ok(RECORDS.contains(&first))
}

/// A `ClientHello`. Whoever it convinces is not trusted: nothing is sent after it.
fn greeting(backend: &str) -> Result<Vec<u8>> {
    let (host, _) = backend.rsplit_once(':').unwrap_or((backend, ""));
    let host = host.trim_matches(['[', ']']).to_owned();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(host)?)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a missing certificate file is named.
    #[test]
    fn a_missing_certificate_is_named() {
        let tls = TlsConfig {
            ca_file: Some("/nonexistent/ca.pem".into()),
            ..TlsConfig::default()
        };
        let error = tls.to_tonic().unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ca.pem"));
    }

    /// Check that the greeting is one, for names and addresses.
    #[test]
    fn the_greeting_is_a_record() {
        for backend in ["oap:11800", "127.0.0.1:1", "[::1]:1"] {
            let bytes = greeting(backend).unwrap();
            assert_eq!(bytes[..2], [22, 3], "{backend}");
            assert_eq!(bytes[5], 1, "{backend}"); // ClientHello
        }
    }
}
