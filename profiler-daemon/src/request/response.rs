//! Reads status and framing from the first bytes of an HTTP/1 response (RFC 9112 §4, §6).

/// How the end of a response is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Its number of bytes, heads and body.
    Length(u64),
    /// A chunk of size zero.
    Chunked,
    /// The connection's end.
    UntilClose,
}

/// Status and framing of a response, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status code, 100 to 999.
    pub status: u16,
    /// How the response's end is recognized; `None` if the head continues after the bytes.
    pub framing: Option<Framing>,
}

impl ResponseHead {
    /// Parses the first bytes of a response to a request with this method; `None` if they are not
    /// a status line. Interim responses in front (RFC 9110 §15.2) are skipped.
    #[must_use]
    pub fn parse(bytes: &[u8], method: &str) -> Option<Self> {
        let mut begin = 0;
        // Each round takes at least a status line off the bytes.
        loop {
            let rest = &bytes[begin..];
            let status = status(rest)?;
            let Some(len) = head_len(rest) else {
                let framing = None;
                return Some(Self { status, framing });
            };
            if status / 100 != 1 || status == SWITCHING_PROTOCOLS {
                let head = &rest[..len];
                let framing = Some(framing(head, status, method, (begin + len) as u64));
                return Some(Self { status, framing });
            }
            begin += len;
        }
    }
}

/// It ends HTTP on the connection.
const SWITCHING_PROTOCOLS: u16 = 101;

fn status(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?;
    let (digits, after) = rest.get(2..5).zip(rest.get(1).copied())?;
    if after != b' ' || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = digits.iter().map(|digit| u16::from(digit - b'0'));
    Some(digits.fold(0, |number, digit| number * 10 + digit))
}

/// Bytes up to the end of the empty line.
fn head_len(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some(end + 4)
}

/// `heads_bytes` is the length of the head and of what stood in front of it. By RFC 9112 §6.3.
fn framing(head: &[u8], status: u16, method: &str, heads_bytes: u64) -> Framing {
    let has_no_body = method == "HEAD"
        || method == "CONNECT" && status / 100 == 2
        || matches!(status, SWITCHING_PROTOCOLS | 204 | 304);
    if has_no_body {
        return Framing::Length(heads_bytes);
    }
    let mut length = None;
    for line in head.split(|&b| b == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|&b| b == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let last = value.rsplit(|&b| b == b',').next().unwrap_or(value);
            let is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            return if is_chunked {
                Framing::Chunked
            } else {
                Framing::UntilClose
            };
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = std::str::from_utf8(value).ok();
            length = digits.and_then(|digits| digits.parse::<u64>().ok());
        }
    }
    length
        .and_then(|length| heads_bytes.checked_add(length))
        .map_or(Framing::UntilClose, Framing::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(head: &[u8], method: &str) -> Option<Framing> {
        ResponseHead::parse(head, method).unwrap().framing
    }

    /// Check that a Content-Length gives the length of the whole response, and that answers without a body end
    /// with their head.
    #[test]
    fn content_length_gives_the_whole_length() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let len = head.len() as u64;
        assert_eq!(framing(head, "GET"), Some(Framing::Length(len + 5)));
        assert_eq!(framing(head, "HEAD"), Some(Framing::Length(len)));
        assert_eq!(framing(head, "CONNECT"), Some(Framing::Length(len)));
        for head in [
            &b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"[..],
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            let len = head.len() as u64;
            assert_eq!(framing(head, "GET"), Some(Framing::Length(len)));
        }
    }

    /// Check that chunks, also of an encoded body, and the connection's end are known as what ends a response.
    #[test]
    fn other_framings_are_told_apart() {
        let of =
            |fields: &str| framing(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes(), "GET");
        for chunked in [
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: 3\r\ntransfer-encoding:gzip , Chunked\r\n",
        ] {
            assert_eq!(of(chunked), Some(Framing::Chunked), "{chunked}");
        }
        for endless in [
            "",
            "Transfer-Encoding: gzip\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 18446744073709551615\r\n",
            "no field\r\n",
        ] {
            assert_eq!(of(endless), Some(Framing::UntilClose), "{endless}");
        }
        assert_eq!(
            framing(b"HTTP/1.1 200 OK\r\nContent-Length: 5", "GET"),
            None
        );
    }

    /// Check that the final response behind interim ones is the one that counts.
    #[test]
    fn interim_responses_are_skipped() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
        let whole = format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n");
        let parsed = ResponseHead::parse(whole.as_bytes(), "GET").unwrap();
        let framing = Some(Framing::Length(whole.len() as u64 + 1));
        assert_eq!((parsed.status, parsed.framing), (200, framing));
        assert_eq!(ResponseHead::parse(interim.as_bytes(), "GET"), None);
    }

    /// Check that bytes that are no status line are refused.
    #[test]
    fn other_bytes_are_refused() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 2x0 ",
            b"HTTP/2 200",
            b"hello",
        ] {
            assert_eq!(ResponseHead::parse(bytes, "GET"), None);
        }
    }
}
