//! Reads what the daemon needs from the bytes of an HTTP/1 request head (RFC 9112 §3, §5). What is a request line is
//! defined by `profiler_common::line`, which the kernel side uses as well.

use profiler_common::{Line, SKIPS_MAX, line_of, line_status};

/// Most header lines that are read.
const HEADERS_MAX: usize = 128;

/// The parts of a request head the daemon uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// Method token.
    pub method: String,
    /// Request target as it stands on the wire, but with the bytes percent-encoded that are not UTF-8.
    pub target: String,
    /// `Host` header.
    pub host: Option<String>,
    /// `sw8` header.
    pub sw8: Option<String>,
    /// The blank line was seen: the head is whole.
    pub complete: bool,
    /// Further requests in the same bytes, after this one's body: the client pipelines.
    pub followers: usize,
}

/// One head among the bytes of a read.
struct Part {
    head: RequestHead,
    /// Bytes up to where the next head begins, if that is known.
    len: Option<usize>,
}

impl RequestHead {
    /// Parses the head; `None` if the first line is not a request line. Bytes after the blank line,
    /// a missing end and headers beyond the limit are no error.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let Part { mut head, mut len } = Part::parse(bytes)?;
        let mut rest = bytes;
        // Each round takes a head of at least a line off the bytes.
        while let Some(next) = len.and_then(|len| rest.get(len..)) {
            let Some(part) = Part::parse(next) else { break };
            head.followers += 1;
            (rest, len) = (next, part.len);
        }
        Some(head)
    }

    /// The target without scheme, authority and query.
    #[must_use]
    pub fn path(&self) -> &str {
        let (_, origin) = split_authority(&self.target);
        let path = origin.split('?').next().unwrap_or(origin);
        if path.is_empty() { "/" } else { path }
    }
}

/// Splits `http://host/path` into host and path; anything else has no authority.
pub(super) fn split_authority(target: &str) -> (Option<&str>, &str) {
    let after = target.split_once("://").and_then(|(scheme, after)| {
        let is_http = ["http", "https"]
            .iter()
            .any(|http| scheme.eq_ignore_ascii_case(http));
        is_http.then_some(after)
    });
    let Some(after) = after else {
        return (None, target);
    };
    match after.find(['/', '?']) {
        Some(end) => (Some(&after[..end]), &after[end..]),
        None => (Some(after), ""),
    }
}

/// Where a request line begins, and what it is; `None` if there is none.
fn find_line(bytes: &[u8]) -> Option<(usize, Line)> {
    let mut start = 0;
    for _ in 0..=SKIPS_MAX {
        let line = line_of(bytes.get(start..)?);
        if line.status() != line_status::SKIP {
            return (line.status() >= line_status::TARGET).then_some((start, line));
        }
        start += line.skip() as usize;
    }
    None
}

/// The bytes as text: those that are not UTF-8 as they would stand if the client had encoded them.
fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    text
}

impl Part {
    /// Parses the first head of the bytes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (start, line) = find_line(bytes)?;
        let mut lines = bytes[start..].split(|&b| b == b'\n');
        let first = lines.next()?;
        let (method, rest) = trim_cr(first).split_at_checked(line.target_offset() as usize)?;
        let mut words = rest.split(|&b| b == b' ');
        let target = words.next()?;
        // A version must follow unless the line was cut; HTTP/0.9 is not spoken any more.
        let is_http_1 = |version: &[u8]| version.iter().zip(b"HTTP/1.").all(|(a, b)| a == b);
        if !words.next().is_none_or(is_http_1) {
            return None;
        }
        let mut head = RequestHead {
            method: std::str::from_utf8(method).ok()?.trim_end().to_owned(),
            target: encoded(target),
            ..RequestHead::default()
        };
        let mut head_len = start + first.len() + 1;
        let mut body_len = Some(0_usize);
        let mut is_chunked = false;
        for raw in lines.take(HEADERS_MAX) {
            head_len += raw.len() + 1;
            let line = trim_cr(raw);
            if line.is_empty() {
                head.complete = raw == b"\r";
                break;
            }
            let Some(colon) = line.iter().position(|&b| b == b':') else {
                continue;
            };
            let name = &line[..colon];
            let value = || {
                std::str::from_utf8(&line[colon + 1..])
                    .ok()
                    .map(|v| v.trim().to_owned())
            };
            if name.eq_ignore_ascii_case(b"host") {
                head.host = value();
            } else if name.eq_ignore_ascii_case(b"sw8") {
                head.sw8 = value();
            } else if name.eq_ignore_ascii_case(b"content-length") {
                body_len = value().and_then(|value| value.parse().ok());
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                is_chunked = true;
            }
        }
        // Where a chunked body ends is not looked for.
        let len = body_len
            .filter(|_| head.complete && !is_chunked)
            .and_then(|body_len| head_len.checked_add(body_len));
        Some(Self { head, len })
    }
}

fn trim_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that method, target, host and sw8 are found whatever the header's capitalisation.
    #[test]
    fn a_head_gives_line_host_and_sw8() {
        let head = RequestHead::parse(
            b"POST /a/b?x=1 HTTP/1.1\r\nHOST: shop:80\r\nSW8:  1-abc \r\nContent-Length: 2\r\n\r\nhi",
        )
        .unwrap();
        assert_eq!((head.method.as_str(), head.path()), ("POST", "/a/b"));
        assert_eq!(head.host.as_deref(), Some("shop:80"));
        assert_eq!(head.sw8.as_deref(), Some("1-abc"));
        assert!(head.complete);
    }

    /// Check that heads behind the first one are counted, after its body, and nothing else is.
    #[test]
    fn requests_in_the_same_bytes_are_counted() {
        let followers = |bytes: &[u8]| RequestHead::parse(bytes).unwrap().followers;
        let get = "GET /b HTTP/1.1\r\n\r\n";
        let join = |parts: &[&str]| parts.concat().into_bytes();
        assert_eq!(followers(get.as_bytes()), 0);
        assert_eq!(followers(&join(&[get, get, get])), 2);
        assert_eq!(followers(&join(&[get, "GET /c HT"])), 1);
        let post = "POST /b HTTP/1.1\r\nContent-Length: 22\r\n\r\n";
        assert_eq!(followers(&join(&[post, get])), 0, "a body like a head");
        assert_eq!(followers(&join(&[post, get, "\n", get])), 1);
        for lost in ["Content-Length: 18446744073709551615", "Content-Length: x"] {
            let head = format!("POST /b HTTP/1.1\r\n{lost}\r\n\r\n");
            assert_eq!(followers(&join(&[&head, get])), 0, "{lost}");
        }
        let chunked = "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(followers(&join(&[chunked, get])), 0);
    }

    /// Check that a cut head still gives its request line.
    #[test]
    fn a_cut_head_gives_its_request_line() {
        let head = RequestHead::parse(b"GET http://h/p HTTP/1.1\r\nHos").unwrap();
        assert_eq!((head.path(), head.complete), ("/p", false));
        assert_eq!(RequestHead::parse(b"GET /fa").unwrap().target, "/fa");
    }

    /// Check that a PROXY header and empty lines before a request line are no part of it.
    #[test]
    fn what_stands_before_a_head_is_skipped() {
        let line = &b"REPORT /x HTTP/1.1\r\n\r\n"[..];
        let second =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\x20\x01";
        for before in [
            &b"\r\n"[..],
            b"PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n",
            b"PROXY UNKNOWN\r\n\r\n",
            second,
        ] {
            let bytes = [before, line].concat();
            let head = RequestHead::parse(&bytes).unwrap();
            assert_eq!((head.method.as_str(), head.path()), ("REPORT", "/x"));
            assert!(head.complete);
        }
        assert_eq!(RequestHead::parse(&second[..20]), None);
    }

    /// Check that bytes that are no request line are refused, whatever they are.
    #[test]
    fn other_bytes_are_refused() {
        for bytes in [
            &b""[..],
            b"\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"GET",
            b"\xff\xfe / x",
            b"GET / once upon a time\n",
            b"GET / HTTP/1\xc3\xa9\r\n",
            b"GET / HTT\xc3\xa9\r\n",
        ] {
            assert_eq!(RequestHead::parse(bytes), None, "{bytes:?}");
        }
    }
}
