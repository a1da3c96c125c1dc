//! AdamW and learning-rate schedules.

pub mod optimizer;
