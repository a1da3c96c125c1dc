//! A model of the machine: the bytes and FLOPs of each kernel of a training step, and the time they
//! take on a GPU.
//!
//! [`recording`] runs the trainer's step on a recorder, and [`calls`] gives the [`kernels`] of its
//! calls with bytes and FLOPs. [`gpu`] describes each GPU. [`predict`] combines the two; for
//! Hopper, `hopper` does it with the [`clocks`] of our kernels' machine code. [`report`] sums and
//! prints.
//! [`record`] reads measured times, which are shown next to the predictions. [`counted`] reads the
//! counts of the emulated device, which give limits by the L2 cache and by shared memory.
//! [`scaling`] extends the prediction to many GPUs, and [`running`] makes it for the operations of
//! a step that runs.
//!
//! Nothing here runs a kernel. Times come in two kinds:
//! - **floor**: all FLOPs at the rate of one large matmul or all bytes at the rate of a copy,
//!   whichever takes longer, without gaps. Only less work would be faster.
//! - **realistic**: on Hopper, the time of our own kernels, from the clocks of their machine code,
//!   at the clock of SMs in a step. Elsewhere the time of good kernels: partial last waves, exposed
//!   epilogues, the share of the bandwidth that layernorm and similar kernels reach, and attention
//!   at the rates of the best published kernels. Both have a gap at each launch.

pub mod calls;
pub mod clocks;
pub mod counted;
pub mod gpu;
mod hopper;
pub mod kernels;
pub mod predict;
pub mod record;
pub mod recording;
pub mod report;
pub mod running;
pub mod scaling;

#[cfg(test)]
mod calibration;
#[cfg(test)]
mod tests;
