//! The emulated device: its memory, its kernels, and what it remembers between launches.

use super::checker::Checker;
use super::counting::Counter;
use super::hopper;
use super::job::Job;
use super::library::{Kernel, Table, by_name};
use super::memory::GlobalMemory;
use crate::counts::Counts;
use crate::launch::{Arg, Launch};
use crate::options::EmulatorOptions;
use crate::tensor_map::{TensorMap, TiledMatrix};
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;

type Kernels = BTreeMap<&'static str, &'static Kernel>;

/// A device that runs kernels as soon as they are launched. Device addresses are host addresses.
pub struct Emulator {
    memory: GlobalMemory,
    plain: Kernels,
    /// Instrumented: they report every access.
    checked: Kernels,
    checker: RefCell<Checker>,
    counter: RefCell<Counter>,
    counts: BTreeMap<&'static str, Counts>,
    /// May change between launches.
    pub options: EmulatorOptions,
}

impl Emulator {
    /// A device with the kernels that `tables` have for `variant`.
    pub fn new(tables: &[Table], variant: &str, options: EmulatorOptions) -> Self {
        Emulator {
            memory: GlobalMemory::default(),
            plain: by_name(tables, variant, false),
            checked: by_name(tables, variant, true),
            checker: RefCell::new(Checker::new()),
            counter: RefCell::new(Counter::new()),
            counts: BTreeMap::new(),
            options,
        }
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// One line: the device has no such kernel, its arguments or geometry are wrong, or it fails,
    /// in which case the line names block, thread and source line.
    pub fn launch(&mut self, kernel: &str, launch: Launch, args: &[Arg]) -> Result<()> {
        let EmulatorOptions { check, count, .. } = self.options;
        let kernels = if check || count { &self.checked } else { &self.plain };
        let kernel = *kernels.get(kernel).with_context(|| format!("no kernel {kernel} was compiled"))?;
        self.checker.get_mut().allocations = self.memory.bounds();
        self.checker.get_mut().lent = self.memory.lent.clone();
        let checker = check.then_some(&self.checker);
        self.counter.get_mut().allocations = self.memory.bounds();
        let counter = count.then_some(&self.counter);
        let job = Job::new(kernel, launch, args, self.options, checker, counter)?;
        if !check {
            job.refuse_lent(&self.memory.lent)?;
        }
        job.run()?;
        job.late_stores.write();
        if count {
            *self.counts.entry(kernel.name()).or_default() += self.counter.get_mut().end_launch();
        }
        Ok(())
    }

    /// Returns the counts per kernel since the last call; empty unless launches are counted.
    pub fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        std::mem::take(&mut self.counts)
    }

    /// Returns the argument for a kernel that copies boxes of a matrix by TMA.
    ///
    /// # Errors
    /// If CUDA would refuse the matrix, or it is not inside one allocation.
    pub fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        matrix.check()?;
        self.memory.place(matrix.address, matrix.size_bytes())?;
        Ok(hopper::encode(matrix))
    }

    /// Allocates zeroed memory, for as long as the device lives.
    ///
    /// # Errors
    /// If the host has not enough.
    pub fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.memory.allocate(bytes)
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// If the destination is not inside one allocation.
    ///
    /// # Panics
    /// If some of it is lent; as do all that follow.
    pub fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        let place = self.memory.touch(dst, src.len(), "an upload to")?;
        // SAFETY: `place` is inside an allocation, which no kernel uses between launches.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), place, src.len()) };
        Ok(())
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// If the source is not inside one allocation.
    pub fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()> {
        let place = self.memory.touch(src, dst.len(), "a download from")?;
        // SAFETY: `place` is inside an allocation, which no kernel uses between launches.
        unsafe { std::ptr::copy_nonoverlapping(place, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    /// Copies on the device.
    ///
    /// # Errors
    /// If either side is not inside one allocation.
    pub fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        let to = self.memory.touch(dst, bytes, "a copy to")?;
        let from = self.memory.touch(src, bytes, "a copy from")?;
        // SAFETY: both are inside allocations, which no kernel uses between launches; they may
        // overlap.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    /// Sets bytes to one value.
    ///
    /// # Errors
    /// If they are not inside one allocation.
    pub fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()> {
        let place = self.memory.touch(dst, bytes, if value == 0 { "clearing" } else { "setting" })?;
        // SAFETY: `place` is inside an allocation, which no kernel uses between launches.
        unsafe { place.write_bytes(value, bytes) };
        Ok(())
    }

    /// Lends memory: until [`reclaim`](Self::reclaim), an access by the host panics and one by a
    /// kernel is an error.
    ///
    /// # Errors
    /// If it is not inside one allocation.
    ///
    /// # Panics
    /// If some of it is lent already.
    pub fn lend(&mut self, address: u64, bytes: usize) -> Result<u64> {
        let host = self.memory.touch(address, bytes, "lending")?;
        self.memory.lent.lend(address as usize, bytes);
        Ok(host as u64)
    }

    /// Takes back what was lent, in one piece.
    ///
    /// # Panics
    /// If exactly this was not lent.
    pub fn reclaim(&mut self, address: u64, bytes: usize) {
        self.memory.lent.reclaim(address as usize, bytes);
    }
}

/// Kernels in Rust, which need no C++ compiler.
#[cfg(test)]
mod tests {
    use super::super::block::me;
    use super::super::library::{Parameter, TablePointer};
    use super::*;
    use std::ffi::{c_char, c_void};

    unsafe extern "C" {
        fn cuda_emulator_barrier(predicate: u32, file: *const c_char, line: u32) -> u32;
        fn cuda_emulator_collective(
            op: u32,
            mask: u32,
            argument: *mut c_void,
            file: *const c_char,
            line: u32,
        );
    }

    /// `out[i] = ` the number of threads in the block with an odd number, for all threads `i`.
    extern "C" fn count_odd(arguments: *const *const c_void) {
        let me = me();
        let [x, _, _] = me.block.geometry.block_index.get();
        // SAFETY: the launch passes one pointer to a number for each thread of the grid.
        unsafe {
            let odd = cuda_emulator_barrier(me.thread as u32 % 2, std::ptr::null(), 0);
            let out = (*arguments).cast::<*mut u32>().read();
            out.add(x as usize * me.block.thread_count.get() + me.thread).write(odd);
        }
    }

    /// One lane waits for the block, the others for the warp.
    extern "C" fn wait_forever(_: *const *const c_void) {
        // SAFETY: neither a barrier nor `__syncwarp`, which is operation 0, has an argument.
        unsafe {
            match me().thread {
                0 => _ = cuda_emulator_barrier(0, std::ptr::null(), 0),
                _ => cuda_emulator_collective(0, u32::MAX, std::ptr::null_mut(), std::ptr::null(), 0),
            }
        }
    }

    #[repr(transparent)]
    struct Symbol(TablePointer);
    // SAFETY: it points to a constant.
    unsafe impl Sync for Symbol {}

    static POINTER: [Parameter; 1] = [Parameter::new(c"unsigned*", 8)];
    static KERNELS: [Kernel; 3] = [
        Kernel::new(Some(c"count_odd"), count_odd, &POINTER),
        Kernel::new(Some(c"wait_forever"), wait_forever, &POINTER),
        Kernel::new(None, wait_forever, &[]),
    ];
    static FIRST: Symbol = Symbol(KERNELS.as_ptr());

    fn device() -> (Emulator, u64) {
        // SAFETY: `KERNELS` ends with a kernel without a name.
        let table = unsafe { Table::new("tests.rs", "rust", false, (&raw const FIRST).cast()) };
        let mut gpu = Emulator::new(&[table], "rust", EmulatorOptions::default());
        let out = gpu.allocate(4 * 64).unwrap();
        (gpu, out)
    }

    #[test]
    fn threads_of_all_blocks_meet_at_a_barrier() {
        let (mut gpu, out) = device();
        gpu.launch("count_odd", Launch::new(2, 32), &[Arg::new(&out)]).unwrap();
        let mut bytes = [0; 4 * 64];
        gpu.download(&mut bytes, out).unwrap();
        assert!(bytes.chunks(4).all(|word| word == 16u32.to_ne_bytes()), "{bytes:?}");
    }

    #[test]
    fn launches_that_cannot_work_are_refused() {
        let (mut gpu, out) = device();
        let mut error = |kernel: &str, args: &[Arg]| {
            gpu.launch(kernel, Launch::new(1, 32), args).unwrap_err().to_string()
        };
        assert_eq!(error("no_such", &[]), "no kernel no_such was compiled");
        assert!(error("count_odd", &[]).contains("0 arguments for the 1 parameters (unsigned*)"));
        assert!(error("count_odd", &[Arg::new(&1u32)]).contains("argument 0 has 4 bytes"));
        let deadlock = error("wait_forever", &[Arg::new(&out)]);
        assert!(deadlock.starts_with("kernel wait_forever, block (0,0,0): deadlock"), "{deadlock}");
        assert!(deadlock.contains("1 of 32 threads wait in __syncthreads"), "{deadlock}");
    }

    #[test]
    fn lent_memory_is_refused_until_it_is_reclaimed() {
        let (mut gpu, out) = device();
        gpu.lend(out, 256).unwrap();
        let error = gpu.launch("count_odd", Launch::new(1, 32), &[Arg::new(&out)]).unwrap_err().to_string();
        assert!(error.ends_with("are lent and not reclaimed"), "{error}");
        gpu.reclaim(out, 256);
        gpu.launch("count_odd", Launch::new(1, 32), &[Arg::new(&out)]).unwrap();
    }
}
