//! The devices that probes run on, with the kernels of the probes: the GPU if
//! `WARPSMITH_TEST_DEVICE=cuda`, else the emulated device.

use crate::golden::{self, Recorder};
use crate::gpus;
use std::path::{Path, PathBuf};
use warpsmith::device::cuda::driver::Driver;
use warpsmith::device::cuda::kernel::{Arg, KernelSpec, Launch, Ptr};
use warpsmith::device::cuda::nvidia::Nvidia;
use warpsmith::device::cuda::nvml::Monitor;
use warpsmith::tensor::Dtype;

pub struct Device {
    /// Its name in messages.
    pub mode: String,
    pub driver: Box<dyn Driver>,
    /// The destination and the header of a recording, on a GPU that is to be recorded.
    pub recording: Option<(PathBuf, Recorder)>,
}

/// All devices to probe.
pub fn under_test() -> Vec<Device> {
    let record = std::env::var_os("WARPSMITH_RECORD_PROBES").map(PathBuf::from);
    if std::env::var("WARPSMITH_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return vec![gpu(record).unwrap_or_else(|e| panic!("WARPSMITH_TEST_DEVICE=cuda: {e:#}"))];
    }
    if let Some(dir) = record {
        panic!("{}", not_recorded(&dir));
    }
    emulated()
}

/// Refuses to record the emulated device, which cannot be a reference for itself.
pub fn not_recorded(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "WARPSMITH_RECORD_PROBES={dir}: expected a GPU to record, found the emulated device; set WARPSMITH_TEST_DEVICE=cuda"
    )
}

fn gpu(record: Option<PathBuf>) -> anyhow::Result<Device> {
    let driver = gpus::take(Dtype::Bf16, || Nvidia::with_fatbins(crate::compiled::FATBINS, 0, Dtype::Bf16))?;
    let (major, minor) = driver.info().capability;
    let recording = match record {
        None => None,
        Some(dir) => {
            let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
            let by = Recorder {
                gpu: driver.info().name.clone(),
                arch: format!("sm_{major}{minor}"),
                driver: driver_version(&driver).unwrap_or_else(|e| format!("unknown ({e:#})")),
                date: golden::date(seconds),
            };
            Some((dir, by))
        }
    };
    Ok(Device { mode: driver.info().name.clone(), driver: Box::new(driver), recording })
}

/// The recording is useful without it: containers may lack NVML.
fn driver_version(driver: &Nvidia) -> anyhow::Result<String> {
    Monitor::open(&driver.pci_bus_id()?)?.driver_version()
}

/// The usual mode, and a checked one in another order with copies that land at once.
#[cfg(emulated)]
fn emulated() -> Vec<Device> {
    use warpsmith::device::cuda::emulated::{Copies, Emulated, EmulatorOptions, PROBES, Schedule};
    let plain = EmulatorOptions::default();
    let checked =
        EmulatorOptions { check: true, schedule: Schedule::Random(1), copies: Copies::Eager, ..plain };
    let open = |options| Device {
        mode: format!("emulated, {options:?}"),
        driver: Box::new(Emulated::new(PROBES, Dtype::Bf16, options)),
        recording: None,
    };
    [plain, checked].map(open).into()
}

#[cfg(not(emulated))]
fn emulated() -> Vec<Device> {
    panic!("expected a C++ compiler when this was built, for the emulated device: apt install g++")
}

impl Device {
    pub fn is_emulated(&self) -> bool {
        self.driver.info().emulated
    }

    /// Whether the device has Hopper's instructions, which exist on one architecture and not on its
    /// successors.
    pub fn has_hopper_instructions(&self) -> bool {
        self.driver.info().capability == (9, 0)
    }

    pub fn words(&mut self, values: &[u32]) -> Ptr<u32> {
        let address = self.driver.allocate(size_of_val(values)).unwrap();
        self.driver.upload(address, bytemuck::cast_slice(values)).unwrap();
        Ptr::new(address)
    }

    pub fn read(&mut self, words: Ptr<u32>, len: usize) -> Vec<u32> {
        let mut values = vec![0; len];
        self.driver.download(bytemuck::cast_slice_mut(&mut values), words.address()).unwrap();
        values
    }

    /// Launches a kernel of a file in `kernels/` beside this one.
    pub fn launch(&mut self, kernel: (&'static str, &'static str), launch: Launch, args: &[Arg]) {
        let (file, name) = kernel;
        let spec = Box::leak(Box::new(KernelSpec { name, file, params: &[] }));
        self.driver.launch(spec, launch, args).unwrap_or_else(|e| panic!("{name}, {}: {e:#}", self.mode));
    }

    /// Runs a kernel `(out, in, n)` that makes one word of each, and returns `out`. Words that it
    /// does not write keep a pattern that no probe expects.
    pub fn each(&mut self, kernel: (&'static str, &'static str), input: &[u32]) -> Vec<u32> {
        let out = self.words(&vec![0xdead_beef; input.len()]);
        let args = (out, self.words(input), input.len() as i32);
        let launch = Launch::new(input.len().div_ceil(256), 256);
        self.launch(kernel, launch, &[Arg::new(&args.0), Arg::new(&args.1), Arg::new(&args.2)]);
        self.read(out, input.len())
    }
}
