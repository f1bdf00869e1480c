//! Turns samples into stacks of addresses.
//!
//! In:  [`Captured`](crate::model::Captured) registers, stack bytes and interpreter frames
//! Out: [`AddrFrame`](crate::model::AddrFrame)s, innermost first, to [`crate::symbolize`]
//! Lost: stacks that end before their root say why ([`UnwindEnd`](crate::model::UnwindEnd))
//!
//! [`native`] walks machine code, [`python`] the interpreter's frames; [`merge`] makes one stack of
//! both.

pub mod merge;
pub mod native;
pub mod python;

pub use native::{NativeFrame, Unwinder, Unwound};
