//! tmp
pub mod auth;
