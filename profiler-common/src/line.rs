//! The request line of HTTP/1 (RFC 9112 §3) and what may stand before it, judged by their first bytes.
//!
//! Both sides use these functions, the BPF programs on what a call has read and the daemon on what they shipped, so
//! that both agree on what is a head. Bytes are read by index, because the programs have no slices; each step is
//! a function, because the verifier checks functions one by one.
//!
//! ```text
//!  bytes ──token──► NO, TOKEN
//!            │ ├──► METHOD ──target (version)──► NO, TARGET, WHOLE
//!            │ └──► BEFORE ──before──► NO, TOKEN, SKIP ── so many bytes on, again from the start
//! ```

use crate::rule::Method;

/// Bytes of a request line that are read; a longer one counts as whole.
pub const LINE_MAX_BYTES: usize = 256;
/// Longest method. The longest registered one, `UPDATEREDIRECTREF`, has 17 bytes.
pub const METHOD_MAX_BYTES: usize = 32;
const _: () = assert!(METHOD_MAX_BYTES < 64);
/// How often something is skipped before a line: a PROXY header, and empty lines behind it.
pub const SKIPS_MAX: u32 = 2;

/// Most bytes of empty lines before a request line (RFC 9112 §2.2).
const EMPTY_LINES_MAX_BYTES: u64 = 8;
/// Longest PROXY header of version 1, with its line end.
/// <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, §2.1.
const PROXY_1_MAX_BYTES: u64 = 107;
/// Beginning of a PROXY header of version 2, §2.2.
const PROXY_2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What a PROXY header of version 2 has before its addresses: signature, command, family, length of the rest.
const PROXY_2_FIXED_BYTES: u64 = 16;

/// What the bytes are: [`Line::status`].
pub mod line_status {
    /// Not the beginning of a request.
    pub const NO: u64 = 0;
    /// The beginning of a method, or of what may stand before a request line.
    pub const TOKEN: u64 = 1;
    /// [`super::Line::skip`] bytes come before the request line, some of them perhaps in later reads.
    pub const SKIP: u64 = 2;
    /// A method and the beginning of a target.
    pub const TARGET: u64 = 3;
    /// A method and a target up to its end, or up to [`super::LINE_MAX_BYTES`].
    pub const WHOLE: u64 = 4;
    /// Only between the steps: a method, and a byte after its space.
    pub const METHOD: u64 = 5;
    /// Only between the steps: something that may stand before a request line.
    pub const BEFORE: u64 = 6;
}
use line_status::{BEFORE, METHOD, NO, SKIP, TARGET, TOKEN, WHOLE};

/// What was found, as one integer: functions of the programs pass only those.
///
/// `skip (32 bits) | target offset (16) | method (8) | status (8)`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line(pub u64);

impl Line {
    /// One of [`line_status`].
    #[inline(always)]
    #[must_use]
    pub const fn status(self) -> u64 {
        self.0 & 0xff
    }

    /// Number of the method, see [`Method`].
    #[inline(always)]
    #[must_use]
    pub const fn method(self) -> u64 {
        self.0 >> 8 & 0xff
    }

    /// Where the target begins; one byte before it the method has ended. Below 64, as the verifier is to see.
    #[inline(always)]
    #[must_use]
    pub const fn target_offset(self) -> u64 {
        self.0 >> 16 & 0x3f
    }

    /// Bytes before the request line.
    #[inline(always)]
    #[must_use]
    pub const fn skip(self) -> u64 {
        self.0 >> 32
    }

    /// The same with another number of bytes.
    #[inline(always)]
    #[must_use]
    pub const fn with_skip(self, bytes: u64) -> Self {
        Self(bytes << 32 | self.0 & 0xffff_ffff)
    }

    #[inline(always)]
    const fn skipping(bytes: u64) -> Self {
        Self(SKIP).with_skip(bytes)
    }

    #[inline(always)]
    const fn with_status(self, status: u64) -> Self {
        Self(self.0 & !0xff | status)
    }
}

/// Puts the steps together; the programs call each as a function of its own.
#[inline(always)]
pub fn line(token: Line, target: impl FnOnce(Line) -> Line, before: impl FnOnce() -> Line) -> Line {
    match token.status() {
        METHOD => target(token),
        BEFORE => before(),
        _ => token,
    }
}

/// The first step: a method (a token of RFC 9110 §5.6.2) and the space behind it.
#[inline(always)]
pub fn token(len: u64, byte: impl Fn(u64) -> u8) -> Line {
    if len == 0 {
        return Line(NO);
    }
    let mut word = 0;
    let mut end = 0;
    while end < METHOD_MAX_BYTES as u64 {
        if end >= len {
            return Line(TOKEN);
        }
        let found = byte(end);
        if found == b' ' {
            break;
        }
        if !is_token(found) {
            let is_line_end = found == b'\r' || found == b'\n';
            return Line(if end == 0 && is_line_end { BEFORE } else { NO });
        }
        if end < 8 {
            word |= (found as u64) << (8 * end);
        }
        end += 1;
    }
    if end == 0 || end >= METHOD_MAX_BYTES as u64 {
        return Line(NO);
    }
    let offset = end + 1;
    if offset >= len {
        return Line(TOKEN);
    }
    // `PROXY TCP4 ...`, `PROXY UNKNOWN`; no target begins like this.
    if word == word_of(b"PROXY") && end == 5 && matches!(byte(offset), b'T' | b'U') {
        return Line(BEFORE);
    }
    Line(offset << 16 | method_of(word, end) << 8 | METHOD)
}

/// The second step: a target in origin (`/`), absolute (`http`) or asterisk form, or anything after `CONNECT`
/// (RFC 9112 §3.2).
///
/// Another method than HTTP's own is one only if the version follows, which [`version`] says: other protocols have
/// commands like it, and HTTP/2 begins with `PRI * HTTP/2.0`.
#[inline(always)]
pub fn target(
    len: u64,
    line: Line,
    byte: impl Fn(u64) -> u8,
    version: impl Fn(u64) -> u64,
) -> Line {
    let offset = line.target_offset();
    let is_target = match byte(offset) {
        b'/' | b'*' => true,
        first if line.method() == Method::Connect as u64 => first > b' ',
        b'h' | b'H' => len == offset + 1 || matches!(byte(offset + 1), b't' | b'T'),
        _ => false,
    };
    if !is_target {
        return Line(NO);
    }
    // Counts from 0, so that the verifier sees an end, although the first byte is further on.
    let mut count = 0;
    while count < LINE_MAX_BYTES as u64 {
        let index = offset + 1 + count;
        if index >= LINE_MAX_BYTES as u64 {
            break;
        }
        if index >= len {
            return line.with_status(TARGET);
        }
        let found = byte(index);
        if found <= b' ' {
            let status = match (found, line.method() == Method::Other as u64) {
                (b' ', true) => version(index + 1),
                (b' ' | b'\r' | b'\n', false) => WHOLE,
                _ => NO,
            };
            return line.with_status(status);
        }
        count += 1;
    }
    line.with_status(WHOLE)
}

/// The step of the second one for a method that is not HTTP's own: the status of a line whose version should begin at
/// `at`.
#[inline(always)]
pub fn version(len: u64, at: u64, byte: impl Fn(u64) -> u8) -> u64 {
    /// Where the digit of `HTTP/1` stands.
    const DIGIT: u64 = 5;
    if at < len && byte(at) != b'H' {
        NO
    } else if at + DIGIT >= LINE_MAX_BYTES as u64 {
        WHOLE
    } else if at + DIGIT >= len {
        TARGET
    } else if byte(at + DIGIT) == b'1' {
        WHOLE
    } else {
        NO
    }
}

/// The step for what may stand before a request line: a PROXY header, in which a load balancer sends the client's
/// address, or empty lines.
#[inline(always)]
pub fn before(len: u64, byte: impl Fn(u64) -> u8) -> Line {
    if byte(0) == b'P' {
        let mut index = 6;
        while index < PROXY_1_MAX_BYTES {
            if index >= len {
                return Line(TOKEN);
            }
            if byte(index) == b'\n' {
                return Line::skipping(index + 1);
            }
            index += 1;
        }
        return Line(NO);
    }
    let mut same = 0;
    while same < PROXY_2_SIGNATURE.len() as u64 {
        if same >= len {
            return Line(TOKEN);
        }
        if byte(same) != PROXY_2_SIGNATURE[same as usize] {
            break;
        }
        same += 1;
    }
    if same == PROXY_2_SIGNATURE.len() as u64 {
        if len < PROXY_2_FIXED_BYTES {
            return Line(TOKEN);
        }
        let rest = (byte(14) as u64) << 8 | byte(15) as u64;
        return Line::skipping(PROXY_2_FIXED_BYTES + rest);
    }
    let mut run = 1;
    while run < EMPTY_LINES_MAX_BYTES {
        if run >= len || !matches!(byte(run), b'\r' | b'\n') {
            break;
        }
        run += 1;
    }
    Line::skipping(run)
}

/// The line at the beginning of bytes.
#[must_use]
pub fn line_of(bytes: &[u8]) -> Line {
    let len = bytes.len().min(LINE_MAX_BYTES) as u64;
    let byte = |index: u64| bytes.get(index as usize).copied().unwrap_or(0);
    line(
        token(len, byte),
        |token| target(len, token, byte, |at| version(len, at, byte)),
        || before(len, byte),
    )
}

/// Whether a byte may be part of a token: `tchar` of RFC 9110 §5.6.2.
#[inline(always)]
const fn is_token(byte: u8) -> bool {
    const HALVES: [u64; 2] = {
        let mut halves = [0; 2];
        let mut byte = 0;
        while byte < 128_u8 {
            if byte.is_ascii_alphanumeric() || is_one_of(byte, b"!#$%&'*+-.^_`|~") {
                halves[byte as usize / 64] |= 1 << (byte % 64);
            }
            byte += 1;
        }
        halves
    };
    let half = if byte & 0x40 == 0 {
        HALVES[0]
    } else {
        HALVES[1]
    };
    byte < 0x80 && half >> (byte & 0x3f) & 1 != 0
}

const fn is_one_of(byte: u8, bytes: &[u8]) -> bool {
    let mut index = 0;
    while index < bytes.len() {
        if bytes[index] == byte {
            return true;
        }
        index += 1;
    }
    false
}

/// Up to eight bytes as a little-endian number.
const fn word_of(bytes: &[u8]) -> u64 {
    let mut word = 0;
    let mut index = 0;
    while index < bytes.len() {
        word |= (bytes[index] as u64) << (8 * index);
        index += 1;
    }
    word
}

/// Number of the method of so many bytes that begins with the word.
#[inline(always)]
fn method_of(word: u64, len: u64) -> u64 {
    macro_rules! methods {
        ($($method:ident)+) => {$({
            const WORD: u64 = word_of(Method::$method.token().as_bytes());
            if word == WORD {
                return Method::$method as u64;
            }
        })+};
    }
    if len < 8 {
        methods!(Get Post Put Patch Delete Head Options Trace Connect);
    }
    Method::Other as u64
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn status(bytes: &[u8]) -> u64 {
        line_of(bytes).status()
    }

    /// Check that every prefix of a request line is the beginning of one, until its target has ended.
    #[test]
    fn a_line_in_pieces_is_a_beginning_until_its_target_has_ended() {
        for (head, method, offset) in [
            (&b"GET /a/b HTTP/1.1\r\n"[..], Method::Get, 4),
            (b"OPTIONS * HTTP/1.1\r\n", Method::Options, 8),
            (b"POST http://h/p HTTP/1.1\r\n", Method::Post, 5),
            (b"CONNECT h:443 HTTP/1.1\r\n", Method::Connect, 8),
            (b"HEAD /\r\n", Method::Head, 5),
            (b"PROPFIND /dav HTTP/1.1\r\n", Method::Other, 9),
            (b"BASELINE-CONTROL /dav HTTP/1.1\r\n", Method::Other, 17),
            (b"get /x HTTP/1.1\r\n", Method::Other, 4),
            (b"PROXY /x HTTP/1.1\r\n", Method::Other, 6),
            (b"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1", Method::Other, 22),
        ] {
            let target_end = head[offset..].iter().position(|b| *b <= b' ').unwrap() + offset;
            for len in 1..=head.len() {
                // Another method is one only with a version behind the target.
                let needs = target_end + if method == Method::Other { 7 } else { 1 };
                let expected = match len {
                    _ if len <= offset => TOKEN,
                    _ if len < needs => TARGET,
                    _ => WHOLE,
                };
                let line = line_of(&head[..len]);
                assert_eq!(line.status(), expected, "{:?}", &head[..len]);
                if expected >= TARGET {
                    assert_eq!(line.method(), method as u64);
                    assert_eq!(line.target_offset(), offset as u64);
                }
            }
        }
    }

    /// Check that what is no request line is none, and that a long one is whole.
    #[test]
    fn other_bytes_are_no_line() {
        for bytes in [
            &b""[..],
            b" GET / HTTP/1.1",
            b"GET  / HTTP/1.1",
            b"HTTP/1.1 200 OK\r\n",
            b"GET index.html HTTP/1.0\r\n",
            b"GET /a\x01b HTTP/1.1",
            b"RETR /file\r\n",
            b"RENAME /a /b\r\n",
            b"\x16\x03\x01\x02\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"MOVE /a /b/c/d\r\n",
            b"G\xc3\xa9T / HTTP/1.1",
        ] {
            assert_eq!(status(bytes), NO, "{bytes:?}");
        }
        let mut long = [b'a'; 300];
        long[..5].copy_from_slice(b"GET /");
        assert_eq!(status(&long), WHOLE);
        assert_eq!(status(&long[..255]), TARGET);
        long[..5].copy_from_slice(b"LOCK ");
        long[5] = b'/';
        assert_eq!(status(&long), WHOLE);
        assert_eq!(status(&[b'A'; 31]), TOKEN);
        assert_eq!(status(&[b'A'; 33]), NO, "no method is that long");
    }

    /// Check that a PROXY header is a beginning until its length is known, and is skipped as a whole then.
    #[test]
    fn a_proxy_header_is_skipped() {
        let first = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n";
        let second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x01\x0cwhatever follows";
        for (header, known, skip) in [
            (&first[..], first.len(), first.len()),
            (b"PROXY UNKNOWN\r\n", 15, 15),
            (second, 16, 16 + 0x10c),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00", 16, 16),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x21\xff\xff", 16, 16 + 0xffff),
        ] {
            for len in 1..known {
                assert_eq!(status(&header[..len]), TOKEN, "{:?}", &header[..len]);
            }
            let line = line_of(header);
            assert_eq!((line.status(), line.skip()), (SKIP, skip as u64));
        }
        assert_eq!(status(&[&b"PROXY TCP4 "[..], &[b'1'; 100]].concat()), NO);
    }

    /// Check that empty lines before a request line are skipped, up to a number.
    #[test]
    fn empty_lines_are_skipped() {
        for (bytes, skip) in [
            (&b"\r\nGET"[..], 2),
            (b"\n\nGET", 2),
            (b"\r\n\r\n\r\nGET", 6),
            (b"\r\n\r\n\r\n\r\n\r\n", 8),
            (b"\nG", 1),
        ] {
            let line = line_of(bytes);
            assert_eq!((line.status(), line.skip()), (SKIP, skip), "{bytes:?}");
        }
        // It may be the beginning of a header.
        assert_eq!(status(b"\r\n"), TOKEN);
    }
}
