//! From gradients to parameters: the optimizer, the learning-rate schedule, loss scaling, and the
//! detection of outlier steps.

pub mod loss_scale;
pub mod lr_scale;
pub mod optimizer;
pub mod outlier;
pub mod schedule;
pub mod segments;
