//! The typed kernel table: every kernel is a Rust function, so a launch with a wrong argument does
//! not compile.
//!
//! Each operation's file declares the kernels it launches with [`kernels!`]. A test compares the
//! declarations with the types that the C++ compiler saw in the `.cu` files.
//!
//! Arguments, geometry and tensor maps are plain types of the emulator's crate, which cannot depend
//! on this one. NVIDIA's driver takes the same, so neither needs conversions.

use super::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::Dropout;
use anyhow::{Result, bail};
pub use cuda_emulator::{Arg, Launch};
use std::marker::PhantomData;

/// The element type that a kernel file was compiled for: bf16, f16 or f32 (llm.c's `floatX`).
#[derive(Clone, Copy, Debug)]
pub enum FloatX {}

/// bf16, whatever the file was compiled for.
#[derive(Clone, Copy, Debug)]
pub enum Bf16 {}

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
    /// The pointer for an output that is not wanted or an input that does not exist.
    pub const NULL: Self = Ptr::new(0);

    /// Makes a pointer whose type the caller vouches for; [`Memory`](super::memory::Memory) checks
    /// it for tensors.
    pub const fn new(address: u64) -> Self {
        Ptr { address, element: PhantomData }
    }

    pub const fn address(self) -> u64 {
        self.address
    }
}

/// A type that can be passed to a kernel by value, with its name in C++ (without `const`).
pub trait KernelArg: Copy {
    const TYPE: &'static str;
}

macro_rules! kernel_args {
    ($($rust:ty => $cpp:literal),* $(,)?) => { $(impl KernelArg for $rust { const TYPE: &'static str = $cpp; })* };
}
kernel_args! {
    Ptr<FloatX> => "floatX*",
    Ptr<Bf16> => "bf16*",
    Ptr<f32> => "float*",
    Ptr<i32> => "int*",
    Ptr<u32> => "unsigned*",
    i32 => "int",
    u32 => "unsigned",
    u64 => "unsigned long long",
    f32 => "float",
    TensorMap => "TensorMap",
    DropoutArg => "Dropout",
}

/// A dropout as kernels/dropout.cuh declares it; without a state there is none.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DropoutArg {
    state: Ptr<i32>,
    stream: u32,
    threshold: u32,
    scale: f32,
    /// Padding by name, so that every byte of an argument has a value.
    unused: u32,
}

impl DropoutArg {
    pub const NONE: Self = DropoutArg { state: Ptr::NULL, stream: 0, threshold: 0, scale: 1.0, unused: 0 };

    /// `state` is the address of the dropout's state.
    pub fn new(dropout: &Dropout, state: Ptr<i32>) -> Self {
        let (stream, threshold, scale) = (dropout.stream, dropout.threshold(), dropout.scale());
        DropoutArg { state, stream, threshold, scale, unused: 0 }
    }
}

/// A kernel as the op layer declares it.
#[derive(Debug)]
pub struct KernelSpec {
    pub name: &'static str,
    /// Relative to `kernels/`.
    pub file: &'static str,
    pub params: &'static [ParameterSpec],
}

/// A parameter as the op layer declares it.
#[derive(Debug)]
pub struct ParameterSpec {
    /// The type in C++, without `const`.
    pub kind: &'static str,
    pub name: &'static str,
    pub bytes: usize,
    pub align: usize,
}

/// The location of a parameter in the constant bank from which a kernel reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub address: u32,
    pub is_pointer: bool,
}

impl KernelSpec {
    /// Lays out all parameters, the first at `start` or after.
    pub fn parameters(&self, start: u32) -> Vec<Parameter> {
        let mut next = start;
        let parameter = |&ParameterSpec { kind, name, bytes, align }: &ParameterSpec| {
            let address = next.next_multiple_of(align as u32);
            next = address + bytes as u32;
            Parameter { name, address, is_pointer: kind.ends_with('*') }
        };
        self.params.iter().map(parameter).collect()
    }
}

/// A device that carries out launches in order.
pub trait Launcher {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()>;

    /// Makes the parameter that describes a matrix to a kernel which copies boxes of it by TMA.
    ///
    /// # Errors
    /// If the hardware has no TMA, or TMA cannot copy such boxes.
    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        let TiledMatrix { rows, columns, .. } = matrix;
        bail!("this device has no tensor maps ({rows} x {columns} elements)")
    }
}

/// Declares the kernels of one file under `kernels/`: a function for each in the module `kernel`
/// that launches it, and the list `KERNELS`. `const FORWARD: [Forward] = [a, b](…);` declares
/// kernels with the same parameters, and also makes an array of their functions and the type of
/// these. Our kernels wait for earlier launches themselves, so all their launches are programmatic.
macro_rules! kernels {
    ($file:literal:
        $(const $array:ident: [$type:ident] = [$($member:ident),+ $(,)?] $same:tt;)*
        $(fn $name:ident $params:tt;)*
    ) => {
        mod kernel {
            #[allow(unused_imports)]
            use super::*;
            use $crate::device::cuda::kernel::{Arg, Launch, Launcher, kernels};
            $(
                kernels! { @array $array: [$type] = [$($member),+] $same }
                $(kernels! { @fn $member $same })+
            )*
            $(kernels! { @fn $name $params })*
            #[allow(non_upper_case_globals)]
            pub mod specs {
                use super::*;
                #[allow(unused_imports)]
                use $crate::device::cuda::kernel::{KernelArg, KernelSpec, ParameterSpec};
                $($(kernels! { @spec $file: $member $same })+)*
                $(kernels! { @spec $file: $name $params })*
            }
        }
        /// The kernels of this operation.
        pub static KERNELS: &[&$crate::device::cuda::kernel::KernelSpec] =
            &[$($(&kernel::specs::$member,)+)* $(&kernel::specs::$name,)*];
    };
    (@array $array:ident: [$type:ident] = $members:tt ($($arg:ident: $of:ty),* $(,)?)) => {
        pub type $type = fn(&mut dyn Launcher, Launch, $($of),*) -> anyhow::Result<()>;
        pub const $array: &[$type] = &$members;
    };
    (@fn $name:ident ($($arg:ident: $of:ty),* $(,)?)) => {
        #[allow(clippy::too_many_arguments)]
        pub fn $name(device: &mut dyn Launcher, launch: Launch, $($arg: $of),*) -> anyhow::Result<()> {
            device.launch(&specs::$name, launch.programmatic(), &[$(Arg::new(&$arg)),*])
        }
    };
    (@spec $file:literal: $name:ident ($($arg:ident: $of:ty),* $(,)?)) => {
        pub static $name: KernelSpec = KernelSpec {
            name: stringify!($name),
            file: $file,
            params: &[$(ParameterSpec {
                kind: <$of as KernelArg>::TYPE,
                name: stringify!($arg),
                bytes: size_of::<$of>(),
                align: align_of::<$of>(),
            }),*],
        };
    };
}
pub(crate) use kernels;
