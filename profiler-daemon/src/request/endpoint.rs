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
//! A path segment `{x}`, `{x:regex}`, `:x` or `<x>` stands for any one segment; `*`, `*x`, `**` and
//! `{*x}` for the rest of the path. A regex in braces is not evaluated. The query counts only where
//! the endpoint has one. A target is compared as it stands and percent-decoded; `%2F` never
//! separates segments.

use percent_encoding::percent_decode_str;
use profiler_common::{LITERAL_MAX_BYTES, Method, method_bit};

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
    /// The method is not one of HTTP's.
    #[error("the endpoint `{endpoint}` names the unknown method `{method}`; {hint}")]
    UnknownMethod {
        /// As given.
        endpoint: String,
        /// The part before the colon.
        method: String,
        /// What to write instead.
        hint: String,
    },
}

/// A parsed endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    text: String,
    method_mask: u32,
    host: Option<String>,
    path: Pattern,
    query: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// Any path.
    Any,
    /// This path, or with `cut` a path that begins like this.
    Literal { path: String, cut: bool },
    /// Segment by segment; `rest` takes whatever follows.
    Template { segments: Vec<Segment>, rest: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// Any non-empty text between the two.
    Param {
        prefix: String,
        suffix: String,
    },
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
        let all_methods = Method::ALL.iter().fold(0, |mask, &m| mask | method_bit(m));
        let whole = |mask, rest: &str| Self::from_target(text, mask, rest);
        if text == "*" {
            return Ok(Self {
                text: text.to_owned(),
                method_mask: all_methods,
                host: None,
                path: Pattern::Any,
                query: None,
            });
        }
        if let Some(rest) = text.strip_prefix("Netty-http:") {
            return whole(all_methods, rest);
        }
        if let Some((method, path)) = text.strip_prefix('{').and_then(|t| t.split_once('}'))
            && path.starts_with('/')
        {
            return whole(method_mask(text, method)?, path);
        }
        if text.starts_with('/') {
            if let Some((path, method)) = text.rsplit_once('@')
                && let Ok(mask) = method_mask(text, method)
            {
                return whole(mask, path);
            }
            return whole(all_methods, text);
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return whole(all_methods, text);
        }
        if let Some((method, target)) = text.split_once(char::is_whitespace)
            && method.bytes().all(|b| b.is_ascii_alphabetic())
            && let target = target.trim_start()
            && target.starts_with(['/', '*'])
        {
            return whole(method_mask(text, method)?, target);
        }
        match text.split_once(':') {
            Some((method, target)) if target.starts_with(['/', '*']) || target.contains("://") => {
                whole(method_mask(text, method)?, target)
            }
            _ => Err(EndpointError::NotAPath(text.to_owned())),
        }
    }

    fn from_target(text: &str, method_mask: u32, target: &str) -> Result<Self, EndpointError> {
        let (host, target) = split_authority(target);
        // A colon path such as `/a?b` has its query after the first question mark; templates have none.
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let cut = text.chars().count() >= NAME_MAX_CHARS;
        let path = if path == "*" || path == "/**" {
            Pattern::Any
        } else if path.is_empty() || path.starts_with('/') {
            Pattern::parse(if path.is_empty() { "/" } else { path }, cut)
        } else {
            return Err(EndpointError::NotAPath(text.to_owned()));
        };
        Ok(Self {
            text: text.to_owned(),
            method_mask,
            host: host.map(str::to_owned),
            path,
            query,
        })
    }

    /// The endpoint as the user wrote it: the name under which its requests are reported.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a request line is a request to this endpoint.
    #[must_use]
    pub fn matches(&self, method: &str, target: &str, host: Option<&str>) -> bool {
        let Some(known) = Method::ALL.into_iter().find(|m| m.token() == method) else {
            return false;
        };
        if self.method_mask & method_bit(known) == 0 {
            return false;
        }
        let (authority, target) = split_authority(target);
        if let Some(wanted) = &self.host
            && authority.or(host) != Some(wanted.as_str())
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
        let (literal, whole) = match &self.path {
            Pattern::Any => (String::new(), false),
            Pattern::Literal { path, cut } => (path.clone(), !cut && self.query.is_none()),
            Pattern::Template { segments, .. } => {
                let mut literal = String::new();
                for segment in segments {
                    literal.push('/');
                    match segment {
                        Segment::Literal(text) => literal.push_str(text),
                        Segment::Param { prefix, .. } => {
                            literal.push_str(prefix);
                            break;
                        }
                    }
                }
                (literal, false)
            }
        };
        // Bytes outside this set stand percent-encoded on the wire; the daemon compares those.
        let safe = literal
            .bytes()
            .position(|b| !(b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(&b)))
            .unwrap_or(literal.len())
            .min(LITERAL_MAX_BYTES);
        EndpointRule {
            method_mask: self.method_mask,
            literal: literal.as_bytes()[..safe].to_vec(),
            exact: whole && safe == literal.len(),
        }
    }
}

impl Pattern {
    fn parse(path: &str, cut: bool) -> Self {
        let mut segments = Vec::new();
        let mut template = false;
        let mut rest = false;
        for part in path[1..].split('/') {
            if part.starts_with('*') || (part.starts_with("{*") && part.ends_with('}')) {
                template = true;
                rest = true;
                break;
            }
            let segment = Segment::parse(part);
            template |= matches!(segment, Segment::Param { .. });
            segments.push(segment);
        }
        if template {
            Self::Template { segments, rest }
        } else {
            Self::Literal {
                path: path.to_owned(),
                cut,
            }
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Literal { path: wanted, cut } => {
                let same = |path: &str| {
                    if *cut {
                        path.starts_with(wanted)
                    } else {
                        path == wanted
                    }
                };
                same(path) || decode(path).is_some_and(|decoded| same(&decoded))
            }
            Self::Template { segments, rest } => {
                let Some(path) = path.strip_prefix('/') else {
                    return false;
                };
                let mut parts = path.split('/');
                segments
                    .iter()
                    .all(|segment| parts.next().is_some_and(|p| segment.matches(p)))
                    && (*rest || parts.next().is_none())
            }
        }
    }
}

impl Segment {
    fn parse(text: &str) -> Self {
        let param = |prefix: &str, suffix: &str| Self::Param {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
        };
        if (text.starts_with(':') && text.len() > 1)
            || (text.starts_with('<') && text.ends_with('>'))
        {
            return param("", "");
        }
        match (text.find('{'), text.rfind('}')) {
            (Some(open), Some(close)) if open < close => param(&text[..open], &text[close + 1..]),
            _ => Self::Literal(text.to_owned()),
        }
    }

    fn matches(&self, part: &str) -> bool {
        // Path parameters (`;jsessionid=...`) do not belong to the segment's name.
        let part = part.split(';').next().unwrap_or(part);
        match self {
            Self::Literal(wanted) => {
                part == wanted || decode(part).is_some_and(|decoded| decoded == *wanted)
            }
            Self::Param { prefix, suffix } => part
                .strip_prefix(prefix.as_str())
                .and_then(|p| p.strip_suffix(suffix.as_str()))
                .is_some_and(|middle| !middle.is_empty()),
        }
    }
}

/// Percent-decodes, keeping an encoded slash encoded; `None` if nothing is encoded or it is not UTF-8.
fn decode(path: &str) -> Option<String> {
    if !path.contains('%') {
        return None;
    }
    let kept = path.replace("%2F", "%252F").replace("%2f", "%252f");
    percent_decode_str(&kept)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

/// Splits `http://host/path` into host and path; anything else has no authority.
fn split_authority(target: &str) -> (Option<&str>, &str) {
    let Some(after) = target
        .strip_prefix("http://")
        .or_else(|| target.strip_prefix("https://"))
    else {
        return (None, target);
    };
    match after.find(['/', '?']) {
        Some(end) => (Some(&after[..end]), &after[end..]),
        None => (Some(after), ""),
    }
}

fn method_mask(endpoint: &str, method: &str) -> Result<u32, EndpointError> {
    let upper = method.to_ascii_uppercase();
    if let Some(known) = Method::ALL.into_iter().find(|m| m.token() == upper) {
        return Ok(method_bit(known));
    }
    let nearest = Method::ALL
        .into_iter()
        .max_by(|a, b| {
            let score = |m: &Method| strsim::jaro_winkler(&upper, m.token());
            score(a).total_cmp(&score(b))
        })
        .map_or("GET", Method::token);
    Err(EndpointError::UnknownMethod {
        endpoint: endpoint.to_owned(),
        method: method.to_owned(),
        hint: format!("did you mean `{nearest}`?"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(endpoint: &str, method: &str, target: &str) -> bool {
        let endpoint = Endpoint::parse(endpoint).unwrap();
        let matched = endpoint.matches(method, target, None);
        if matched {
            assert!(
                passes(&endpoint.rule(), method, target),
                "the prefilter refuses a match"
            );
        }
        matched
    }

    /// The prefilter as the kernel side evaluates it.
    fn passes(rule: &EndpointRule, method: &str, target: &str) -> bool {
        let bit = Method::ALL
            .into_iter()
            .find(|m| m.token() == method)
            .map_or(0, method_bit);
        if rule.method_mask & bit == 0 {
            return false;
        }
        if target.starts_with("http") {
            return true;
        }
        for (index, &byte) in rule.literal.iter().enumerate() {
            match target.as_bytes().get(index) {
                Some(b'%') => return true,
                Some(&b) if b == byte => {}
                _ => return false,
            }
        }
        !rule.exact
            || matches!(
                target.as_bytes().get(rule.literal.len()),
                None | Some(b'?' | b';')
            )
    }

    /// Check that method and path are compared exactly and the query is ignored.
    #[test]
    fn method_and_path_match_exactly_without_query() {
        assert!(hits("POST:/", "POST", "/"));
        assert!(hits("POST:/", "POST", "/?a=1"));
        assert!(hits("POST /", "POST", "/") && hits("post  /x y", "POST", "/x%20y"));
        assert!(!hits("POST /", "GET", "/"));
        assert!(!hits("POST:/", "GET", "/"));
        assert!(!hits("POST:/", "POST", "/x"));
        assert!(!hits("GET:/busy", "GET", "/busy/"));
        assert!(!hits("GET:/busy", "GET", "/busybody"));
        assert!(hits("get:/busy", "GET", "/busy"));
    }

    /// Check the forms other agents give endpoint names.
    #[test]
    fn forms_of_other_agents_are_understood() {
        assert!(hits("{GET}/orders", "GET", "/orders"));
        assert!(!hits("{GET}/orders", "POST", "/orders"));
        assert!(hits("/orders@get", "GET", "/orders"));
        assert!(!hits("/orders@get", "PUT", "/orders"));
        assert!(hits("/orders", "DELETE", "/orders?x"));
        assert!(hits("/mail/a@b.c", "GET", "/mail/a@b.c"));
        assert!(hits("Netty-http:/x?y=1", "GET", "/x?y=1"));
        assert!(!hits("Netty-http:/x?y=1", "GET", "/x"));
        assert!(hits("*", "OPTIONS", "*"));
        assert!(hits("GET:*", "GET", "/any"));
    }

    /// Check that placeholders stand for one segment and a catch-all for the rest.
    #[test]
    fn templates_match_by_segment() {
        for endpoint in [
            "GET:/users/{id}/cart",
            "GET:/users/:id/cart",
            "GET:/users/<id>/cart",
        ] {
            assert!(hits(endpoint, "GET", "/users/42/cart"));
            assert!(!hits(endpoint, "GET", "/users/42/43/cart"));
            assert!(!hits(endpoint, "GET", "/users//cart"));
            assert!(!hits(endpoint, "GET", "/users/42"));
        }
        assert!(hits("GET:/f/{name}.json", "GET", "/f/a.json"));
        assert!(!hits("GET:/f/{name}.json", "GET", "/f/.json"));
        assert!(hits("GET:/static/*path", "GET", "/static/a/b/c.js"));
        assert!(hits("GET:/static/{*path}", "GET", "/static/x"));
        assert!(!hits("GET:/static/**", "GET", "/other/x"));
        assert!(hits("GET:/a/{id:[0-9]+}", "GET", "/a/7;v=1"));
    }

    /// Check that encoded targets equal decoded names, and that an encoded slash stays in its segment.
    #[test]
    fn percent_encoding_is_decoded_but_never_separates() {
        assert!(hits("GET:/café", "GET", "/caf%C3%A9"));
        assert!(hits("GET:/busy", "GET", "/%62usy"));
        assert!(hits("GET:/a b", "GET", "/a%20b"));
        assert!(!hits("GET:/a/b", "GET", "/a%2Fb"));
        assert!(hits("GET:/a/{x}", "GET", "/a/b%2Fc"));
    }

    /// Check absolute-form targets, with and without a host in the endpoint.
    #[test]
    fn absolute_targets_are_cut_to_their_path() {
        assert!(hits("GET:/x", "GET", "http://shop:80/x?q"));
        assert!(hits("GET:/", "GET", "http://shop"));
        assert!(hits("GET:http://shop:80/x", "GET", "http://shop:80/x"));
        let endpoint = Endpoint::parse("GET:http://shop/x").unwrap();
        assert!(endpoint.matches("GET", "/x", Some("shop")));
        assert!(!endpoint.matches("GET", "/x", Some("other")));
    }

    /// Check that a name cut by an agent at 150 characters matches what it was cut from.
    #[test]
    fn a_name_of_150_characters_matches_by_prefix() {
        let long = format!("GET:/{}", "a".repeat(200));
        let cut: String = long.chars().take(150).collect();
        assert!(hits(&cut, "GET", &long[4..]));
    }

    /// Check that what cannot stand in a request line is refused with a way out.
    #[test]
    fn names_without_a_path_are_refused() {
        assert_eq!(Endpoint::parse("  "), Err(EndpointError::Empty));
        let rpc = Endpoint::parse("shop.Cart.Add").unwrap_err().to_string();
        assert!(rpc.contains("METHOD:/path"), "{rpc}");
        let method = Endpoint::parse("GTE:/x").unwrap_err().to_string();
        assert!(method.contains("did you mean `GET`"), "{method}");
    }
}
