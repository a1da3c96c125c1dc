//! Maps tensor handles to device addresses.

use super::driver::Driver;
use super::kernel::{Bf16, DropoutArg, FloatX, Ptr};
use crate::ops::{AttentionDims, Dropout, SCRATCH};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::{Context, Result};

/// The words by which the blocks of a persistent kernel divide their work: a counter from which
/// they take it, and flags with which one hands sums to another. All are 0 before and after each
/// kernel. They exist once, so no two such kernels may run at a time: they are queued in one
/// stream, where each starts after the previous one has ended.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    address: u64,
    /// The number of flags.
    pub flags: usize,
}

impl Signals {
    /// Bytes before the flags: the counter has a cache line to itself.
    const COUNTER_BYTES: usize = 128;

    /// Allocates a counter and flags.
    ///
    /// # Errors
    /// If the device fails.
    pub fn allocate(driver: &mut dyn Driver, flags: usize) -> Result<Self> {
        let signals = Signals { address: driver.allocate(Self::bytes(flags))?, flags };
        signals.clear(driver)?;
        Ok(signals)
    }

    fn bytes(flags: usize) -> usize {
        Self::COUNTER_BYTES + flags * size_of::<u32>()
    }

    pub fn counter(self) -> Ptr<u32> {
        Ptr::new(self.address)
    }

    pub fn first_flag(self) -> Ptr<u32> {
        Ptr::new(self.address + Self::COUNTER_BYTES as u64)
    }

    /// Sets all to 0, as after kernels that ended half way.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(self, driver: &mut dyn Driver) -> Result<()> {
        driver.clear(self.address, Self::bytes(self.flags))
    }
}

/// The addresses of a plan's arenas.
#[derive(Debug)]
pub struct Memory {
    dtype: Dtype,
    arenas: Vec<u64>,
    scratch: Option<(u64, usize)>,
    signals: Option<Signals>,
}

impl Memory {
    pub fn new(dtype: Dtype) -> Self {
        Memory { dtype, arenas: Vec::new(), scratch: None, signals: None }
    }

    /// Allocates the arenas of a plan and, the first time, signals with so many flags.
    ///
    /// # Errors
    /// If the device has not enough memory; names the arena that does not fit.
    pub fn allocate(&mut self, driver: &mut dyn Driver, plan: &MemoryPlan, flags: usize) -> Result<()> {
        if self.signals.is_none() {
            self.signals = Some(Signals::allocate(driver, flags)?);
        }
        for arena in &plan.arenas {
            let address = driver.allocate(arena.size_bytes).with_context(|| {
                format!(
                    "{} MiB for the {} of {} MiB in all; use a smaller -b or more recomputation (-r)",
                    arena.size_bytes >> 20,
                    arena.name,
                    plan.size_bytes() >> 20
                )
            })?;
            self.arenas.push(address);
            if arena.name == SCRATCH {
                self.scratch = Some((address, arena.size_bytes));
            }
        }
        Ok(())
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The device address of a tensor.
    ///
    /// # Panics
    /// If the plan that holds it was not allocated.
    pub fn address(&self, tensor: Tensor) -> u64 {
        self.arenas[tensor.arena] + tensor.offset as u64
    }

    /// A pointer to activations, parameters or gradients.
    pub fn x(&self, tensor: Tensor) -> Ptr<FloatX> {
        assert_eq!(tensor.dtype, self.dtype, "a tensor of the device's floating-point type");
        Ptr::new(self.address(tensor))
    }

    pub fn f32(&self, tensor: Tensor) -> Ptr<f32> {
        assert_eq!(tensor.dtype, Dtype::F32);
        Ptr::new(self.address(tensor))
    }

    pub fn bf16(&self, tensor: Tensor) -> Ptr<Bf16> {
        assert_eq!(tensor.dtype, Dtype::Bf16);
        Ptr::new(self.address(tensor))
    }

    pub fn i32(&self, tensor: Tensor) -> Ptr<i32> {
        assert_eq!(tensor.dtype, Dtype::I32);
        Ptr::new(self.address(tensor))
    }

    /// The positions of packed documents as kernels take them: null without.
    pub fn positions(&self, positions: Option<Tensor>, dims: AttentionDims) -> Ptr<i32> {
        assert!(positions.is_none_or(|t| t.len == dims.B * dims.T), "{positions:?}");
        positions.map_or(Ptr::NULL, |t| self.i32(t))
    }

    /// A dropout as kernels take it.
    pub fn dropout(&self, dropout: Option<Dropout>) -> DropoutArg {
        dropout.map_or(DropoutArg::NONE, |d| DropoutArg::new(&d, self.i32(d.state)))
    }

    /// The address of at least `bytes` of scratch memory, free between operations.
    ///
    /// # Panics
    /// If less was planned: the limits of the plan did not cover this operation.
    pub fn scratch(&self, bytes: usize) -> u64 {
        let (address, planned) = self.scratch.unwrap_or((0, 0));
        assert!(bytes <= planned, "{bytes} bytes of scratch memory needed, {planned} planned");
        address
    }

    /// The signals of persistent kernels.
    ///
    /// # Panics
    /// If nothing was allocated yet.
    pub fn signals(&self) -> Signals {
        self.signals.expect("memory allocated before the first kernel")
    }

    /// Address and size of all scratch memory.
    pub fn all_scratch(&self) -> (u64, usize) {
        self.scratch.unwrap_or_default()
    }
}
