//! The emulated device dressed as a GPU for tests: with a clock, faults and a library.

use super::Problem;
use crate::device::cuda::MatmulChoice;
use crate::device::cuda::driver::{DeviceInfo, Driver};
use crate::device::cuda::emulated::{self, EmulatorOptions};
use crate::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher};
use crate::device::cuda::matmul_library::{BlasEpilogue, BlasGemm, MatmulLibrary, Operands};
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::Place;
use crate::tensor::Dtype;
use anyhow::{Result, bail, ensure};
use std::cell::Cell;
use std::rc::Rc;

/// The shape of all matmuls.
pub const N: usize = 65;
pub const C: usize = 40;
pub const OC: usize = 72;

/// The device that a test asks for.
#[derive(Clone)]
pub struct Setting {
    pub dtype: Dtype,
    pub matmul: MatmulChoice,
    pub gelu_fusion: i32,
    pub deterministic: bool,
    pub library_ms: f32,
    pub wrong_algorithms: Vec<bool>,
    pub mutant: Option<Mutant>,
    pub cost: fn(&str) -> f32,
    /// The first element of the input.
    pub first: f32,
    pub sm_count: usize,
    pub capability: (u32, u32),
}

impl Default for Setting {
    /// Every kernel takes a millisecond, and nothing is wrong.
    fn default() -> Self {
        Setting {
            dtype: Dtype::F32,
            matmul: MatmulChoice::Own,
            gelu_fusion: 2,
            deterministic: false,
            library_ms: 1000.0,
            wrong_algorithms: Vec::new(),
            mutant: None,
            cost: |_| 1.0,
            first: 0.5,
            sm_count: 4,
            capability: (9, 0),
        }
    }
}

/// A fault of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    ReturnsEarly,
    /// The last tile's numbers have the wrong sign.
    WrongTile,
    /// It assigns where it should add.
    Assigns,
    Refused,
    /// It is refused, and so is everything after it.
    Breaks,
    /// It takes work from the counter, raises a flag, and ends.
    LeavesSignals,
}

/// Part of a kernel's name, and the fault.
pub type Mutant = (&'static str, Fault);

/// The emulated device with a clock that a test sets, a kernel that a test breaks, and a library of
/// f32 GEMMs.
pub struct Fake {
    device: Box<dyn Driver>,
    info: DeviceInfo,
    /// The time of the library's fastest algorithm, and whether each algorithm is wrong, the
    /// fastest first.
    library_ms: f32,
    wrong_algorithms: Vec<bool>,
    algorithm: usize,
    gemms: Rc<Cell<usize>>,
    mutant: Option<Mutant>,
    /// Returns the milliseconds of a kernel by its name.
    cost: fn(&str) -> f32,
    clock: Option<f32>,
    broken: bool,
}

impl Launcher for Fake {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()> {
        if let Some(clock) = &mut self.clock {
            *clock += (self.cost)(kernel.name);
        }
        let fault = self.mutant.filter(|(name, _)| kernel.name.contains(name)).map(|(_, fault)| fault);
        match fault {
            Some(Fault::ReturnsEarly) => Ok(()),
            Some(Fault::LeavesSignals) => {
                // SAFETY: the last argument of Hopper's kernels is a `Problem`.
                let problem = unsafe { args[args.len() - 1].value.cast::<Problem>().read() };
                self.upload(problem.flags.address(), &1u32.to_le_bytes())?;
                self.upload(problem.counter.address(), &3u32.to_le_bytes())
            }
            Some(Fault::Refused) => bail!("launching {}: out of registers", kernel.name),
            Some(Fault::Breaks) => {
                self.broken = true;
                bail!("launching {}: an illegal address", kernel.name)
            }
            Some(Fault::Assigns) => {
                let (accumulate, at) = (0i32, kernel.params.len() - 1);
                let spoilt: Vec<Arg> = args.iter().copied().take(at).chain([Arg::new(&accumulate)]).collect();
                self.device.launch(kernel, launch, &spoilt)
            }
            Some(Fault::WrongTile) => {
                self.device.launch(kernel, launch, args)?;
                // SAFETY: the first argument of GEMM kernels is a `u64`, the address of their
                // output.
                let out = unsafe { args[0].value.cast::<u64>().read() };
                let len = if kernel.name.contains("forward") { N * OC } else { OC.min(N) * C };
                let tile = out + 4 * (len as u64 - 40);
                let spoilt: Vec<f32> = self.read(tile, 40)?.iter().map(|x| -x).collect();
                self.upload(tile, bytemuck::cast_slice(&spoilt))
            }
            None => self.device.launch(kernel, launch, args),
        }
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        self.device.tensor_map(matrix)
    }
}

impl Driver for Fake {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.device.allocate(bytes)
    }
    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        self.device.upload(dst, src)
    }
    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()> {
        self.device.download(dst, src)
    }
    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        self.device.copy(dst, src, bytes)
    }
    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()> {
        self.device.set_bytes(dst, value, bytes)
    }
    fn synchronize(&mut self) -> Result<()> {
        ensure!(!self.broken, "waiting: an illegal address");
        Ok(())
    }
    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place) {
        self.device.lend(address, bytes)
    }
    fn reclaim(&mut self, address: u64, bytes: usize) {
        self.device.reclaim(address, bytes);
    }

    fn start_timer(&mut self) -> Result<()> {
        self.clock = Some(0.0);
        Ok(())
    }
    fn stop_timer(&mut self) -> Result<Option<f32>> {
        Ok(self.clock.take())
    }
    fn matmul_library(&mut self) -> Result<&mut dyn MatmulLibrary> {
        Ok(self)
    }
}

impl Fake {
    /// Opens the device of a setting. Also returns the count of the library's GEMMs.
    pub fn open(setting: &Setting) -> Result<(Self, Rc<Cell<usize>>)> {
        let device = emulated::open(setting.dtype, EmulatorOptions::default())?;
        let Setting { sm_count, capability, .. } = *setting;
        let info = DeviceInfo { emulated: false, sm_count, capability, ..device.info().clone() };
        let gemms = Rc::new(Cell::new(0));
        let fake = Fake {
            device,
            info,
            library_ms: setting.library_ms,
            wrong_algorithms: setting.wrong_algorithms.clone(),
            algorithm: 0,
            gemms: gemms.clone(),
            mutant: setting.mutant,
            cost: setting.cost,
            clock: None,
            broken: false,
        };
        Ok((fake, gemms))
    }

    fn read(&mut self, address: u64, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.download(bytemuck::cast_slice_mut(&mut values), address)?;
        Ok(values)
    }
}

impl MatmulLibrary for Fake {
    fn describe(&self) -> String {
        "of a test".to_owned()
    }

    fn matmul(&mut self, gemm: &BlasGemm, on: &Operands) -> Result<()> {
        let BlasGemm { m, n, k, .. } = *gemm;
        let (a, b) = (self.read(on.a, m * k)?, self.read(on.b, k * n)?);
        let mut d = if gemm.adds_c { self.read(on.c, m * n)? } else { vec![0.0; m * n] };
        for (index, d) in d.iter_mut().enumerate() {
            let (row, column) = (index / n, index % n);
            for i in 0..k {
                let a = if gemm.a_transposed { a[i * m + row] } else { a[row * k + i] };
                let b = if gemm.b_transposed { b[column * k + i] } else { b[i * n + column] };
                *d += a * b;
            }
        }
        match gemm.epilogue {
            BlasEpilogue::None => {}
            BlasEpilogue::Bias => {
                let bias = self.read(on.bias, n)?;
                d.iter_mut().zip(bias.iter().cycle()).for_each(|(d, bias)| *d += bias);
            }
        }
        self.gemms.set(self.gemms.get() + 1);
        if self.wrong_algorithms.get(self.algorithm) == Some(&true) {
            d[m * n / 2] += 10.0 * k as f32;
        }
        self.upload(on.d, bytemuck::cast_slice(&d))
    }

    fn tune(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<f32> {
        self.upload(operands.d, bytemuck::cast_slice(&vec![f32::NAN; gemm.m * gemm.n]))?;
        self.algorithm = 0;
        Ok(self.library_ms)
    }

    fn reject(&mut self, _: &BlasGemm, _: &Operands) -> Result<Option<f32>> {
        self.algorithm += 1;
        Ok((self.algorithm < self.wrong_algorithms.len())
            .then_some(self.library_ms + self.algorithm as f32 / 4.0))
    }
}
