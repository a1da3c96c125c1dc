//! Runs the blocks of a grid.

use super::block::Block;
use super::checker::Checker;
use super::cluster::{Cluster, MAX_BLOCKS};
use super::counting::Counter;
use super::flags::Progress;
use super::hopper::{LateStores, decode as decode_tensor_map};
use super::library::Kernel;
use super::region::{ARGUMENTS_BYTES, ARGUMENTS_OFFSET, MAX_THREADS, Region};
use super::shared::MAX_BYTES;
use crate::launch::{Arg, Launch};
use crate::lent::Lent;
use crate::options::{EmulatorOptions, Schedule};
use crate::tensor_map::TensorMap;
use anyhow::{Result, anyhow, bail, ensure};
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A launch, checked and ready to run.
pub struct Job<'a> {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub block_dim: [u32; 3],
    pub shared_bytes: usize,
    pub programmatic: bool,
    pub options: EmulatorOptions,
    pub arguments: &'a [Arg],
    pub checker: Option<&'a RefCell<Checker>>,
    pub counter: Option<&'a RefCell<Counter>>,
    pub progress: Progress,
    pub late_stores: LateStores,
}

// SAFETY: arguments are only read, from memory that outlives the launch; the checker and the
// counter are used by one OS thread, as `run` starts no others if there is either.
unsafe impl Sync for Job<'_> {}

/// A region with its block.
struct Seat {
    // Dropped before the region, whose memory it lies in.
    block: &'static Block,
    region: Region,
}

// SAFETY: a seat owns its block and region; no other thread refers to them.
unsafe impl Send for Seat {}

/// The blocks that an OS thread runs together, kept from launch to launch.
#[derive(Default)]
struct Worker(Vec<Seat>);

static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

impl<'a> Job<'a> {
    /// Checks what the driver API checks, and the sizes of the arguments, which it cannot.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn new(
        kernel: &'static Kernel,
        launch: Launch,
        arguments: &'a [Arg],
        options: EmulatorOptions,
        checker: Option<&'a RefCell<Checker>>,
        counter: Option<&'a RefCell<Counter>>,
    ) -> Result<Self> {
        let name = kernel.name();
        let types = kernel.parameter_types();
        ensure!(
            arguments.len() == types.len(),
            "kernel {name}: {} arguments for the {} parameters ({})",
            arguments.len(),
            types.len(),
            types.join(", ")
        );
        for (number, (argument, bytes)) in arguments.iter().zip(kernel.parameter_bytes()).enumerate() {
            ensure!(
                argument.bytes == bytes,
                "kernel {name}: argument {number} has {} bytes, the type {} has {bytes}",
                argument.bytes,
                types[number]
            );
        }
        let Launch { grid, threads, shared_bytes, programmatic } = launch;
        let most = kernel.max_threads().unwrap_or(MAX_THREADS as u32);
        ensure!(
            (1..=most).contains(&threads),
            "kernel {name}: {threads} threads per block, 1 to {most} are allowed"
        );
        if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            bail!("kernel {name}: a grid of {grid:?}, 1 to 2147483647, 65535 and 65535 blocks are allowed");
        }
        let cluster = kernel.cluster();
        ensure!(
            (1..=MAX_BLOCKS as u32).contains(&cluster),
            "kernel {name}: clusters of {cluster} blocks, at most {MAX_BLOCKS} are emulated"
        );
        ensure!(
            grid[0].is_multiple_of(cluster),
            "kernel {name}: a grid of {grid:?}, whose first number is not a multiple of the {cluster} blocks of a cluster"
        );
        ensure!(
            shared_bytes as usize <= MAX_BYTES,
            "kernel {name}: {shared_bytes} bytes of dynamic shared memory, at most {MAX_BYTES}"
        );
        let (progress, late_stores) = (Progress::default(), LateStores::default());
        let block_dim = [threads, 1, 1];
        let shared_bytes = shared_bytes as usize;
        Ok(Job {
            kernel,
            grid,
            block_dim,
            shared_bytes,
            programmatic,
            options,
            arguments,
            checker,
            counter,
            progress,
            late_stores,
        })
    }

    /// Refuses arguments that point into lent memory, or are tensor maps of some of it. Without the
    /// checker that is all that is known of a kernel, not how far it goes from a pointer. But a
    /// kernel nearly always touches what it is given.
    pub fn refuse_lent(&self, lent: &Lent) -> Result<()> {
        let types = self.kernel.parameter_types();
        for (number, (argument, kind)) in self.arguments.iter().zip(types).enumerate() {
            // SAFETY: `new` compared the sizes of the arguments with those of these types.
            let (address, bytes) = unsafe {
                match kind {
                    "TensorMap" => {
                        match decode_tensor_map(&argument.value.cast::<TensorMap>().read_unaligned()) {
                            Some(matrix) => (matrix.address, matrix.size_bytes()),
                            None => continue,
                        }
                    }
                    _ if kind.ends_with('*') => (argument.value.cast::<u64>().read_unaligned(), 1),
                    _ => continue,
                }
            };
            if let Some(refusal) = lent.refusal(address as usize, bytes) {
                bail!("kernel {}: argument {number} ({kind}) points {refusal}", self.kernel.name());
            }
        }
        Ok(())
    }

    pub fn threads(&self) -> usize {
        self.block_dim.iter().product::<u32>() as usize
    }

    /// Warps per block.
    pub fn warps(&self) -> usize {
        self.threads().div_ceil(32)
    }

    /// The index of a block by its number.
    pub fn index(&self, number: usize) -> [u32; 3] {
        let [x, y] = [self.grid[0] as usize, self.grid[1] as usize];
        [number % x, number / x % y, number / (x * y)].map(|i| i as u32)
    }

    /// The start of a block's random numbers.
    pub fn seed(&self, number: usize) -> u64 {
        let seed = match self.options.schedule {
            Schedule::Random(seed) => seed,
            _ => 0,
        };
        (seed ^ (number as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn cluster_blocks(&self) -> usize {
        self.kernel.cluster() as usize
    }

    fn clusters(&self) -> usize {
        self.grid.iter().map(|n| *n as usize).product::<usize>() / self.cluster_blocks()
    }

    /// Runs all blocks, on this thread or on several.
    pub fn run(&self) -> Result<()> {
        let order = Order::new(self.options.schedule, self.clusters());
        let next = AtomicUsize::new(0);
        // The checker and the counter track one cluster at a time.
        let most = if self.checker.is_some() || self.counter.is_some() { 1 } else { self.clusters() };
        let threads = self.options.threads.clamp(1, most);
        if let Some(checker) = self.checker {
            checker.borrow_mut().start_launch(self.programmatic);
        }
        if let Some(counter) = self.counter {
            counter.borrow_mut().start_launch();
        }
        self.progress.start(threads);
        if threads == 1 {
            return self.run_clusters(&order, &next);
        }
        let run_clusters = || {
            let result = self.run_clusters(&order, &next);
            self.progress.end(result.is_err());
            result
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(run_clusters)).collect();
            running.into_iter().try_for_each(|thread| thread.join().expect("the emulator does not panic"))
        })
    }

    fn run_clusters(&self, order: &Order, next: &AtomicUsize) -> Result<()> {
        let idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        let mut worker = idle.unwrap_or_default();
        let cluster = Cluster::new(worker.prepare(self)?);
        let mut result = Ok(());
        while result.is_ok() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.clusters() {
                break;
            }
            let first = order.cluster(number) * self.cluster_blocks();
            result = cluster.run(self, first).map_err(|(index, failure)| {
                anyhow!("{}", failure.describe(self.kernel.name(), index, self.block_dim))
            });
        }
        if result.is_err() {
            next.store(self.clusters(), Ordering::Relaxed);
        }
        IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(worker);
        result
    }
}

impl Worker {
    /// Returns blocks for a cluster of a launch, with the arguments in the region of each.
    fn prepare(&mut self, job: &Job) -> Result<Vec<&'static Block>> {
        while self.0.len() < job.cluster_blocks() {
            self.0.push(Seat::new()?);
        }
        let seats = self.0.iter_mut().take(job.cluster_blocks());
        let blocks = seats.map(|seat| {
            seat.region.guard_stacks(job.threads());
            seat.set_arguments(job.arguments);
            seat.block
        });
        Ok(blocks.collect())
    }
}

impl Seat {
    fn new() -> Result<Self> {
        let region = Region::new()?;
        // SAFETY: the seat keeps both, uses the region for nothing else, and drops the block first.
        let block = unsafe { Block::new_in(&region) };
        Ok(Seat { block, region })
    }

    /// Copies the arguments into the region, after a list of their addresses.
    fn set_arguments(&self, arguments: &[Arg]) {
        let list = self.region.base().wrapping_add(ARGUMENTS_OFFSET).cast::<*mut u8>();
        let mut place = list.wrapping_add(arguments.len()).cast::<u8>();
        assert!(
            arguments.iter().map(|a| 8 + a.bytes.next_multiple_of(16)).sum::<usize>() + 16 < ARGUMENTS_BYTES
        );
        for (number, argument) in arguments.iter().enumerate() {
            place = place.wrapping_add(place.align_offset(16));
            // SAFETY: the assertion above keeps list and copies inside the space for arguments, and
            // an argument has that many bytes.
            unsafe {
                list.add(number).write(place);
                std::ptr::copy_nonoverlapping(argument.value.cast(), place, argument.bytes);
            }
            place = place.wrapping_add(argument.bytes);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // SAFETY: `new_in` wrote the block, and no thread runs that could refer to it.
        unsafe { std::ptr::drop_in_place(std::ptr::from_ref(self.block).cast_mut()) };
    }
}

/// The order in which clusters run.
enum Order {
    Ascending,
    Descending(usize),
    Shuffled(Vec<u32>),
}

impl Order {
    fn new(schedule: Schedule, clusters: usize) -> Self {
        match schedule {
            Schedule::Ascending | Schedule::AheadLow => Order::Ascending,
            Schedule::Descending | Schedule::AheadHigh => Order::Descending(clusters),
            Schedule::Random(seed) => {
                let mut order: Vec<u32> = (0..clusters as u32).collect();
                let mut random = seed | 1;
                for left in (2..=clusters).rev() {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    order.swap(left - 1, (random >> 33) as usize % left);
                }
                Order::Shuffled(order)
            }
        }
    }

    fn cluster(&self, number: usize) -> usize {
        match self {
            Order::Ascending => number,
            Order::Descending(clusters) => clusters - 1 - number,
            Order::Shuffled(order) => order[number] as usize,
        }
    }
}
