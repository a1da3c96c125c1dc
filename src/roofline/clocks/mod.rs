//! The clocks of kernels, from their machine code alone: a clock for who has no GPU.
//!
//! [`listing`] reads the disassembler's text with each instruction's control codes, [`flow`] finds loops, [`modes`] the branches
//! that choose between variants, [`paths`] the ways through, [`machine`] knows pipes and latencies of sm_90, and [`simulate`] lets
//! warps run over all of it. A kernel comes out as parts: one turn of each innermost loop, and each stretch of code between loops.
//! Each part has three numbers:
//! - **issue**: clocks that the fullest pipe needs for all warps of a scheduler, or the scheduler to issue them: never less.
//! - **latency**: clocks of one warp alone, which waits for what it loaded: a chain of loads, each waited for, shows here.
//! - **clocks**: of all warps of a scheduler together, who fill each other's waits.
//!
//! Not known are: bank conflicts, caches (loads come from memory that is not busy, but for [`machine::CACHED`]), lanes without work
//! (all have some), and other multiprocessors.

pub mod epilogue;
pub mod flow;
pub mod listing;
pub mod machine;
pub mod modes;
pub mod operands;
pub mod paths;
pub mod pointers;
pub mod simulate;
pub mod table;

mod parts;
mod text;

#[cfg(test)]
mod tests;

pub use parts::{Bound, Counts, Kernel, Launched, PARAMETERS_START, Part, Place, Role, Variant, analyze};
