//! Who may call: gRPC and GraphQL of the built-in OAP ask for the same token.
//!
//! In:  the headers of a call
//! Out: whether it is accepted; the first refusal is logged
//! Lost: nothing
//!
//! | door | carries the token as | who does so |
//! |---|---|---|
//! | gRPC | metadata `authentication: TOKEN` | agents (`SW_AGENT_AUTHENTICATION`), profilerd |
//! | GraphQL | header `authentication: TOKEN` | `profilerd task --graphql` |
//! | GraphQL | `Authorization: Bearer TOKEN`, or `Basic` with the token as the password | `swctl`, browsers, proxies |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue};
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};
use tracing::warn;

/// Of gRPC and of HTTP. An OAP compares its whole value.
const AUTHENTICATION: &str = "authentication";

const MISSING: &str = "this OAP asks for a token, and the call has none";
const WRONG: &str = "the token of the call is not the one that this OAP asks for";

/// The token, and whether a refusal was logged.
#[derive(Clone, Debug)]
pub(super) struct Door(Option<Arc<Lock>>);

struct Lock {
    token: String,
    has_told_missing: AtomicBool,
    has_told_wrong: AtomicBool,
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl Door {
    /// `None` lets everybody in.
    pub(super) fn new(token: Option<String>) -> Self {
        Self(token.map(|token| {
            Arc::new(Lock {
                token,
                has_told_missing: AtomicBool::new(false),
                has_told_wrong: AtomicBool::new(false),
            })
        }))
    }

    /// Lets a call of gRPC in. OAP answers a wrong token with PERMISSION_DENIED.
    pub(super) fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let sent = request.metadata().get(AUTHENTICATION);
        match self.admit(sent.map(MetadataValue::as_bytes)) {
            Ok(()) => Ok(request),
            Err(text) => Err(Status::permission_denied(text)),
        }
    }

    /// Lets a query in.
    pub(super) fn check_headers(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let sent = headers.get(AUTHENTICATION).map(HeaderValue::as_bytes);
        match headers.get(AUTHORIZATION).map(HeaderValue::as_bytes) {
            Some(value) if sent.is_none() => self.admit(Some(&authorization(value))),
            _ => self.admit(sent),
        }
    }

    fn admit(&self, sent: Option<&[u8]>) -> Result<(), &'static str> {
        let Some(lock) = &self.0 else {
            return Ok(());
        };
        let (has_told, text) = match sent {
            // The time it takes reveals nothing but the length.
            Some(sent) if bool::from(sent.ct_eq(lock.token.as_bytes())) => return Ok(()),
            Some(_) => (&lock.has_told_wrong, WRONG),
            None => (&lock.has_told_missing, MISSING),
        };
        if !has_told.swap(true, Ordering::Relaxed) {
            warn!(
                "a caller was refused: {text}. Give the token to agents as \
                 SW_AGENT_AUTHENTICATION, to `profilerd task` as --token-file; further refusals are not logged"
            );
        }
        Err(text)
    }
}

/// The token in a value of `Authorization`; the value itself, if it is of no known scheme.
fn authorization(value: &[u8]) -> Vec<u8> {
    let space = value.iter().position(|&byte| byte == b' ');
    let (scheme, rest) = value.split_at(space.unwrap_or(0));
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return rest.to_vec();
    }
    let pair = scheme
        .eq_ignore_ascii_case(b"basic")
        .then(|| STANDARD.decode(rest).ok())
        .flatten();
    let colon = |pair: &Vec<u8>| pair.iter().position(|&byte| byte == b':');
    match pair.as_ref().and_then(colon) {
        Some(colon) => pair.unwrap_or_default().split_off(colon + 1),
        None => value.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            hyper::header::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )])
    }

    /// Check every form of the right token, and that nothing that is like it is let in.
    #[test]
    fn the_token_is_taken_in_each_form_and_nothing_else() {
        let door = Door::new(Some("s3cret".to_owned()));
        for (name, value) in [
            ("authentication", "s3cret"),
            ("authorization", "Bearer s3cret"),
            ("authorization", "bearer  s3cret"),
            ("authorization", "s3cret"),
            ("authorization", "Basic YW55Ym9keTpzM2NyZXQ="),
        ] {
            assert_eq!(door.check_headers(&headers(name, value)), Ok(()), "{value}");
        }
        for (name, value) in [
            ("authentication", ""),
            ("authentication", "s3cre"),
            ("authentication", "s3cret2"),
            ("authentication", "Bearer s3cret"),
            ("authorization", ""),
            ("authorization", "Bearer"),
            ("authorization", "Digest s3cret"),
            ("authorization", "Basic s3cret"),
            ("authorization", "Basic czNjcmV0"), // without a user
            ("authorization", "Basic !"),
        ] {
            let answer = door.check_headers(&headers(name, value));
            assert_eq!(answer, Err(WRONG), "{name}: {value}");
        }
        assert_eq!(door.check_headers(&HeaderMap::new()), Err(MISSING));
        let open = Door::new(None);
        assert_eq!(open.check_headers(&HeaderMap::new()), Ok(()));
        assert!(!format!("{door:?}").contains("s3cret"));
    }
}
