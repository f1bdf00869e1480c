//! A response, as far as it is written: its status, its latest byte, and whether more is to come.

use profiler_common::{Conn, ends_chunks};

use super::response::{Framing, ResponseHead};

/// How long after a last chunk no byte may follow. Data may look like one, at the end of a write in the middle of
/// a chunk whose rest is then written at once.
const LAST_CHUNK_NS: u64 = 50_000_000;

/// What has been seen of a response.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) head: Option<ResponseHead>,
    /// At least one byte was written.
    pub(super) has_begun: bool,
    /// `CLOCK_MONOTONIC`, 0 before the first write.
    pub(super) last_write_ktime_ns: u64,
    pub(super) written_bytes: u64,
    /// The latest bytes look like a last chunk.
    has_last_chunk: bool,
    /// First bytes, until the head is whole.
    bytes: Vec<u8>,
}

impl Answer {
    /// Takes note of the latest write; 0 is none.
    pub(super) fn on_write(
        &mut self,
        last_write_ktime_ns: u64,
        written_bytes: u64,
        has_last_chunk: bool,
    ) {
        self.has_begun |= last_write_ktime_ns != 0;
        if last_write_ktime_ns >= self.last_write_ktime_ns {
            self.has_last_chunk = has_last_chunk;
        }
        self.last_write_ktime_ns = self.last_write_ktime_ns.max(last_write_ktime_ns);
        self.written_bytes = self.written_bytes.max(written_bytes);
    }

    /// Takes note of what the kernel side has seen of it.
    pub(super) fn on_conn(&mut self, conn: &Conn) {
        let has_last_chunk = ends_chunks(conn.tail);
        self.on_write(conn.last_write_ktime_ns, conn.written_bytes, has_last_chunk);
    }

    /// Takes bytes, with which so many are written, of the response to a request with this method.
    pub(super) fn on_bytes(&mut self, bytes: &[u8], written_bytes: u64, method: &str) {
        if self.framing().is_some() {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        let head = ResponseHead::parse(&self.bytes, method);
        // Behind a gap nothing can be read.
        let has_gap = self.bytes.len() as u64 != written_bytes;
        if !has_gap || self.head.is_none() {
            self.head = head;
        }
        if has_gap || self.framing().is_some() {
            self.bytes = Vec::new();
        }
    }

    fn framing(&self) -> Option<Framing> {
        self.head?.framing
    }

    /// How long it is has been read from its head.
    pub(super) fn has_length(&self) -> bool {
        matches!(self.framing(), Some(Framing::Length(_)))
    }

    /// All its bytes are written, as far as its framing and the latest bytes tell.
    pub(super) fn is_complete(&self) -> bool {
        let is_whole = match self.framing() {
            Some(Framing::Length(total)) => self.written_bytes >= total,
            Some(Framing::Chunked) => self.has_last_chunk,
            Some(Framing::UntilClose) | None => false,
        };
        self.has_begun && is_whole
    }

    /// The same, and nothing speaks against it any more.
    pub(super) fn is_over(&self, now_ktime_ns: u64) -> bool {
        let quiet_ns = now_ktime_ns.saturating_sub(self.last_write_ktime_ns);
        self.is_complete() && (self.has_length() || quiet_ns >= LAST_CHUNK_NS)
    }

    /// More of it is expected. Without known framing this is unknown.
    pub(super) fn is_owed(&self) -> bool {
        !self.has_begun || self.framing().is_some() && !self.is_complete()
    }

    /// More of it is owed, and the connection's end would not complete it.
    pub(super) fn is_owed_at_close(&self) -> bool {
        self.is_owed() && self.framing() != Some(Framing::UntilClose)
    }
}
