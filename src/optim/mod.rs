//! What happens between a gradient and a parameter: AdamW, how fast to learn at a step, and whether a step looks sane.

pub mod loss_scale;
pub mod optimizer;
pub mod outlier;
pub mod schedule;
