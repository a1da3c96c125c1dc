//! From gradients to parameters: the optimizer, the schedules of the learning rate and of the
//! batch, loss scaling, and the detection of outlier steps.

pub mod batch;
pub mod loss_scale;
pub mod lr_scale;
pub mod optimizer;
pub mod outlier;
pub mod schedule;
pub mod segments;
