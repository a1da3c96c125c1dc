//! Devices: implementations of [`Ops`](crate::ops::Ops). Only they, and `parallel`, contain `unsafe`.

pub mod compare;
pub mod cpu;
pub mod cuda;
mod lent;
pub mod open;
