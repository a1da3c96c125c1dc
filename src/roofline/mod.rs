//! A model of the machine: the bytes and FLOPs of each kernel of a training step, and the time they
//! take on a GPU.
//!
//! [`recording`] runs the trainer's step on a recorder, and [`calls`] gives the [`kernels`] of its
//! calls with bytes and FLOPs. [`gpu`] describes each GPU. [`predict`] combines the two and takes
//! matmul epilogues from the [`clocks`] of our kernels' machine code. [`report`] sums and prints.
//! [`record`] reads measured times, which are shown next to the predictions. [`counted`] reads the
//! counts of the emulated device, which give limits by the L2 cache and by shared memory.
//! [`scaling`] extends the prediction to many GPUs.
//!
//! Nothing here runs a kernel. Times come in two kinds:
//! - **floor**: all FLOPs at the rate of one large matmul or all bytes at the rate of a copy,
//!   whichever takes longer, without gaps. Only less work would be faster.
//! - **realistic**: the time of a good kernel, which includes partial last waves, exposed epilogues
//!   (on Hopper those of our own kernels), the share of the bandwidth that layernorm and similar
//!   kernels reach, attention at the rates of the best published kernels, and a gap at each launch.

pub mod calls;
pub mod clocks;
pub mod counted;
pub mod gpu;
pub mod kernels;
pub mod predict;
pub mod record;
pub mod recording;
pub mod report;
pub mod scaling;

#[cfg(test)]
mod tests;
