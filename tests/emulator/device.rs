//! The emulated device with the kernels of this directory.

use warpsmith::device::cuda::driver::Driver;
use warpsmith::device::cuda::emulated::Emulated;
use warpsmith::device::cuda::emulator::{Copies, EmulatorOptions, Schedule, library};
use warpsmith::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher, Ptr};
use warpsmith::tensor::Dtype;

pub const SCHEDULES: [Schedule; 5] =
    [Schedule::Ascending, Schedule::Descending, Schedule::Random(1), Schedule::AheadLow, Schedule::AheadHigh];

/// Every schedule, with copies at once, late and by chance, plain and checked.
pub fn all_options() -> Vec<EmulatorOptions> {
    let mut all = Vec::new();
    for schedule in SCHEDULES {
        for copies in [Copies::Eager, Copies::Late, Copies::Random] {
            for check in [false, true] {
                all.push(EmulatorOptions { schedule, copies, check, count: false, threads: 1 });
            }
        }
    }
    all
}

pub struct Gpu(pub Emulated);

impl Gpu {
    pub fn new(options: EmulatorOptions) -> Self {
        Gpu(Emulated::with_tables(library::SELF_TEST, Dtype::Bf16, options))
    }

    pub fn memory<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        let address = self.0.allocate(size_of_val(values)).unwrap();
        self.0.upload(address, bytemuck::cast_slice(values)).unwrap();
        address
    }

    pub fn read<T: bytemuck::Pod>(&mut self, address: u64, len: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); len];
        self.0.download(bytemuck::cast_slice_mut(&mut values), address).unwrap();
        values
    }

    /// Launches by name; the error is one line.
    pub fn launch(&mut self, name: &'static str, launch: Launch, args: &[Arg]) -> Result<(), String> {
        let spec = Box::leak(Box::new(KernelSpec { name, file: "", params: &[] }));
        self.0.launch(spec, launch, args).map_err(|e| format!("{e:#}"))
    }
}

pub fn pointer(address: u64) -> Ptr<f32> {
    Ptr::new(address)
}
