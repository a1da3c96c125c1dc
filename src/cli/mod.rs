//! Command lines: the flags of each program, and how a wrong one is refused.
//!
//! Parsing never prints and never exits.

pub mod check;
mod parse;
pub mod readme;
pub mod tools;
pub mod train;
pub mod values;

pub use check::ModelSource;
pub use parse::{Parsed, flags};
pub use train::Program;
