//! What happens between a gradient and a parameter, apart from the arithmetic on the device: how fast to learn at a
//! step, and whether a step looks sane.

pub mod outlier;
pub mod schedule;
