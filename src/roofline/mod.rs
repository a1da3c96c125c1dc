//! A model of the machine: what each kernel of a training step moves and computes, and how long that takes on a GPU.
//!
//! [`kernels`] lists a step, kernel by kernel, with bytes and FLOPs; [`gpu`] holds what is known of each GPU; [`predict`]
//! puts the two together, with the epilogues of products by the [`clocks`] of our kernels' machine code; [`report`] adds up and
//! prints; [`record`] reads what was measured, to stand beside it; and [`counted`] what the emulated device counted, from which
//! come limits by the L2 cache and by shared memory. [`scaling`] goes on from there to many GPUs.
//! Nothing here runs a kernel. Times come in two sorts:
//! - **floor**: all FLOPs at the rate of one large matrix product, all bytes at the rate of a copy, whichever takes longer, no
//!   gaps. Nothing is faster without less work.
//! - **realistic**: what a good kernel reaches: tiles that do not fill the last wave, epilogues that do not hide (on Hopper those of
//!   our own kernels as they are), the share of the bandwidth that layernorm and its like get, attention at the rates the best
//!   published kernels have, a gap at each launch.

pub mod clocks;
pub mod counted;
pub mod gpu;
pub mod kernels;
pub mod predict;
pub mod record;
pub mod report;
pub mod scaling;

#[cfg(test)]
mod tests;
