//! Command lines: the flags of each program, their checks, and their errors.
//!
//! Parsing never prints and never exits.

pub mod check;
pub mod flags;
mod parse;
pub mod readme;
mod schedule;
pub mod values;
mod version;

pub use check::ModelSource;
pub use flags::trainer::Program;
pub use parse::{Parsed, parse_flags};
