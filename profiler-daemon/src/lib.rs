//! profilerd as a library: the pipeline of docs/architecture.md, one module per arrow.
//!
//! `model` holds the nouns; the stages import `model`, `process` and [`frames`], never each other; only `app`
//! wires them. Heavy dependencies have one door each: aya in [`kernel`], blazesym in [`symbolize`],
//! tonic in [`oap`] and [`embedded`], clap in [`cli`], rustls in [`kubernetes`] and [`oap`], prometheus-client
//! in [`metrics`].

pub mod analyze;
pub mod app;
pub mod bind;
pub mod cli;
pub mod config;
mod connection;
pub mod discovery;
pub mod doctor;
pub mod embedded;
pub mod frames;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
pub mod guard;
mod http;
pub mod kernel;
pub mod kubernetes;
pub mod limit;
mod log;
pub mod metrics;
pub mod model;
pub mod oap;
pub mod output;
pub mod process;
mod quiet_panic;
pub mod request;
pub mod sampler;
pub mod snapshot;
pub mod state;
pub mod symbolize;
pub mod timeline;
pub mod unwind;
pub mod usage;
