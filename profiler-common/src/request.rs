//! Connections and request events: the maps `CONNS`, `PARTIAL_HEADS` and the ring `REQUESTS`.

/// Most bytes of a request head shipped with [`RequestEventKind::Start`].
pub const HEAD_MAX_BYTES: usize = 4096;
/// Most bytes of one write shipped with [`RequestEventKind::FirstWrite`] or [`RequestEventKind::MoreResponse`],
/// and most bytes of a response after which no more of it is shipped. Heads with cookies and a content policy
/// take one to two KiB.
pub const RESPONSE_HEAD_MAX_BYTES: usize = 2048;
/// Most bytes of an unfinished request line that are kept until the next read.
pub const PARTIAL_HEAD_MAX_BYTES: usize = 256;

/// Key of `CONNS` and `PARTIAL_HEADS`: one descriptor of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ConnKey {
    /// Process, host pid namespace.
    pub tgid: u32,
    /// File descriptor.
    pub fd: i32,
}

/// States of a connection ([`Conn::state`]).
///
/// ```text
/// IDLE --head--> OPEN --write--> RESPONDING --write--> RESPONDING
///  ^                                  |
///  +---- next head, after END --------+        any --shutdown(WR)--> HALF_CLOSED --close--> (gone)
/// ```
pub mod conn_state {
    /// No request is open.
    pub const IDLE: u32 = 0;
    /// A head was read, nothing was written yet.
    pub const OPEN: u32 = 1;
    /// At least one byte of the response was written.
    pub const RESPONDING: u32 = 2;
    /// The response direction is shut down; further heads are never served.
    pub const HALF_CLOSED: u32 = 3;
}

/// Bits of [`Conn::flags`].
pub mod conn_flag {
    /// The open request passed the prefilter of a task: events are shipped, the reader is tagged.
    pub const TRACKED: u32 = 1;
    /// Another thread than the reader of the head read or wrote on the connection.
    pub const HANDED_OFF: u32 = 1 << 1;
    /// The reader's tag was overwritten by, or overwrote, that of another open request.
    pub const INTERLEAVED: u32 = 1 << 2;
    /// The connection left HTTP/1 (101 Switching Protocols).
    pub const UPGRADED: u32 = 1 << 3;
    /// A second head was read before the first was answered.
    pub const PIPELINED: u32 = 1 << 4;
    /// The beginning of a request line waits in `PARTIAL_HEADS`.
    pub const PARTIAL: u32 = 1 << 5;
    /// No more bytes of the response are shipped: its head is whole, or its rest cannot be.
    pub const RESPONSE_SHIPPED: u32 = 1 << 6;
    /// The reader slept in `epoll_wait` before the response's end, in the set [`super::Conn::wait_fd`].
    pub const WAITED: u32 = 1 << 7;
    /// Lowest bit of the number of outbound calls that were shipped for the open request.
    pub const OUTBOUND_ONE: u32 = 1 << 8;
    /// Bits of that number; it stays at its highest.
    pub const OUTBOUND: u32 = 7 << 8;
    /// Lowest bit of the number of the response's writes that were shipped.
    pub const PIECES_ONE: u32 = 1 << 11;
    /// Bits of that number. A head in more pieces is not known.
    pub const PIECES: u32 = 7 << 11;
    /// The reader slept in `epoll_wait` since the response's latest write. What it waits for is its own business if
    /// no other write follows.
    pub const WAITS: u32 = 1 << 14;
}

/// State of one server connection: value of `CONNS`, written by the hooks that see requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Conn {
    /// Address of the kernel's `struct sock`: a change means the descriptor was reused. 0 while a hook fills the
    /// record in or takes it away.
    pub sk: u64,
    /// Inode of that socket, which distinguishes it from a later one at the same address; 0 where
    /// [`crate::setting_flag::SOCKET_CHECK`] is not set.
    pub inode: u64,
    /// Identity of the open request, unique while the programs stay loaded; 0 if none.
    pub request_id: u64,
    /// `CLOCK_MONOTONIC` when the read that completed the request line returned.
    pub start_ktime_ns: u64,
    /// Latest write of the response, 0 before the first: the request's end if nothing follows.
    pub last_write_ktime_ns: u64,
    /// Bytes of the response written so far (without interim `100 Continue` heads).
    pub written_bytes: u64,
    /// Last eight bytes of the response so far, the latest one in the highest byte; 0 where bytes are not known.
    pub tail: u64,
    /// Thread that read the head.
    pub reader_tid: u32,
    /// [`conn_state`].
    pub state: u32,
    /// [`conn_flag`] bits.
    pub flags: u32,
    /// Task slot of a tracked request.
    pub slot: u32,
    /// The set of [`conn_flag::WAITED`] and [`conn_flag::WAITS`]: an epoll descriptor.
    pub wait_fd: i32,
    /// [`crate::Target::program`] of the process. A record with another one is of a process or program that is gone,
    /// and as good as none.
    pub program: u32,
}

/// Beginning of a request line that did not arrive whole: value of `PARTIAL_HEADS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PartialHead {
    /// Used bytes of `bytes`.
    pub len: u32,
    /// Bytes of a PROXY header that are yet to be read; `len` is 0 then.
    pub skip: u32,
    /// `CLOCK_MONOTONIC` of the read that brought the first byte.
    pub ktime_ns: u64,
    /// The bytes read so far.
    pub bytes: [u8; PARTIAL_HEAD_MAX_BYTES],
}

/// Kinds of records in `REQUESTS` ([`RequestEventHeader::kind`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestEventKind {
    /// A request began; data: its head, at most [`HEAD_MAX_BYTES`].
    Start = 1,
    /// First bytes of the response were written; data: at most [`RESPONSE_HEAD_MAX_BYTES`].
    FirstWrite = 2,
    /// The request ended, see [`EndReason`]; no data.
    End = 3,
    /// A target process forked; `detail` is the child's tgid.
    Fork = 4,
    /// A target process executed another program.
    Exec = 5,
    /// The last thread of a target process exited.
    Exit = 6,
    /// A target process closed the descriptors `fd..=detail` with one call, the rest of a range whose
    /// beginning the program has looked at. The daemon ends the requests on them, of which it knows: no program
    /// can walk a range of any size. Records of other connections in the range stay until their descriptor is used
    /// again, or room is needed.
    CloseRange = 7,
    /// The request's thread wrote a request head of its own, before it answered; data: that head, at most
    /// [`HEAD_MAX_BYTES`]. Only of targets with [`crate::target_flag::AGENT`], and not more than
    /// [`conn_flag::OUTBOUND`] counts.
    Outbound = 8,
    /// The next bytes of a response whose head may not be whole yet; data as with `FirstWrite`.
    MoreResponse = 9,
}

impl RequestEventKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_u32(kind: u32) -> Option<Self> {
        Some(match kind {
            1 => Self::Start,
            2 => Self::FirstWrite,
            3 => Self::End,
            4 => Self::Fork,
            5 => Self::Exec,
            6 => Self::Exit,
            7 => Self::CloseRange,
            8 => Self::Outbound,
            9 => Self::MoreResponse,
            _ => return None,
        })
    }
}

/// Why a request ended (`detail` of an [`RequestEventKind::End`] event).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EndReason {
    /// The next head was read: on the connection, or on another one by the thread that had begun the answer.
    NextHead = 1,
    /// The client is gone: a read returned 0, and nothing can be sent any more.
    PeerClosed = 2,
    /// The descriptor was closed.
    Closed = 3,
    /// Another descriptor was duplicated over it.
    DupOver = 4,
    /// The response direction was shut down.
    Shutdown = 5,
    /// The descriptor now names another socket; its close was not seen.
    SocketReplaced = 6,
    /// The thread that served it exited.
    ThreadExit = 7,
    /// The process executed another program.
    Exec = 8,
    /// The connection switched protocols.
    Upgraded = 9,
}

impl EndReason {
    /// The reason with this number, if there is one.
    #[must_use]
    pub const fn from_u32(reason: u32) -> Option<Self> {
        Some(match reason {
            1 => Self::NextHead,
            2 => Self::PeerClosed,
            3 => Self::Closed,
            4 => Self::DupOver,
            5 => Self::Shutdown,
            6 => Self::SocketReplaced,
            7 => Self::ThreadExit,
            8 => Self::Exec,
            9 => Self::Upgraded,
            _ => return None,
        })
    }
}

/// Values of `CANCELS`: how the daemon lets a request go.
///
/// From then on its thread is not sampled. The tag itself is removed by the thread, when it next
/// leaves the CPU: nobody else can tell this request's tag from that of the next one, which the
/// thread may be setting at the same moment.
pub mod cancel {
    /// It does not.
    pub const NO: u32 = 0;
    /// The request is not tracked any more; no further event of it is sent.
    pub const REQUEST: u32 = 1;
}

/// Bits of [`RequestEventHeader::flags`].
pub mod event_flag {
    /// The head is longer than the bytes shipped.
    pub const HEAD_CUT: u32 = 1;
    /// The request line came in several reads and was joined.
    pub const JOINED: u32 = 1 << 1;
    /// The writer of this event is not the thread that read the head.
    pub const OTHER_THREAD: u32 = 1 << 2;
    /// The thread already carried the tag of another open request.
    pub const INTERLEAVED: u32 = 1 << 3;
    /// A second head was read before the response; the first one goes on.
    pub const PIPELINED: u32 = 1 << 4;
    /// The socket check could not be made (offsets unknown); only the content speaks for a request.
    pub const SOCKET_UNCHECKED: u32 = 1 << 5;
    /// The response's last bytes are those of a last chunk, see [`super::ends_chunks`].
    pub const LAST_CHUNK: u32 = 1 << 6;
    /// [`super::conn_flag::WAITED`].
    pub const WAITED: u32 = 1 << 7;
}

/// Whether a response with these last bytes ([`Conn::tail`]) has ended if it is chunked: they are a chunk of
/// size 0 without extension and trailers (RFC 9112 §7.1), behind the end of a line or behind bytes that are not known.
///
/// Data may look the same, up to the end of a write in the middle of a chunk.
#[must_use]
pub const fn ends_chunks(tail: u64) -> bool {
    const LAST: u64 = u64::from_le_bytes(*b"\0\0\x000\r\n\r\n");
    const LINE_END: u64 = u16::from_le_bytes(*b"\r\n") as u64;
    let before = tail & 0xff_ffff;
    tail & !0xff_ffff == LAST && (before >> 8 == LINE_END || before == 0)
}

/// First bytes of every record in `REQUESTS`; `data_len` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RequestEventHeader {
    /// [`RequestEventKind`].
    pub kind: u32,
    /// [`event_flag`] bits.
    pub flags: u32,
    /// The request, 0 for process events.
    pub request_id: u64,
    /// `CLOCK_MONOTONIC` of the event.
    pub ktime_ns: u64,
    /// Process, host pid namespace.
    pub tgid: u32,
    /// Thread the event happened in.
    pub tid: u32,
    /// File descriptor of the connection, -1 for process events.
    pub fd: i32,
    /// Task slot.
    pub slot: u32,
    /// Kind-specific: [`EndReason`], the child's tgid, the last descriptor of a closed range, or of a response's
    /// bytes [`Conn::wait_fd`].
    pub detail: u32,
    /// Bytes that follow this header.
    pub data_len: u32,
    /// [`Conn::start_ktime_ns`].
    pub start_ktime_ns: u64,
    /// [`Conn::last_write_ktime_ns`].
    pub last_write_ktime_ns: u64,
    /// [`Conn::written_bytes`], including the write of this event.
    pub written_bytes: u64,
}

const _: () = assert!(size_of::<ConnKey>() == 8);
const _: () = assert!(size_of::<Conn>() == 80);
const _: () = assert!(size_of::<PartialHead>() == 16 + PARTIAL_HEAD_MAX_BYTES);
const _: () = assert!(size_of::<RequestEventHeader>() == 72);

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a last chunk is one behind a line's end or behind nothing known, and nothing else.
    #[test]
    fn a_last_chunk_is_told_by_the_last_bytes() {
        for (bytes, ends) in [
            (b"x\r\n0\r\n\r\n", true),
            (b"\n\r\n0\r\n\r\n", true),
            (b"\0\0\x000\r\n\r\n", true),
            (b"\r\n10\r\n\r\n", false),
            (b"\0\0a0\r\n\r\n", false),
            (b"x\r\n0\r\n\r\0", false),
            (b"12345678", false),
            (b"\0\0\0\0\0\0\0\0", false),
        ] {
            assert_eq!(ends_chunks(u64::from_le_bytes(*bytes)), ends, "{bytes:?}");
        }
    }
}
