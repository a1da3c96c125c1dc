//! The emulated device with the kernels of this directory.

use cuda_emulator::{Arg, Copies, Emulator, EmulatorOptions, Launch, Schedule};
use warpsmith::device::cuda::emulated::SELF_TEST;
use warpsmith::device::cuda::kernel::Ptr;

pub const SCHEDULES: [Schedule; 5] =
    [Schedule::Ascending, Schedule::Descending, Schedule::Random(1), Schedule::AheadLow, Schedule::AheadHigh];

/// Every schedule, with eager, late and random copies, plain and checked.
pub fn all_options() -> Vec<EmulatorOptions> {
    let mut all = Vec::new();
    for schedule in SCHEDULES {
        for copies in [Copies::Eager, Copies::Late, Copies::Random] {
            for check in [false, true] {
                all.push(EmulatorOptions { schedule, copies, check, ..EmulatorOptions::default() });
            }
        }
    }
    all
}

pub struct Gpu(pub Emulator);

impl Gpu {
    pub fn new(options: EmulatorOptions) -> Self {
        Gpu(Emulator::new(SELF_TEST, "bf16", options))
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
    pub fn launch(&mut self, name: &str, launch: Launch, args: &[Arg]) -> Result<(), String> {
        self.0.launch(name, launch, args).map_err(|e| format!("{e:#}"))
    }
}

pub fn pointer(address: u64) -> Ptr<f32> {
    Ptr::new(address)
}
