//! The commands that make a graph of the emulated device.

use crate::device::cuda::kernel::{Arg, Launch};

/// One of them, with all it needs.
pub enum Command {
    Launch { kernel: &'static str, launch: Launch, args: Vec<Value> },
    Copy { dst: u64, src: u64, bytes: usize },
    SetBytes { dst: u64, value: u8, bytes: usize },
}

/// The value of an argument, aligned for any type.
#[repr(align(64))]
pub struct Value {
    storage: [u8; Value::MOST],
    bytes: usize,
}

impl Value {
    /// The size of the largest, a tensor map.
    const MOST: usize = 128;

    pub fn new(arg: &Arg) -> Self {
        assert!(arg.bytes <= Self::MOST, "an argument of {} bytes", arg.bytes);
        let mut value = Value { storage: [0; Self::MOST], bytes: arg.bytes };
        // SAFETY: the argument borrows that many bytes, which fit.
        unsafe {
            std::ptr::copy_nonoverlapping(arg.value.cast(), value.storage.as_mut_ptr(), arg.bytes);
        }
        value
    }

    pub fn arg(&self) -> Arg {
        Arg { value: self.storage.as_ptr().cast(), bytes: self.bytes }
    }
}
