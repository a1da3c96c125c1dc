//! The choice between our kernels and a vendor's library, on the emulated device with a library that only it could love.

use crate::device::compare::assert_close;
use crate::device::cuda::driver::{DeviceInfo, Driver};
use crate::device::cuda::emulator::{self, EmulatorOptions};
use crate::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher};
use crate::device::cuda::matmul_library::{MatmulLibrary, Operands, Product, ProductEpilogue};
use crate::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use crate::ops::*;
use crate::rng::Mt19937;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::cell::Cell;
use std::rc::Rc;

/// The emulated device with a clock by which a kernel takes a millisecond, and with a library of f32 products.
struct WithLibrary {
    device: Box<dyn Driver>,
    info: DeviceInfo,
    /// How long the library says it takes.
    library_ms: f32,
    products: Rc<Cell<usize>>,
}

impl Launcher for WithLibrary {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()> {
        self.device.launch(kernel, launch, args)
    }
}

impl Driver for WithLibrary {
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
    fn clear(&mut self, dst: u64, bytes: usize) -> Result<()> {
        self.device.clear(dst, bytes)
    }
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place) {
        self.device.lend(address, bytes)
    }
    fn take_back(&mut self, address: u64, bytes: usize) {
        self.device.take_back(address, bytes);
    }

    fn start_timer(&mut self) -> Result<()> {
        Ok(())
    }
    fn stop_timer(&mut self) -> Result<Option<f32>> {
        Ok(Some(1.0))
    }
    fn matmul_library(&mut self) -> Result<&mut dyn MatmulLibrary> {
        Ok(self)
    }
}

impl WithLibrary {
    fn read(&mut self, address: u64, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.download(bytemuck::cast_slice_mut(&mut values), address)?;
        Ok(values)
    }
}

impl MatmulLibrary for WithLibrary {
    fn matmul(&mut self, product: &Product, on: &Operands) -> Result<()> {
        let Product { m, n, k, .. } = *product;
        let (a, b) = (self.read(on.a, m * k)?, self.read(on.b, k * n)?);
        let mut d = if product.adds_c { self.read(on.c, m * n)? } else { vec![0.0; m * n] };
        for (index, d) in d.iter_mut().enumerate() {
            let (row, column) = (index / n, index % n);
            for i in 0..k {
                let a = if product.a_transposed { a[i * m + row] } else { a[row * k + i] };
                let b = if product.b_transposed { b[column * k + i] } else { b[i * n + column] };
                *d += a * b;
            }
        }
        match product.epilogue {
            ProductEpilogue::None => {}
            ProductEpilogue::Bias => {
                let bias = self.read(on.bias, n)?;
                d.iter_mut().zip(bias.iter().cycle()).for_each(|(d, bias)| *d += bias);
            }
            other => anyhow::bail!("no algorithm for {other:?}"),
        }
        self.products.set(self.products.get() + 1);
        self.upload(on.d, bytemuck::cast_slice(&d))
    }

    fn tune(&mut self, product: &Product, operands: &Operands) -> Result<f32> {
        if matches!(product.epilogue, ProductEpilogue::BiasGelu | ProductEpilogue::Dgelu) {
            anyhow::bail!("no algorithm");
        }
        self.upload(operands.d, bytemuck::cast_slice(&vec![f32::NAN; product.m * product.n]))?;
        Ok(self.library_ms)
    }
}

const N: usize = 65;
const C: usize = 40;
const OC: usize = 72;

fn random(seed: u32, len: usize) -> Vec<f32> {
    let mut rng = Mt19937::new(seed);
    (0..len).map(|_| rng.randint32() as f32 / 2f32.powi(31) - 1.0).collect()
}

/// Forward and backward, twice, and how many products the library computed.
fn results(matmul: MatmulChoice, gelu_fusion: usize, library_ms: f32) -> (Vec<Vec<f32>>, usize) {
    let options = CudaOptions { dtype: Dtype::F32, tf32: false, gelu_fusion, deterministic: false, matmul };
    let device = emulator::open(Dtype::F32, EmulatorOptions::default()).unwrap();
    let info = DeviceInfo { emulated: false, ..device.info().clone() };
    let products = Rc::new(Cell::new(0));
    let driver = WithLibrary { device, info, library_ms, products: products.clone() };
    let mut dev = Cuda::new(Box::new(driver), options);

    let mut plan = MemoryPlan::new();
    let lens = [N * OC, N * OC, N * C, OC * C, OC, N * OC, N * C, OC * C, OC, N * OC, N * C];
    let tensors = lens.map(|len| plan.add("test", "x", Dtype::F32, len));
    let [out, pre_gelu, inp, weight, bias, residual, dinp, dweight, dbias, dout, through_gelu] = tensors;
    let limits = Limits { rows: N, logits_rows: N, T: N, C: 64, NH: 1, V: 64, Vp: 64, norm_pieces: 1 };
    let scratch = dev.scratch_bytes(&limits).unwrap();
    plan.add(SCRATCH, SCRATCH, Dtype::F32, scratch.div_ceil(4));
    dev.allocate(&plan).unwrap();
    for (seed, tensor) in tensors.iter().enumerate() {
        dev.upload(*tensor, bytemuck::cast_slice(&random(seed as u32, tensor.len))).unwrap();
    }

    let mut results = Vec::new();
    let mut keep = |dev: &mut Cuda, tensor: Tensor| {
        let mut values = vec![0.0f32; tensor.len];
        dev.download(bytemuck::cast_slice_mut(&mut values), tensor).unwrap();
        results.push(values);
    };
    for (overwrite_dweight, through_gelu) in [(true, None), (false, None), (false, Some(through_gelu))] {
        for epilogue in [
            Epilogue::None,
            Epilogue::Bias { bias },
            Epilogue::BiasGelu { bias, pre_gelu },
            Epilogue::BiasResidual { bias, residual },
        ] {
            dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N, C, OC }).unwrap();
            keep(&mut dev, out);
        }
        let args = MatmulBackward {
            dinp,
            dweight,
            overwrite_dweight,
            dbias: Some(dbias),
            dout,
            inp,
            weight,
            through_gelu,
            N,
            C,
            OC,
        };
        dev.matmul_backward(args).unwrap();
        for tensor in [dinp, dweight, dbias] {
            keep(&mut dev, tensor);
        }
    }
    (results, products.get())
}

#[track_caller]
fn assert_as_own(results: &[Vec<f32>]) {
    let (own, by_library) = self::results(MatmulChoice::Own, 0, 0.0);
    assert_eq!(by_library, 0);
    for (i, (got, want)) in results.iter().zip(&own).enumerate() {
        assert_close(&format!("result {i}"), got, want, 1e-5);
    }
}

#[test]
fn the_library_computes_all_products_when_asked_to() {
    let (results, by_library) = results(MatmulChoice::Cublaslt, 0, 2.0);
    assert_eq!(by_library, 3 * (4 + 2));
    assert_as_own(&results);
}

/// Among them none that it has no algorithm for.
#[test]
fn the_faster_one_computes_a_product() {
    let (by_faster_library, count) = results(MatmulChoice::Fastest, 2, 0.5);
    assert_as_own(&by_faster_library);
    let products_with_gelu = 3 + 1;
    // Of the gradients of weights, the library needs one kernel besides for the bias: a millisecond and a half.
    assert_eq!(count, 3 * (4 + 1) - products_with_gelu);
    let (by_faster_kernels, count) = results(MatmulChoice::Fastest, 2, 2.0);
    assert_as_own(&by_faster_kernels);
    assert_eq!(count, 0);
}
