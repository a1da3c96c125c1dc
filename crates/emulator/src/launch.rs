//! A launch as every CUDA driver takes it: geometry and arguments.

use std::ffi::c_void;

/// One argument of a launch: the address of its value, and its size.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    pub value: *const c_void,
    pub bytes: usize,
}

impl Arg {
    /// An argument that borrows `value`, which must live until the launch returns.
    pub fn new<T: Copy>(value: &T) -> Self {
        Arg { value: std::ptr::from_ref(value).cast(), bytes: size_of::<T>() }
    }
}

/// The geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// Whether blocks may start before earlier launches have ended (CUDA's programmatic stream
    /// serialization): the kernel itself waits for them.
    pub programmatic: bool,
}

impl Launch {
    /// A one-dimensional grid without dynamic shared memory.
    ///
    /// # Panics
    /// If there are more blocks than a grid can have.
    pub fn new(blocks: usize, threads: u32) -> Self {
        Launch::grid([blocks, 1, 1], threads)
    }

    /// # Panics
    /// If there are more blocks than a grid can have.
    pub fn grid(blocks: [usize; 3], threads: u32) -> Self {
        let grid = blocks.map(|n| u32::try_from(n).expect("a grid of fewer than 2^32 blocks"));
        Launch { grid, threads, shared_bytes: 0, programmatic: false }
    }

    pub fn shared(self, bytes: usize) -> Self {
        Launch { shared_bytes: u32::try_from(bytes).expect("less shared memory than 4 GiB"), ..self }
    }

    /// A launch of a kernel that waits for earlier launches itself.
    pub fn programmatic(self) -> Self {
        Launch { programmatic: true, ..self }
    }
}
