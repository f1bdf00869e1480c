//! What to do about a failed connection, by the text of rustls' error.
//!
//! The texts depend on the version of the library; `tests/oap_tls.rs` checks each with real certificates.

/// A part of an error's text, and what it means for the configuration.
const HINTS: &[(&str, &str)] = &[
    (
        "UnknownIssuer",
        "its certificate is not signed by a CA in oap.tls.ca_file or, if that is not set, by a CA that this host trusts",
    ),
    (
        "BadSignature",
        "its certificate is signed by another CA with the name of the one in oap.tls.ca_file: is that file out of date?",
    ),
    (
        "certificate not valid for name",
        "its certificate is for another host; if it is the right OAP, set oap.tls.server_name to a name \
         in the certificate",
    ),
    (
        "certificate expired",
        "its certificate has expired, or the clock of this host is wrong",
    ),
    (
        "certificate not valid yet",
        "its certificate is not valid yet, or the clock of this host is wrong",
    ),
    (
        "CertificateRequired",
        "it asks for a client certificate: set oap.tls.cert_file and oap.tls.key_file",
    ),
    (
        "UnknownCA",
        "it does not trust the CA that signed our certificate, oap.tls.cert_file",
    ),
    (
        "DecryptError",
        "it trusts another CA with the name of the one that signed our certificate, oap.tls.cert_file",
    ),
    (
        VERSION_WORD,
        "its certificate is of X.509 version 1, but version 3 is required: sign it with extensions, for example \
         `openssl x509 -req -extfile`",
    ),
    (
        "InvalidContentType",
        "it does not speak TLS on this port, but oap.tls.enabled is true",
    ),
];

/// About a certificate without extensions, which older versions of `openssl x509 -req` make by default.
const VERSION_WORD: &str = "UnsupportedCertVersion";

/// What an error about a certificate of ours means, if it is of an old version.
pub(super) fn version_hint(error: &str) -> Option<&'static str> {
    error.contains(VERSION_WORD).then_some(
        "it is of X.509 version 1, but version 3 is required: sign it with extensions, for example `openssl x509 \
         -req -extfile`",
    )
}

/// What an error asks for, if it is one of those.
pub(super) fn hint(error: &str) -> Option<&'static str> {
    let known = HINTS.iter().find(|(words, _)| error.contains(words));
    known.map(|&(_, hint)| hint)
}
