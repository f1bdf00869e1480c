//! Reads status and framing from the first bytes of an HTTP/1 response (RFC 9112 §4, §6).

/// Status and length of a response, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status code, 100 to 999.
    pub status: u16,
    /// Bytes of the whole response, head and body, if the head tells.
    pub total_bytes: Option<u64>,
}

impl ResponseHead {
    /// Parses the first bytes of a response to a request with this method; `None` if they are not
    /// a status line.
    #[must_use]
    pub fn parse(bytes: &[u8], method: &str) -> Option<Self> {
        let rest = bytes.strip_prefix(b"HTTP/1.")?;
        let (digits, after) = rest.get(2..5).zip(rest.get(1).copied())?;
        if after != b' ' || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let status = digits
            .iter()
            .fold(0_u16, |n, d| n * 10 + u16::from(d - b'0'));
        Some(Self {
            status,
            total_bytes: total_bytes(bytes, status, method),
        })
    }
}

fn total_bytes(bytes: &[u8], status: u16, method: &str) -> Option<u64> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head_bytes = end as u64 + 4;
    if method == "HEAD" || status == 204 || status == 304 {
        return Some(head_bytes);
    }
    let mut length = None;
    for line in bytes[..end].split(|&b| b == b'\n').skip(1) {
        let colon = line.iter().position(|&b| b == b':')?;
        let value = std::str::from_utf8(&line[colon + 1..]).ok()?.trim();
        if line[..colon].eq_ignore_ascii_case(b"transfer-encoding") {
            return None;
        }
        if line[..colon].eq_ignore_ascii_case(b"content-length") {
            length = value.parse::<u64>().ok();
        }
    }
    head_bytes.checked_add(length?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a Content-Length gives the length of the whole response.
    #[test]
    fn content_length_gives_the_whole_length() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let parsed = ResponseHead::parse(head, "GET").unwrap();
        assert_eq!(
            parsed,
            ResponseHead {
                status: 200,
                total_bytes: Some(head.len() as u64 + 5)
            }
        );
        assert_eq!(
            ResponseHead::parse(head, "HEAD").unwrap().total_bytes,
            Some(head.len() as u64)
        );
    }

    /// Check that a chunked, an endless and a cut response leave the length open.
    #[test]
    fn other_framings_leave_the_length_open() {
        for head in [
            &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
            b"HTTP/1.0 500 Oops\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ] {
            assert_eq!(ResponseHead::parse(head, "GET").unwrap().total_bytes, None);
        }
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
