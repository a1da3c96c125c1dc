//! The flags of each program.

pub mod trainer;
pub mod warpsmith;
