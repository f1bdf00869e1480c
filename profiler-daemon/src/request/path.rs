//! Which paths are the same, and which fit a template.
//!
//! Two paths are the same if they are after normalization (RFC 3986 §6.2.2), and also as frameworks route them:
//!
//! * percent-encoded bytes are decoded, so that `%41` is `A`, and `%C3%A9`, `%c3%a9` and a raw `é` are one. Only `%2F`
//!   stays what it is, for it does not separate segments, and `%25`, lest it be taken for another;
//! * parameters of a segment (`/x;jsessionid=1`, RFC 3986 §3.3) do not belong to its name, unless the endpoint has
//!   them.
//!
//! Compared are bytes: a path in latin-1 is another one than the same letters in UTF-8. Dots (`/a/../b`) and double
//! slashes are not resolved: servers differ.
//!
//! A segment `{x}`, `{x:regex}`, `:x` or `<x>` of a template stands for any one segment; `*`, `*x`, `**` and `{*x}` for
//! the rest of the path. A regex in braces is not evaluated.

use profiler_common::LITERAL_MAX_BYTES;

/// The paths of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Any path.
    Any,
    /// This path in its normal form, or with `cut` a path that begins like this.
    Literal { path: Vec<u8>, cut: bool },
    /// Segment by segment; `rest` takes whatever follows.
    Template { segments: Vec<Segment>, rest: bool },
}

/// One segment of a template, in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(Vec<u8>),
    /// Any non-empty text between the two.
    Param {
        prefix: Vec<u8>,
        suffix: Vec<u8>,
    },
}

impl Pattern {
    /// The pattern of a path that begins with a slash; `cut`: there was more of it.
    pub(super) fn parse(path: &str, cut: bool) -> Self {
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
            return Self::Template { segments, rest };
        }
        let path = if cut {
            without_half_an_escape(path)
        } else {
            path
        };
        Self::Literal {
            path: normal(path),
            cut,
        }
    }

    /// Whether a path on the wire is one of them.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Literal { path: wanted, cut } => {
                let same = |path: &str| {
                    let path = normal(path);
                    if *cut {
                        path.starts_with(wanted)
                    } else {
                        path == *wanted
                    }
                };
                same(path) || path.contains(';') && same(&without_parameters(path))
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

    /// What all these paths begin with on the wire, encoded bytes and parameters aside, at most as long as the kernel
    /// side compares; and whether it is all of the path.
    pub(super) fn literal(&self) -> (Vec<u8>, bool) {
        let (mut literal, is_whole) = match self {
            Self::Any => (Vec::new(), false),
            Self::Literal { path, cut } => (path.clone(), !cut),
            Self::Template { segments, .. } => {
                let mut literal = Vec::new();
                for segment in segments {
                    literal.push(b'/');
                    match segment {
                        Segment::Literal(text) => literal.extend(text),
                        Segment::Param { prefix, .. } => {
                            literal.extend(prefix);
                            break;
                        }
                    }
                }
                (literal, false)
            }
        };
        // Other bytes may stand on the wire in more than one way that does not begin with a percent sign.
        let is_plain =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(byte);
        let len = literal.iter().take_while(|byte| is_plain(byte)).count();
        let len = len.min(LITERAL_MAX_BYTES);
        let is_whole = is_whole && len == literal.len();
        literal.truncate(len);
        (literal, is_whole)
    }
}

impl Segment {
    fn parse(text: &str) -> Self {
        let param = |prefix: &str, suffix: &str| Self::Param {
            prefix: normal(prefix),
            suffix: normal(suffix),
        };
        if (text.starts_with(':') && text.len() > 1)
            || (text.starts_with('<') && text.ends_with('>'))
        {
            return param("", "");
        }
        match (text.find('{'), text.rfind('}')) {
            (Some(open), Some(close)) if open < close => param(&text[..open], &text[close + 1..]),
            _ => Self::Literal(normal(text)),
        }
    }

    fn matches(&self, part: &str) -> bool {
        let name = normal(without_parameter(part));
        match self {
            Self::Literal(wanted) => name == *wanted || normal(part) == *wanted,
            Self::Param { prefix, suffix } => name
                .strip_prefix(prefix.as_slice())
                .and_then(|p| p.strip_suffix(suffix.as_slice()))
                .is_some_and(|middle| !middle.is_empty()),
        }
    }
}

pub(super) fn without_parameter(segment: &str) -> &str {
    segment.split(';').next().unwrap_or(segment)
}

fn without_parameters(path: &str) -> String {
    let names: Vec<_> = path.split('/').map(without_parameter).collect();
    names.join("/")
}

/// The path without the beginning of a percent-encoded byte at its end.
fn without_half_an_escape(path: &str) -> &str {
    match path.rfind('%') {
        Some(at) if at + 3 > path.len() => &path[..at],
        _ => path,
    }
}

/// The bytes that a path stands for. A percent sign that begins no encoded byte is one.
pub(super) fn normal(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let encoded = after.first_chunk().and_then(|digits| hex(*digits));
        let byte = match (first, encoded) {
            (b'%', Some(byte)) => {
                rest = &after[2..];
                byte
            }
            _ => {
                rest = after;
                first
            }
        };
        match (byte, first) {
            (b'%', _) => bytes.extend(b"%25"),
            (b'/', b'%') => bytes.extend(b"%2F"),
            _ => bytes.push(byte),
        }
    }
    bytes
}

fn hex(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? << 4 | low?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check what a path stands for.
    #[test]
    fn encoded_bytes_are_what_they_stand_for() {
        for (path, bytes) in [
            ("/%41%7e~", &b"/A~~"[..]),
            ("/%C3%A9%c3%a9é", b"/\xc3\xa9\xc3\xa9\xc3\xa9"),
            ("/a%2Fb%2f/", b"/a%2Fb%2F/"),
            ("/%25%252F%", b"/%25%252F%25"),
            ("/%zz%4", b"/%25zz%254"),
            ("/%E9%3B", b"/\xe9;"),
        ] {
            assert_eq!(normal(path), bytes, "{path}");
        }
    }
}
