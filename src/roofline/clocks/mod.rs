//! The clocks of kernels, from their machine code alone: a clock for machines without a GPU.
//!
//! [`listing`] reads the disassembler's text with the control codes of each instruction, [`flow`]
//! finds loops, [`modes`] the branches that choose between variants, [`paths`] the paths through a
//! loop, [`machine`] holds the pipes and latencies of sm_90, and [`simulate`] runs warps over the
//! result. A kernel is divided into parts: one iteration of each innermost loop, and each stretch
//! of code between loops. Each part has three numbers:
//! - **issue**: clocks that the busiest pipe needs for all warps of a scheduler, or the scheduler
//!   needs to issue them. This is a lower bound.
//! - **latency**: clocks of one warp alone. A chain of loads, each waited for before the next,
//!   shows here.
//! - **clocks**: clocks of all warps of a scheduler together, which fill each other's stalls.
//!
//! Not modeled: bank conflicts, caches (loads come from idle memory, except for
//! [`machine::CACHED`]), lanes without work (all have some), and other SMs.

pub mod attention;
pub mod epilogue;
pub mod flow;
pub mod listing;
pub mod machine;
pub mod modes;
pub mod operands;
pub mod paths;
pub mod pointers;
pub mod simulate;
pub mod streams;
pub mod table;

mod parts;
mod text;

#[cfg(test)]
mod tests;

pub use parts::{Bound, Counts, Kernel, Launched, PARAMETERS_START, Part, Place, Role, Variant, analyze};
