//! The emulated device itself: that it does what it promises, and finds the bugs it is for.

mod basics;
mod device;
mod hopper;
mod mutants;
