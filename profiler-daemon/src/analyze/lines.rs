//! Turns JSON lines into rows: `{"segment_id","sequence","time_ms","stack":[root..leaf]}`.
//!
//! In:  text of a file or of standard input, written by anyone
//! Out: [`OwnedRow`]s with shared signatures
//! Lost: nothing; the first bad line is an error that says which and why

use std::collections::HashSet;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;

use super::{MAX_DEPTH, Row};

/// Longest line accepted, in bytes. 1024 frames of 5,000 bytes fit.
const MAX_LINE_BYTES: u64 = 8 << 20;

/// One line, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRow {
    /// Trace segment it belongs to.
    pub segment_id: Arc<str>,
    /// Number within the segment.
    pub sequence: i32,
    /// Epoch milliseconds.
    pub time_ms: i64,
    /// Code signatures, root first.
    pub stack: Vec<Arc<str>>,
}

impl OwnedRow {
    /// The row as the analysis takes it.
    #[must_use]
    pub fn as_row(&self) -> Row<'_> {
        Row {
            segment: &self.segment_id,
            sequence: self.sequence,
            time_ms: self.time_ms,
            stack: &self.stack,
        }
    }
}

/// Why a line was not read.
#[derive(Debug, Error)]
pub enum LineError {
    /// The input failed.
    #[error("failed to read line {line}")]
    Io {
        /// Line number, from 1.
        line: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The line is not what it should be.
    #[error("line {line}: {what}")]
    Bad {
        /// Line number, from 1.
        line: u64,
        /// What is wrong, and where in the line if known.
        what: String,
    },
}

/// A line as it stands in the file. Keys that are not ours are ignored: other tools may add some.
#[derive(Deserialize)]
struct RawRow {
    segment_id: String,
    sequence: i32,
    time_ms: i64,
    stack: Vec<String>,
}

/// Reads rows line by line. Empty lines are skipped.
pub struct Lines<R> {
    input: R,
    line: u64,
    buffer: Vec<u8>,
    texts: HashSet<Arc<str>>,
}

impl<R: BufRead> Lines<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Self {
        Self {
            input,
            line: 0,
            buffer: Vec::new(),
            texts: HashSet::new(),
        }
    }

    /// The next non-empty line into the buffer; false at the end.
    fn advance(&mut self) -> Result<bool, LineError> {
        loop {
            self.line += 1;
            self.buffer.clear();
            let read = (&mut self.input)
                .take(MAX_LINE_BYTES + 1)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| LineError::Io {
                    line: self.line,
                    source,
                })?;
            if read as u64 > MAX_LINE_BYTES {
                return Err(self.bad(format!("longer than {MAX_LINE_BYTES} bytes")));
            }
            if read == 0 {
                return Ok(false);
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn parse(&mut self) -> Result<OwnedRow, LineError> {
        let raw: RawRow =
            serde_json::from_slice(&self.buffer).map_err(|error| self.bad(explain(&error)))?;
        if raw.stack.len() > MAX_DEPTH {
            let frames = raw.stack.len();
            return Err(self.bad(format!(
                "\"stack\" has {frames} frames, the limit is {MAX_DEPTH}"
            )));
        }
        Ok(OwnedRow {
            segment_id: self.share(raw.segment_id),
            sequence: raw.sequence,
            time_ms: raw.time_ms,
            stack: raw.stack.into_iter().map(|text| self.share(text)).collect(),
        })
    }

    fn share(&mut self, text: String) -> Arc<str> {
        if let Some(shared) = self.texts.get(text.as_str()) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = Arc::from(text);
        self.texts.insert(Arc::clone(&shared));
        shared
    }

    fn bad(&self, what: String) -> LineError {
        LineError::Bad {
            line: self.line,
            what,
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<OwnedRow, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(true) => Some(self.parse()),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// serde_json's text without its "at line 1": the file's line is known better here.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text
        .rfind(" at line ")
        .map_or(text.as_str(), |end| &text[..end]);
    format!("{what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<OwnedRow, String>> {
        Lines::new(text.as_bytes())
            .map(|row| row.map_err(|error| error.to_string()))
            .collect()
    }

    /// Check that a line becomes a row, that empty lines and foreign keys are skipped.
    #[test]
    fn a_line_becomes_a_row() {
        let text = concat!(
            "\n",
            r#"{"segment_id":"s","sequence":3,"time_ms":17,"stack":["main","leaf"],"on_cpu":true}"#,
            "\n \n",
            r#"{"stack":[],"time_ms":-1,"sequence":-2,"segment_id":""}"#,
        );
        let rows: Vec<OwnedRow> = read(text).into_iter().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(&*rows[0].segment_id, "s");
        assert_eq!((rows[0].sequence, rows[0].time_ms), (3, 17));
        assert_eq!(&*rows[0].stack[1], "leaf");
        assert_eq!((rows[1].sequence, rows[1].time_ms), (-2, -1));
    }

    /// Check that a bad line names its number and what is wrong.
    #[test]
    fn a_bad_line_says_which_and_why() {
        let error = |text: &str| read(text).pop().unwrap().unwrap_err();
        let first = r#"{"segment_id":"s","sequence":0,"time_ms":1,"stack":["a"]}"#;
        assert_eq!(
            error(&format!("{first}\n\n{{\"segment_id\":\"s\"}}\n")),
            "line 3: missing field `sequence` at column 18"
        );
        assert!(error("nonsense").starts_with("line 1: expected ident"));
        assert!(
            error(r#"{"segment_id":"s","sequence":4294967296,"time_ms":1,"stack":["a"]}"#)
                .contains("expected i32")
        );
        assert!(
            error(r#"{"segment_id":"s","sequence":0,"time_ms":1,"stack":"a"}"#)
                .contains("expected a sequence")
        );
        let deep = format!(
            r#"{{"segment_id":"s","sequence":0,"time_ms":1,"stack":[{}"a"]}}"#,
            "\"a\",".repeat(1024)
        );
        assert_eq!(
            error(&deep),
            "line 1: \"stack\" has 1025 frames, the limit is 1024"
        );
    }

    /// Check that bytes that are not UTF-8 and a line without end are errors, not panics.
    #[test]
    fn hostile_bytes_are_errors() {
        let mut lines = Lines::new(&b"{\"segment_id\":\"\xff\"}"[..]);
        assert!(matches!(lines.next(), Some(Err(LineError::Bad { .. }))));
        let endless = io::BufReader::new(io::repeat(b'['));
        let mut lines = Lines::new(endless);
        assert!(matches!(lines.next(), Some(Err(LineError::Bad { .. }))));
    }
}
