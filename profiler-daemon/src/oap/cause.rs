//! What to do about a connection that fails, by the words of rustls about it.
//!
//! The words are of a version of a library; `tests/oap_tls.rs` meets each of them with real certificates.

/// A piece of an error, and what it means for who configures us.
const HINTS: &[(&str, &str)] = &[
    (
        "UnknownIssuer",
        "nobody whom oap.tls.ca_file names, or the system if it is not given, has signed its certificate",
    ),
    (
        "BadSignature",
        "another of the same name as in oap.tls.ca_file has signed its certificate: an old file?",
    ),
    (
        "certificate not valid for name",
        "its certificate is for another host; if it is the right OAP, oap.tls.server_name is to be a name \
         that the certificate has",
    ),
    (
        "certificate expired",
        "its certificate is too old, or the clock of this host is wrong",
    ),
    (
        "certificate not valid yet",
        "its certificate is too new, or the clock of this host is wrong",
    ),
    (
        "CertificateRequired",
        "it asks for a certificate of ours: oap.tls.cert_file and oap.tls.key_file",
    ),
    (
        "UnknownCA",
        "it does not know who has signed our certificate, oap.tls.cert_file",
    ),
    (
        "DecryptError",
        "it knows another of the same name as who has signed our certificate, oap.tls.cert_file",
    ),
    (
        VERSION_WORD,
        "its certificate is of X.509 version 1, and version 3 is wanted: sign it with extensions, for example \
         `openssl x509 -req -extfile`",
    ),
    (
        "InvalidContentType",
        "it does not speak TLS on this port, and oap.tls.enabled is true",
    ),
];

/// Of a certificate without extensions, which `openssl x509 -req` made by default for long.
const VERSION_WORD: &str = "UnsupportedCertVersion";

/// What an error about a certificate of ours means, if it is of an old version.
pub(super) fn version_hint(error: &str) -> Option<&'static str> {
    error.contains(VERSION_WORD).then_some(
        "it is of X.509 version 1, and version 3 is wanted: sign it with extensions, for example `openssl x509 \
         -req -extfile`",
    )
}

/// What an error asks for, if it is one of those.
pub(super) fn hint(error: &str) -> Option<&'static str> {
    let known = HINTS.iter().find(|(words, _)| error.contains(words));
    known.map(|&(_, hint)| hint)
}
