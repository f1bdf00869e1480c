//! Turns request events of the kernel side into open and finished requests.
//!
//! In:  [`crate::model::RequestEvent`] from [`crate::kernel`]
//! Out: [`Action`]s: begin, cancel, finish; carried out by [`crate::app`]
//! Lost: every request that is not reported has a [`crate::model::Counter`] saying why
//!
//! [`endpoint`] decides whether a request belongs to a task (`path` about its path), [`template`] what a request's own
//! endpoint is called, [`head`] and [`response`] read the bytes
//! on the wire, [`sw8`] the caller's trace context, [`tracker`] is the state machine, `ending` its last
//! steps, `event_loop` the threads whose requests cannot be told apart. [`RequestWatch`] follows all requests to count and
//! measure them.

mod answer;
mod ending;
pub mod endpoint;
mod event_loop;
pub mod head;
mod near;
mod open;
mod path;
pub mod response;
pub mod sw8;
mod task;
pub mod template;
pub mod tracker;
mod watch;

pub use endpoint::{Endpoint, EndpointError};
pub use head::RequestHead;
pub use near::unasked_endpoint;
pub use template::Templates;
pub use tracker::{Action, ConnView, RequestTracker, TrackerLimits};
pub use watch::RequestWatch;
