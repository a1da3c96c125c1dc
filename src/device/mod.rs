//! Devices: implementations of [`Ops`](crate::ops::Ops). Most of the crate's `unsafe` code is here.

pub mod about;
pub mod compare;
pub mod cpu;
pub mod cuda;
pub mod open;
