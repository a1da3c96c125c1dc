//! The typed kernel table: every kernel is a Rust function, so a launch with a wrong argument does not compile.
//!
//! Each operation's file declares the kernels it launches with [`kernels!`]. That the declaration is also what the `.cu`
//! file says is checked by a test, against the types that the C++ compiler saw.

use super::tensor_map::{TensorMap, TiledMatrix};
use anyhow::{Result, bail};
use std::ffi::c_void;
use std::marker::PhantomData;

/// The element type a kernel file was compiled for: bf16, f16 or f32 (llm.c's `floatX`).
#[derive(Clone, Copy, Debug)]
pub enum FloatX {}

/// A device address of elements of one type.
#[derive(Debug)]
#[repr(transparent)]
pub struct Ptr<T> {
    address: u64,
    element: PhantomData<T>,
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ptr<T> {}
impl<T> PartialEq for Ptr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}
impl<T> Eq for Ptr<T> {}

impl<T> Ptr<T> {
    /// For an output that is not wanted or an input that is not there.
    pub const NULL: Self = Ptr::new(0);

    /// The caller vouches for the type; [`Memory`](super::memory::Memory) checks it for tensors.
    pub const fn new(address: u64) -> Self {
        Ptr { address, element: PhantomData }
    }

    pub const fn address(self) -> u64 {
        self.address
    }
}

/// A type that can be passed to a kernel by value, and what C++ calls it (without `const`).
pub trait KernelArg: Copy {
    const TYPE: &'static str;
}

macro_rules! kernel_args {
    ($($rust:ty => $cpp:literal),* $(,)?) => { $(impl KernelArg for $rust { const TYPE: &'static str = $cpp; })* };
}
kernel_args! {
    Ptr<FloatX> => "floatX*",
    Ptr<f32> => "float*",
    Ptr<i32> => "int*",
    Ptr<u32> => "unsigned*",
    i32 => "int",
    u32 => "unsigned",
    u64 => "unsigned long long",
    f32 => "float",
    TensorMap => "TensorMap",
}

/// One argument of a launch: where its value lies, and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    pub value: *const c_void,
    pub bytes: usize,
}

impl Arg {
    pub fn new<T: KernelArg>(value: &T) -> Self {
        Arg { value: std::ptr::from_ref(value).cast(), bytes: size_of::<T>() }
    }
}

/// A kernel as the op layer knows it.
#[derive(Debug)]
pub struct KernelSpec {
    pub name: &'static str,
    /// Under `kernels/`.
    pub file: &'static str,
    /// C++ types of the parameters, without `const`, and their names.
    pub params: &'static [(&'static str, &'static str)],
}

/// The place of a parameter in the constant bank from which a kernel reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub address: u32,
    pub is_pointer: bool,
}

impl KernelSpec {
    /// All parameters, if the first may lie at `start`.
    pub fn parameters(&self, start: u32) -> Vec<Parameter> {
        let mut next = start;
        let parameter = |&(of, name): &(&str, &'static str)| {
            let (size, align) = match of {
                "int" | "unsigned" | "float" => (4, 4),
                "TensorMap" => (size_of::<TensorMap>(), align_of::<TensorMap>()),
                _ => (8, 8),
            };
            let address = next.next_multiple_of(align as u32);
            next = address + size as u32;
            Parameter { name, address, is_pointer: of.ends_with('*') }
        };
        self.params.iter().map(parameter).collect()
    }
}

/// The geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
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
        Launch { grid, threads, shared_bytes: 0 }
    }

    pub fn shared(self, bytes: usize) -> Self {
        Launch { shared_bytes: u32::try_from(bytes).expect("less shared memory than 4 GiB"), ..self }
    }
}

/// What carries out launches, in order.
pub trait Launcher {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()>;

    /// What a kernel that copies boxes of a matrix by TMA takes for it.
    ///
    /// # Errors
    /// If the hardware has no TMA, or it cannot copy such boxes.
    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        bail!("this device has no tensor maps, not even of {matrix:?}")
    }
}

/// Declares the kernels of one file under `kernels/`: for each a function in the module `kernel` that launches it, and
/// all of them in `KERNELS`.
macro_rules! kernels {
    ($file:literal: $( $(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?); )+) => {
        mod kernel {
            #[allow(unused_imports)]
            use super::*;
            use $crate::device::cuda::kernel::{Arg, KernelArg, KernelSpec, Launch, Launcher};
            $(
                $(#[$doc])*
                #[allow(clippy::too_many_arguments)]
                pub fn $name(device: &mut dyn Launcher, launch: Launch, $($arg: $type),*) -> anyhow::Result<()> {
                    device.launch(&specs::$name, launch, &[$(Arg::new(&$arg)),*])
                }
            )+
            #[allow(non_upper_case_globals)]
            pub mod specs {
                use super::*;
                $(pub static $name: KernelSpec = KernelSpec {
                    name: stringify!($name),
                    file: $file,
                    params: &[$((<$type as KernelArg>::TYPE, stringify!($arg))),*],
                };)+
            }
        }
        /// The kernels of this operation.
        pub static KERNELS: &[&$crate::device::cuda::kernel::KernelSpec] = &[$(&kernel::specs::$name),+];
    };
}
pub(crate) use kernels;
