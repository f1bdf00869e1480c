//! Messages and services that profilerd speaks, generated at build time from `proto/*/*.proto`.
//!
//! The files are written for this project: they hold only what is used, with the package names,
//! field names and field numbers of the protocols. Wire paths are `/<package>.<Service>/<rpc>`.

pub mod parts;

include!(concat!(env!("OUT_DIR"), "/parts.rs"));

/// All of them as a `FileDescriptorSet`, for tests that walk over the fields.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors"));

/// SkyWalking's data collect protocol, package `skywalking.v3`.
#[expect(
    missing_docs,
    clippy::all,
    reason = "generated code; the .proto files carry the comments"
)]
#[allow(unused_lifetimes, reason = "generated code")]
pub mod skywalking {
    tonic::include_proto!("skywalking.v3");
}

/// The built-in OAP's own service, package `profilerd.v1`.
#[expect(
    missing_docs,
    clippy::all,
    reason = "generated code; the .proto files carry the comments"
)]
pub mod profilerd {
    tonic::include_proto!("profilerd.v1");
}

/// pprof's profile format, package `perftools.profiles`.
#[expect(
    missing_docs,
    reason = "generated code; the .proto file carries the comments"
)]
pub mod pprof {
    include!(concat!(env!("OUT_DIR"), "/perftools.profiles.rs"));
}
