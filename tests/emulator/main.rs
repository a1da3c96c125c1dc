//! The emulated device itself.

mod basics;
mod device;
mod hopper;
