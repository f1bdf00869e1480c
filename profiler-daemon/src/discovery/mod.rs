//! What services are asked for: counts and durations of one look, and the endpoints that are known from all.
//!
//! In:  [`SeenRequest`](crate::model::SeenRequest)s of a look
//! Out: [`EndpointFigures`](crate::model::EndpointFigures) by [`Traffic`]; names for an OAP and for people by [`Catalogue`]
//! Lost: requests to endpoints over the limits are counted under one name, [`OTHERS`]
//!
//! [`Pace`] decides when the daemon looks.

mod catalogue;
mod pace;
mod traffic;

pub use catalogue::{Catalogue, KnownEndpoint};
pub use pace::{Pace, Wanted};
pub use traffic::{OTHERS, Traffic};
