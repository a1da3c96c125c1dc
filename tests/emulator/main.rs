//! Tests of the emulated device: it does what it guarantees, and finds the bugs that it is for.
#![cfg(emulated)]

mod basics;
mod counting;
mod device;
mod fragments;
mod hopper;
mod lent;
mod mutants;
mod shipped;
