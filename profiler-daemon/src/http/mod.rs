//! HTTP/1.1 in both directions, without TLS: what every server and client of ours has in common.
//!
//! In:  for [`server`] a listening socket and an [`Answer`]; for [`client`] an address and a request
//! Out: responses
//! Lost: nothing; what is too slow or too long is an error

pub(crate) mod client;
mod host;
pub(crate) mod server;

pub(crate) use server::{Answer, HttpServer};
