//! What all servers have in common: who gets a connection, and how long it may stand still.
//!
//! In:  a listening socket
//! Out: connections, each with its [`Place`]
//! Lost: connections over a limit, closed at once; the log says so once a minute
//!
//! | file | says |
//! |---|---|
//! | `peer` | who is at the other end: a user of this host, or another host |
//! | `places` | how many connections there may be, in all and for one peer |
//! | `accept` | the loop that accepts; what happens without descriptors |
//! | `watched` | a stream that fails when it stands still |
//! | `trust` | the other direction: whether a port of this host may be sent a secret |
//!
//! A limit in all would let one client lock out all others, so one peer gets a part of the places. Clients on the
//! loopback all have one address; there the user is the peer, which the kernel tells for each socket.

mod accept;
mod peer;
mod places;
pub(crate) mod trust;
mod watched;

pub(crate) use accept::{Accepted, Acceptor};
pub(crate) use peer::Peer;
pub(crate) use places::{Limits, Place};
pub(crate) use watched::{Patience, Watched};
