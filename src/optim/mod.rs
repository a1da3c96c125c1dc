//! From gradients to parameters: AdamW, the learning-rate schedule, loss scaling, and the detection
//! of outlier steps.

pub mod loss_scale;
pub mod optimizer;
pub mod outlier;
pub mod schedule;
