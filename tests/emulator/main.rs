//! Tests of the emulated device: it does what it guarantees, and finds the bugs that it is for.

#[cfg(emulated)]
mod additions;
#[cfg(emulated)]
mod barriers;
#[cfg(emulated)]
mod basics;
#[cfg(emulated)]
mod clusters;
#[cfg(emulated)]
mod counting;
#[cfg(emulated)]
mod dependencies;
#[cfg(emulated)]
mod device;
#[cfg(emulated)]
mod flags;
#[cfg(emulated)]
mod fragments;
#[cfg(emulated)]
mod hopper;
#[cfg(emulated)]
mod lent;
#[cfg(emulated)]
mod mutants;
#[cfg(emulated)]
mod narrow;
#[cfg(emulated)]
mod shipped;
#[cfg(emulated)]
mod stores;
#[cfg(emulated)]
mod turns;

#[cfg(not(emulated))]
#[test]
#[ignore = "needs a C++ compiler (apt install g++)"]
fn every_test_of_the_emulated_device() {
    panic!("this was built without the emulated device");
}
