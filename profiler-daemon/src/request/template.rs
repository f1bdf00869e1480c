//! Turns the path of a request into the name of its endpoint: segments that are ids become `{id}`.
//!
//! In:  service, method and path of a request; rules of the configuration
//! Out: a name such as `GET:/orders/{id}`, which [`Endpoint`] matches the request by
//! Lost: nothing. A request without a path, or with a method that no endpoint can name, has no name
//!
//! # Which segments are ids
//!
//! | segment | example |
//! |---|---|
//! | a number, a date, a time, a version | `17`, `2026-11-30`, `10:30`, `1.2.3` |
//! | a UUID; hexadecimal digits, 8 or more, one of them a number | `9f86d081`, `0x1f` |
//! | a token of 20 bytes or more that does not look like words | `dQw4w9WgXcQ7fK2mPz9a` |
//! | anything longer than 64 bytes | |
//! | an e-mail address | `ann@example.org` |
//! | one of these before an extension | `17.json`, `app.9f86d081.js` |
//!
//! A name is plain text, has less than 150 characters, which is what an OAP keeps of it, and one spelling: bytes are
//! percent-encoded where they have to be and nowhere else. A path that is too long or too deep is named by its
//! beginning: `GET:/files/**`.

use std::fmt::Write as _;

use super::endpoint::{Endpoint, EndpointError};
use super::head::RequestHead;
use super::path::{Pattern, normal, without_parameter};

/// Stands for an id.
const ID: &str = "{id}";
/// Longest name in characters: at 150 an OAP, and [`Endpoint`], take a name for one that was cut.
const NAME_MAX_CHARS: usize = 149;
/// Segments of a path that are looked at; the rest becomes `**`.
const SEGMENTS_MAX: usize = 16;
/// A segment with more bytes is an id, whatever it looks like.
const WORDS_MAX_BYTES: usize = 64;
/// Least bytes of a token.
const TOKEN_MIN_BYTES: usize = 20;
/// A token has this many digits, or changes between lower case, upper case and digits at two of five places: words
/// do so at one of six.
const TOKEN_DIGITS: usize = 4;
/// Least hexadecimal digits that are an id.
const HEX_MIN: usize = 8;
/// Longest extension of a file name.
const EXTENSION_MAX_BYTES: usize = 5;

/// A path of the configuration that stands for all paths it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// All services, if there is none.
    service: Option<String>,
    path: String,
    pattern: Pattern,
}

/// How endpoints are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    rules: Vec<Rule>,
}

impl Templates {
    /// Templates with rules: service (`*` for all) and path, such as `/files/**` or `/users/{name}`. The first that matches
    /// decides; without one, ids are recognised.
    ///
    /// # Errors
    ///
    /// A path does not begin with a slash, has a query, or is too long for a name.
    pub fn new<'a>(
        rules: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, EndpointError> {
        let rules = rules.into_iter().map(|(service, path)| {
            // With the longest method that is common.
            let is_short = path.chars().count() + "PROPPATCH:".len() <= NAME_MAX_CHARS;
            if !path.starts_with('/') || path.contains('?') || !is_short {
                return Err(EndpointError::NotAPath(path.to_owned()));
            }
            Ok(Rule {
                service: (service != "*").then(|| service.to_owned()),
                path: path.to_owned(),
                pattern: Pattern::parse(path, false),
            })
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// The name of the endpoint that a request of a service is for; `path` is without query. None for what is no path
    /// (`OPTIONS *`) and for a method that [`Endpoint`] refuses.
    #[must_use]
    pub fn name(&self, service: &str, method: &str, path: &str) -> Option<String> {
        if !path.starts_with('/') {
            return None;
        }
        let is_of = |rule: &&Rule| rule.service.as_ref().is_none_or(|of| of == service);
        let rule = self.rules.iter().filter(is_of);
        let rule = rule.into_iter().find(|rule| rule.pattern.matches(path));
        let name = match rule {
            Some(rule) => format!("{method}:{}", rule.path),
            None => template(method, path),
        };
        let endpoint = Endpoint::parse(&name).ok()?;
        endpoint.is_of_method(method).then_some(name)
    }

    /// The name under which a request to the endpoint of a task is reported. An endpoint of one path has its own text
    /// as its name: the user knows it by that. A request to any other has the name of its own endpoint, with a segment
    /// that varies as the task writes it unless it is known as an id.
    pub(super) fn name_of(&self, task: &Endpoint, service: &str, head: &RequestHead) -> String {
        if task.is_one_path() {
            return task.as_str().to_owned();
        }
        let Some(own) = self.name(service, &head.method, head.path()) else {
            let target = written(&normal(head.path()));
            return format!("{}:{target}", head.method)
                .chars()
                .take(NAME_MAX_CHARS)
                .collect();
        };
        let is_plain = Endpoint::parse(&own).is_ok_and(|own| own.is_one_path());
        match task.template().filter(|_| is_plain) {
            Some(path) => format!("{}:{path}", head.method),
            None => own,
        }
    }
}

/// Method and path, with ids as such.
fn template(method: &str, path: &str) -> String {
    let mut name = format!("{method}:");
    let mut chars = name.chars().count();
    let mut segments = path[1..].split('/');
    for index in 0.. {
        let Some(segment) = segments.next() else {
            break;
        };
        let text = segment_text(segment);
        chars += 1 + text.chars().count();
        // Room is left for what says that there is more.
        if index == SEGMENTS_MAX || chars > NAME_MAX_CHARS - "/**".len() {
            name.push_str("/**");
            break;
        }
        name.push('/');
        name.push_str(&text);
    }
    name
}

/// A segment as it stands in a name.
fn segment_text(segment: &str) -> String {
    let bytes = normal(without_parameter(segment));
    if is_id(&bytes) {
        return ID.to_owned();
    }
    match split_extension(&bytes) {
        Some((stem, extension)) if is_id(stem) => format!("{ID}{}", written(extension)),
        Some((stem, extension)) => {
            // `app.9f86d081.js`, `app-9f86d081.js`.
            let hash = stem.iter().rposition(|byte| b".-".contains(byte));
            match hash.map(|at| stem.split_at(at + 1)) {
                Some((name, hash)) if is_hex_id(hash) => {
                    format!("{}{ID}{}", written(name), written(extension))
                }
                _ => written(&bytes),
            }
        }
        None => written(&bytes),
    }
}

/// A file name without its extension, and that with its dot.
fn split_extension(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = bytes.iter().rposition(|&byte| byte == b'.')?;
    let (stem, extension) = bytes.split_at(dot);
    let letters = &extension[1..];
    let is_extension = letters.first().is_some_and(u8::is_ascii_alphabetic)
        && letters.len() <= EXTENSION_MAX_BYTES
        && letters.iter().all(u8::is_ascii_alphanumeric);
    (is_extension && !stem.is_empty()).then_some((stem, extension))
}

fn is_id(bytes: &[u8]) -> bool {
    bytes.len() > WORDS_MAX_BYTES
        || is_number(bytes)
        || is_hex_id(bytes)
        || is_token(bytes)
        || is_email(bytes)
}

/// Digits and what stands between them in numbers, dates, times and versions.
fn is_number(bytes: &[u8]) -> bool {
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    // `T` and `Z` of ISO 8601, with a whole date.
    let between = |byte: &u8| b"-+_.,:".contains(byte) || digits >= 8 && b"TZ".contains(byte);
    digits > 0
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_digit() || between(byte))
}

/// A UUID, or hexadecimal digits. Letters alone are a word.
fn is_hex_id(bytes: &[u8]) -> bool {
    let (digits, least) = match bytes.strip_prefix(b"0x") {
        Some(digits) => (digits, 1),
        None => (bytes, HEX_MIN),
    };
    let has_number = digits.iter().any(u8::is_ascii_digit);
    let hex = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
    let is_uuid = || {
        let parts = digits.split(|&byte| byte == b'-');
        digits.len() == 36
            && parts.clone().map(<[u8]>::len).eq([8, 4, 4, 4, 12])
            && parts.into_iter().all(hex)
    };
    has_number && digits.len() >= least && hex(digits) || is_uuid()
}

/// Random text: many digits, or many changes of case.
fn is_token(bytes: &[u8]) -> bool {
    let is_of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~=+".contains(byte);
    if bytes.len() < TOKEN_MIN_BYTES || !bytes.iter().all(is_of_token) {
        return false;
    }
    let class = |byte: u8| (byte.is_ascii_digit(), byte.is_ascii_uppercase());
    let letters = bytes.iter().filter(|byte| byte.is_ascii_alphabetic());
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit());
    let changes = bytes.windows(2).filter(|pair| {
        pair.iter().all(u8::is_ascii_alphanumeric) && class(pair[0]) != class(pair[1])
    });
    letters.count() > 0
        && (digits.count() >= TOKEN_DIGITS || changes.count() * 5 >= bytes.len() * 2)
}

fn is_email(bytes: &[u8]) -> bool {
    let mut parts = bytes.split(|&byte| byte == b'@');
    let (Some(user), Some(host), None) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let dot = host.iter().position(|&byte| byte == b'.');
    !user.is_empty() && dot.is_some_and(|dot| dot > 0 && dot + 1 < host.len())
}

/// Bytes in normal form ([`normal`]) as text that [`Endpoint`] reads as these bytes and as no template.
fn written(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            // Writing to a text does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    };
    let mut buffer = [0; 4];
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            // `%` begins `%25` or `%2F`. A colon at the beginning would make the segment a parameter.
            let is_plain = char.is_alphanumeric()
                || "-._~!$&'()+,=@%".contains(char)
                || char == ':' && !text.is_empty();
            if is_plain {
                text.push(char);
            } else {
                escape(&mut text, char.encode_utf8(&mut buffer).as_bytes());
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
