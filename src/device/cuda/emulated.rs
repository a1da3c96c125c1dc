//! The emulated device: runs kernels on the CPU, for tests and for work on kernels without a GPU.

use super::counts::Counts;
use super::driver::{DeviceInfo, Driver};
use super::emulator::library::{self, Kernel, Table};
use super::emulator::{
    Checker, Counter, EmulatorOptions, GlobalMemory, Job, MAX_SHARED_BYTES, encode_tensor_map,
};
use super::kernel::{Arg, KernelSpec, Launch, Launcher};
use super::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::Place;
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;

type Kernels = BTreeMap<&'static str, &'static Kernel>;

/// The driver for [`Cuda`](super::Cuda) of the emulated device.
pub struct Emulated {
    info: DeviceInfo,
    memory: GlobalMemory,
    plain: Kernels,
    /// Instrumented: they tell of every access.
    checked: Kernels,
    checker: RefCell<Checker>,
    counter: RefCell<Counter>,
    counts: BTreeMap<&'static str, Counts>,
    /// Can be changed between launches.
    pub options: EmulatorOptions,
}

impl Emulated {
    /// With the program's kernels for one floating-point type.
    pub fn new(dtype: Dtype, options: EmulatorOptions) -> Self {
        Self::with_tables(library::KERNELS, dtype, options)
    }

    /// With other kernels than the program's.
    pub fn with_tables(tables: &[Table], dtype: Dtype, options: EmulatorOptions) -> Self {
        Emulated {
            info: DeviceInfo {
                name: "emulated device".to_owned(),
                capability: (9, 0),
                sm_count: 4,
                memory_bytes: host_memory_bytes(),
                shared_bytes: MAX_SHARED_BYTES,
                emulated: true,
            },
            memory: GlobalMemory::default(),
            plain: library::by_name(tables, dtype, false),
            checked: library::by_name(tables, dtype, true),
            checker: RefCell::new(Checker::new()),
            counter: RefCell::new(Counter::new()),
            counts: BTreeMap::new(),
            options,
        }
    }
}

fn host_memory_bytes() -> usize {
    // SAFETY: asks for two numbers.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    usize::try_from(pages).unwrap_or(0) * usize::try_from(page).unwrap_or(0)
}

impl Launcher for Emulated {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()> {
        let EmulatorOptions { check, count, .. } = self.options;
        let kernels = if check || count { &self.checked } else { &self.plain };
        let compiled = kernels
            .get(kernel.name)
            .with_context(|| format!("no kernel {} was compiled from {}", kernel.name, kernel.file))?;
        self.checker.get_mut().allocations = self.memory.bounds();
        self.checker.get_mut().lent = self.memory.lent.clone();
        let checker = check.then_some(&self.checker);
        self.counter.get_mut().allocations = self.memory.bounds();
        let counter = count.then_some(&self.counter);
        let job = Job::new(compiled, kernel, launch, args, self.options, checker, counter)?;
        if !check {
            job.refuse_lent(&self.memory.lent)?;
        }
        job.run()?;
        if count {
            *self.counts.entry(kernel.name).or_default() += self.counter.get_mut().end_launch();
        }
        Ok(())
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        matrix.check()?;
        self.memory.place(matrix.address, matrix.size_bytes())?;
        Ok(encode_tensor_map(matrix))
    }
}

impl Driver for Emulated {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.memory.allocate(bytes)
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        let place = self.memory.touch(dst, src.len(), "an upload to")?;
        // SAFETY: inside an allocation; no kernel runs.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), place, src.len()) };
        Ok(())
    }

    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()> {
        let place = self.memory.touch(src, dst.len(), "a download from")?;
        // SAFETY: inside an allocation; no kernel runs.
        unsafe { std::ptr::copy_nonoverlapping(place, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        let to = self.memory.touch(dst, bytes, "a copy to")?;
        let from = self.memory.touch(src, bytes, "a copy from")?;
        // SAFETY: inside allocations; no kernel runs. That they do not overlap is what the caller promises.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()> {
        let place = self.memory.touch(dst, bytes, if value == 0 { "clearing" } else { "setting" })?;
        // SAFETY: inside an allocation; no kernel runs.
        unsafe { place.write_bytes(value, bytes) };
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place) {
        let host = self.memory.touch(address, bytes, "lending").expect("memory that was planned");
        self.memory.lent.lend(address as usize, bytes);
        (host as u64, Place::Host)
    }

    fn take_back(&mut self, address: u64, bytes: usize) {
        self.memory.lent.take_back(address as usize, bytes);
    }

    fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        std::mem::take(&mut self.counts)
    }

    fn start_timer(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop_timer(&mut self) -> Result<Option<f32>> {
        Ok(None)
    }
}
