//! Which processes and request lines a task is about: the maps `TARGETS` and `RULES`.

use crate::line::Line;

/// Task slots: how many tasks can be live at once. A slot indexes `RULES` and `COUNTERS`.
pub const MAX_TASKS: u32 = 16;

/// Longest literal the prefilter compares, in bytes.
pub const LITERAL_MAX_BYTES: usize = 64;

/// HTTP request methods, as the kernel side distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Method {
    /// `GET`
    Get = 0,
    /// `POST`
    Post = 1,
    /// `PUT`
    Put = 2,
    /// `PATCH`
    Patch = 3,
    /// `DELETE`
    Delete = 4,
    /// `HEAD`
    Head = 5,
    /// `OPTIONS`
    Options = 6,
    /// `TRACE`
    Trace = 7,
    /// `CONNECT`
    Connect = 8,
    /// Any other token: WebDAV's methods, an application's own, also `get`, since methods are case-sensitive (RFC 9110
    /// §9.1). The daemon compares it.
    Other = 9,
}

impl Method {
    /// All methods that have a number of their own, in index order.
    pub const ALL: [Self; 9] = [
        Self::Get,
        Self::Post,
        Self::Put,
        Self::Patch,
        Self::Delete,
        Self::Head,
        Self::Options,
        Self::Trace,
        Self::Connect,
    ];

    /// The method of a token.
    #[must_use]
    pub fn from_token(token: &str) -> Self {
        let own = Self::ALL.into_iter().find(|method| method.token() == token);
        own.unwrap_or(Self::Other)
    }

    /// The token as it stands in a request line, without the space that follows it; of [`Self::Other`], none.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Connect => "CONNECT",
            Self::Other => "",
        }
    }
}

/// Bit of a method in [`Rule::method_mask`].
#[must_use]
pub const fn method_bit(method: Method) -> u32 {
    1 << method as u32
}

/// [`method_bit`]s of all methods.
pub const ANY_METHOD: u32 = (method_bit(Method::Other) << 1) - 1;

/// Bits of [`Rule::flags`].
pub mod rule_flag {
    /// The slot holds a live rule.
    pub const LIVE: u32 = 1;
    /// Count heads but tag nothing more: the task has its number of requests.
    pub const COUNT_ONLY: u32 = 1 << 1;
    /// After the literal the path must end, not go on.
    pub const EXACT: u32 = 1 << 2;
}

/// Prefilter of one task: value of `RULES` at the task's slot, written by the daemon.
///
/// It may pass a request that the exact match in the daemon refuses, never the other way round.
/// A target in absolute form (`GET http://host/path`) always passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// [`rule_flag`] bits.
    pub flags: u32,
    /// [`method_bit`]s of the methods that match.
    pub method_mask: u32,
    /// Used bytes of `literal`; 0 matches every target.
    pub literal_len: u32,
    /// Zero.
    pub pad: u32,
    /// First bytes of the target as it stands on the wire.
    pub literal: [u8; LITERAL_MAX_BYTES],
}

impl Rule {
    /// A slot without a task.
    pub const EMPTY: Self = Self {
        flags: 0,
        method_mask: 0,
        literal_len: 0,
        pad: 0,
        literal: [0; LITERAL_MAX_BYTES],
    };

    /// Whether the rule lets a request line pass, whose bytes are asked for by their index.
    ///
    /// A target that is not a path passes, and one in which a percent sign or a semicolon stands where the literal
    /// has something else: the daemon decodes the one and cuts parameters off at the other.
    #[inline(always)]
    pub fn passes(&self, line: Line, byte: impl Fn(u64) -> u8) -> bool {
        if self.flags & rule_flag::LIVE == 0 || self.method_mask >> line.method() & 1 == 0 {
            return false;
        }
        let offset = line.target_offset();
        if byte(offset) != b'/' {
            return true;
        }
        let mut index = 0;
        while index < LITERAL_MAX_BYTES as u64 {
            if index >= u64::from(self.literal_len) {
                break;
            }
            let found = byte(offset + index);
            if found != self.literal[index as usize] {
                return matches!(found, b'%' | b';');
            }
            index += 1;
        }
        self.flags & rule_flag::EXACT == 0
            || matches!(
                byte(offset + index),
                b' ' | b'?' | b';' | b'#' | b'%' | b'\r' | b'\n'
            )
    }
}

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// A SkyWalking agent is in the process: calls that a request makes itself name its segment.
    pub const AGENT: u32 = 1;
}

/// A process that serves at least one live task: value of `TARGETS`, key tgid (host pid namespace).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Bit `1 << slot` for every task this process belongs to.
    pub task_mask: u32,
    /// [`target_flag`] bits.
    pub flags: u32,
    /// Tells the program that the process runs from those that had its id before: the time at which it became a
    /// target, in milliseconds or so ([`PROGRAM_UNIT_BITS`]), and one more with each program it executes.
    pub program: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of a time in nanoseconds that [`Target::program`] has not. The rest lasts for 52 days; then a process would
/// need the id of one before, and its very number.
pub const PROGRAM_UNIT_BITS: u32 = 20;

const _: () = assert!(size_of::<Rule>() == 16 + LITERAL_MAX_BYTES);
const _: () = assert!(size_of::<Target>() == 16);
