//! The emulated device itself: that it does what it promises, and finds the bugs it is for.
#![cfg(emulated)]

mod basics;
mod counting;
mod device;
mod fragments;
mod hopper;
mod lent;
mod mutants;
mod shipped;
