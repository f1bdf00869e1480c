//! Turns the endpoint text of a task into a matcher for request lines and a kernel prefilter.
//!
//! # Forms
//!
//! | text | matches | written by |
//! |---|---|---|
//! | `POST:/orders/{id}` | one method, path or template | most agents |
//! | `POST /orders/{id}` | the same | people |
//! | `{GET}/orders` | the same | Vert.x 3 |
//! | `/orders@get` | the same | light-4j |
//! | `/orders` | any method | Python, Jetty, Play |
//! | `GET:http://shop:8080/orders?x=1` | method, host, path, query | Go fasthttp |
//! | `*` | every request | |
//!
//! Methods are those of HTTP, the registered ones of others (WebDAV: `PROPFIND:/dav`) and an application's own; in
//! the text they may be written in lower case. What paths equal each other: [`super::path`]. The query counts only
//! where the endpoint has one, and as it stands. Hosts are compared without regard to case.

use profiler_common::{ANY_METHOD, METHOD_MAX_BYTES, Method, method_bit};

use super::head::split_authority;
use super::path::Pattern;
use crate::model::EndpointRule;

/// Operation names are cut at this many characters by the agents and by OAP (`endpoint_name`).
const NAME_MAX_CHARS: usize = 150;

/// Why an endpoint cannot be found in a request line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing to match.
    #[error("the endpoint is empty; name one like `GET:/path`, `/path`, or `*` for every request")]
    Empty,
    /// Neither a path nor a known form.
    #[error(
        "the endpoint `{0}` has no path (it looks like an RPC or a method name, which does not stand in \
         an HTTP/1 request line); use `METHOD:/path`, `/path`, or `*` for every request"
    )]
    NotAPath(String),
    /// The method is no token, or almost one of HTTP's.
    #[error("the endpoint `{endpoint}` names the unknown method `{method}`; {hint}")]
    UnknownMethod {
        /// As given.
        endpoint: String,
        /// The part before the colon.
        method: String,
        /// What to write instead, for the message.
        hint: String,
    },
}

/// A parsed endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    text: String,
    /// Any, if there is none.
    method: Option<String>,
    host: Option<String>,
    path: Pattern,
    /// As written.
    path_text: String,
    query: Option<String>,
}

impl Endpoint {
    /// Parses the endpoint text of a task.
    ///
    /// # Errors
    ///
    /// The text is empty or cannot stand in an HTTP/1 request line.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        let any = |rest: &str| Self::from_target(text, None, rest);
        let one = |method: &str, rest: &str| {
            let method = method_named(text, method)?;
            Self::from_target(text, Some(method), rest)
        };
        if text == "*" {
            return any(text);
        }
        if let Some(rest) = text.strip_prefix("Netty-http:") {
            return any(rest);
        }
        if let Some((method, path)) = text.strip_prefix('{').and_then(|t| t.split_once('}'))
            && path.starts_with('/')
        {
            return one(method, path);
        }
        if text.starts_with('/') {
            return match text.rsplit_once('@') {
                Some((path, method)) if is_registered(&method.to_ascii_uppercase()) => {
                    one(method, path)
                }
                _ => any(text),
            };
        }
        if split_authority(text).0.is_some() {
            return any(text);
        }
        if let Some((method, target)) = text.split_once(char::is_whitespace)
            && method.bytes().all(|b| b.is_ascii_alphabetic())
            && let target = target.trim_start()
            && target.starts_with(['/', '*'])
        {
            let method = method_named(text, method)?;
            let name = format!("{method}:{target}");
            return Self::from_target(&name, Some(method), target);
        }
        match text.split_once(':') {
            // Another scheme than HTTP's is no method.
            Some((scheme, target))
                if target.starts_with("//") && !is_registered(&scheme.to_ascii_uppercase()) =>
            {
                Err(EndpointError::NotAPath(text.to_owned()))
            }
            Some((method, target)) if target.starts_with(['/', '*']) || target.contains("://") => {
                one(method, target)
            }
            _ => Err(EndpointError::NotAPath(text.to_owned())),
        }
    }

    fn from_target(
        text: &str,
        method: Option<String>,
        target: &str,
    ) -> Result<Self, EndpointError> {
        let (host, target) = split_authority(target);
        // A colon path such as `/a?b` has its query after the first question mark; templates have none.
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let cut = text.chars().count() >= NAME_MAX_CHARS;
        let path_text = if path.is_empty() { "/" } else { path };
        let path = if path == "*" || path == "/**" {
            Pattern::Any
        } else if path_text.starts_with('/') {
            Pattern::parse(path_text, cut)
        } else {
            return Err(EndpointError::NotAPath(text.to_owned()));
        };
        Ok(Self {
            text: text.to_owned(),
            method,
            host: host.map(str::to_owned),
            path,
            path_text: path_text.to_owned(),
            query,
        })
    }

    /// Whether it is read as this method and a path: some names of methods begin another form.
    pub(super) fn is_of_method(&self, method: &str) -> bool {
        let is_same = |own: &str| own.eq_ignore_ascii_case(method);
        self.method.as_deref().is_some_and(is_same) && self.host.is_none() && self.query.is_none()
    }

    /// All its requests have one path, and nothing else tells them apart: the text names the endpoint.
    pub(super) fn is_one_path(&self) -> bool {
        let is_literal = matches!(self.path, Pattern::Literal { .. });
        is_literal && self.host.is_none() && self.query.is_none()
    }

    /// Its path, if that names the variable segments and all the others.
    pub(super) fn template(&self) -> Option<&str> {
        let is_template = matches!(self.path, Pattern::Template { rest: false, .. });
        is_template.then_some(&self.path_text)
    }

    /// The endpoint as the user wrote it; `POST /orders` is `POST:/orders`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a request line is a request to this endpoint.
    #[must_use]
    pub fn matches(&self, method: &str, target: &str, host: Option<&str>) -> bool {
        if let Some(wanted) = &self.method
            && wanted != method
        {
            return false;
        }
        let (authority, target) = split_authority(target);
        if let Some(wanted) = &self.host
            && !authority
                .or(host)
                .is_some_and(|host| host.eq_ignore_ascii_case(wanted))
        {
            return false;
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        if let Some(wanted) = &self.query
            && query != Some(wanted.as_str())
        {
            return false;
        }
        let path = if path.is_empty() { "/" } else { path };
        self.path.matches(path)
    }

    /// The kernel side's prefilter. It passes everything that [`Self::matches`].
    #[must_use]
    pub fn rule(&self) -> EndpointRule {
        let (literal, is_whole) = self.path.literal();
        EndpointRule {
            method_mask: self
                .method
                .as_deref()
                .map_or(ANY_METHOD, |method| method_bit(Method::from_token(method))),
            literal,
            exact: is_whole && self.query.is_none(),
        }
    }
}

/// Methods of other specifications, as registered at IANA; `PRI` of HTTP/2 is none that a request has.
/// <https://www.iana.org/assignments/http-methods/http-methods.xhtml>
const REGISTERED: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

fn is_registered(method: &str) -> bool {
    Method::from_token(method) != Method::Other || REGISTERED.contains(&method)
}

/// The method that the endpoint text names, in upper case.
fn method_named(endpoint: &str, method: &str) -> Result<String, EndpointError> {
    let upper = method.to_ascii_uppercase();
    if is_registered(&upper) {
        return Ok(upper);
    }
    let refused = |hint| {
        Err(EndpointError::UnknownMethod {
            endpoint: endpoint.to_owned(),
            method: method.to_owned(),
            hint,
        })
    };
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if upper.is_empty() || upper.len() >= METHOD_MAX_BYTES || !upper.bytes().all(is_of_token) {
        return refused(
            "a method has letters, digits and `-`, like `GET` or `PROPFIND`".to_owned(),
        );
    }
    // One letter too many, too few, wrong or in another's place.
    let is_meant = |known: &Method| strsim::osa_distance(&upper, known.token()) == 1;
    match Method::ALL.into_iter().find(is_meant) {
        Some(known) => refused(format!("did you mean `{}`?", known.token())),
        None => Ok(upper),
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
