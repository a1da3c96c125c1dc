//! Maps tensor handles to device addresses.

use super::driver::Driver;
use super::kernel::{FloatX, Ptr};
use crate::ops::SCRATCH;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::{Context, Result};

/// The addresses of a plan's arenas.
#[derive(Debug)]
pub struct Memory {
    dtype: Dtype,
    arenas: Vec<u64>,
    scratch: Option<(u64, usize)>,
    work_counter: Option<Ptr<u32>>,
}

impl Memory {
    pub fn new(dtype: Dtype) -> Self {
        Memory { dtype, arenas: Vec::new(), scratch: None, work_counter: None }
    }

    /// Allocates the arenas of a plan.
    ///
    /// # Errors
    /// If the device has not enough memory; names the arena that does not fit.
    pub fn allocate(&mut self, driver: &mut dyn Driver, plan: &MemoryPlan) -> Result<()> {
        if self.work_counter.is_none() {
            self.work_counter = Some(Ptr::new(driver.allocate(size_of::<u32>())?));
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

    pub fn i32(&self, tensor: Tensor) -> Ptr<i32> {
        assert_eq!(tensor.dtype, Dtype::I32);
        Ptr::new(self.address(tensor))
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

    /// The counter from which the blocks of a persistent kernel take their work: 0 before and after
    /// each kernel. There is only one, so no two such kernels may run at a time: they are queued in
    /// one stream, where each starts after the previous one has ended.
    ///
    /// # Panics
    /// If nothing was allocated yet.
    pub fn work_counter(&self) -> Ptr<u32> {
        self.work_counter.expect("memory allocated before the first kernel")
    }

    /// Address and size of all scratch memory.
    pub fn all_scratch(&self) -> (u64, usize) {
        self.scratch.unwrap_or_default()
    }
}
