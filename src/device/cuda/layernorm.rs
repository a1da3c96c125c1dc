//! Layer normalization.

use super::Cuda;
use super::kernel::{DropoutArg, FloatX, Launch, Ptr, kernels};
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "layernorm.cu":
    fn layernorm_forward(
        out: Ptr<FloatX>, mean: Ptr<f32>, rstd: Ptr<f32>,
        inp: Ptr<FloatX>, weight: Ptr<FloatX>, bias: Ptr<FloatX>, N: i32, C: i32,
    );
    fn layernorm_forward_wide(
        out: Ptr<FloatX>, mean: Ptr<f32>, rstd: Ptr<f32>,
        inp: Ptr<FloatX>, weight: Ptr<FloatX>, bias: Ptr<FloatX>, C: i32,
    );
    fn residual_layernorm_forward(
        residual_out: Ptr<FloatX>, out: Ptr<FloatX>, mean: Ptr<f32>, rstd: Ptr<f32>,
        residual: Ptr<FloatX>, product: Ptr<FloatX>, weight: Ptr<FloatX>, bias: Ptr<FloatX>, N: i32, C: i32,
    );
    fn residual_layernorm_forward_wide(
        residual_out: Ptr<FloatX>, out: Ptr<FloatX>, mean: Ptr<f32>, rstd: Ptr<f32>,
        residual: Ptr<FloatX>, product: Ptr<FloatX>, weight: Ptr<FloatX>, bias: Ptr<FloatX>, C: i32,
    );
    fn residual_dropout_layernorm_forward(
        residual_out: Ptr<FloatX>, out: Ptr<FloatX>, mean: Ptr<f32>, rstd: Ptr<f32>,
        residual: Ptr<FloatX>, product: Ptr<FloatX>, weight: Ptr<FloatX>, bias: Ptr<FloatX>,
        dropout: DropoutArg, N: i32, C: i32,
    );
    fn residual_dropout_layernorm_forward_wide(
        residual_out: Ptr<FloatX>, out: Ptr<FloatX>, mean: Ptr<f32>, rstd: Ptr<f32>,
        residual: Ptr<FloatX>, product: Ptr<FloatX>, weight: Ptr<FloatX>, bias: Ptr<FloatX>,
        dropout: DropoutArg, C: i32,
    );
    fn layernorm_backward(
        dinp: Ptr<FloatX>, partials: Ptr<f32>, dout: Ptr<FloatX>, inp: Ptr<FloatX>, weight: Ptr<FloatX>,
        mean: Ptr<f32>, rstd: Ptr<f32>, overwrite: i32, threads: i32, N: i32, C: i32,
    );
    fn layernorm_backward_wide(
        dinp: Ptr<FloatX>, partials: Ptr<f32>, dout: Ptr<FloatX>, inp: Ptr<FloatX>, weight: Ptr<FloatX>,
        mean: Ptr<f32>, rstd: Ptr<f32>, overwrite: i32, N: i32, C: i32,
    );
    fn layernorm_backward_sum(
        dweight: Ptr<FloatX>, dbias: Ptr<FloatX>, partials: Ptr<f32>, blocks: i32, C: i32,
    );
}

const WARP: usize = 32;

/// Packs of a row per thread of the forward kernels.
const FORWARD_PACKS: usize = 4;
/// The most threads per block of the backward kernels, and per SM, as their registers allow.
const BACKWARD_THREADS: usize = 512;
/// Rows in flight per group of the backward kernel.
const BACKWARD_ROWS: usize = 4;
/// The most channels that the wide backward kernel can hold.
const BACKWARD_MAX_C: usize = 12288;

fn check(a: &LayernormForward, pack: usize) {
    assert!(a.C > 0 && a.C.is_multiple_of(8), "layernorm over {} channels: a multiple of 8 is needed", a.C);
    assert!(a.C / pack <= 1024 * FORWARD_PACKS, "layernorm over {} channels is too wide", a.C);
    assert!(a.out.len == a.N * a.C && a.inp.len == a.N * a.C && a.weight.len == a.C && a.bias.len == a.C);
    assert!(a.mean.len == a.N && a.rstd.len == a.N);
}

/// The division of rows: four per block with a warp each, or a block each if they are wide.
enum Forward {
    Warps(Launch),
    Blocks(Launch),
}

impl Forward {
    fn new(N: usize, C: usize, pack: usize) -> Self {
        let packs = C / pack;
        if packs <= WARP * FORWARD_PACKS {
            return Forward::Warps(Launch::new(N.div_ceil(4), 4 * WARP as u32));
        }
        // Two packs per thread if possible: more loads in flight than with one, fewer idle threads
        // than with four.
        let threads = packs.div_ceil(2).next_multiple_of(WARP).min(1024);
        Forward::Blocks(Launch::new(N, threads as u32))
    }
}

pub fn forward(cuda: &mut Cuda, a: LayernormForward) -> Result<()> {
    let pack = cuda.pack();
    check(&a, pack);
    let Cuda { driver, memory: m, .. } = cuda;
    let (dev, C) = (driver.as_mut(), a.C as i32);
    let (out, mean, rstd) = (m.x(a.out), m.f32(a.mean), m.f32(a.rstd));
    let (inp, weight, bias) = (m.x(a.inp), m.x(a.weight), m.x(a.bias));
    match Forward::new(a.N, a.C, pack) {
        Forward::Warps(launch) => {
            kernel::layernorm_forward(dev, launch, out, mean, rstd, inp, weight, bias, a.N as i32, C)
        }
        Forward::Blocks(launch) => {
            kernel::layernorm_forward_wide(dev, launch, out, mean, rstd, inp, weight, bias, C)
        }
    }
}

/// Computes `a.inp` = residual + dropout(product), and the layernorm of that. `product` may be
/// `a.out`.
pub fn residual_forward(
    cuda: &mut Cuda,
    a: LayernormForward,
    residual: Tensor,
    product: Tensor,
    dropout: Option<Dropout>,
) -> Result<()> {
    let pack = cuda.pack();
    check(&a, pack);
    assert!(residual.len == a.inp.len && product.len == a.inp.len);
    let Cuda { driver, memory: m, .. } = cuda;
    let (dev, N, C) = (driver.as_mut(), a.N as i32, a.C as i32);
    let (sum, out, mean, rstd) = (m.x(a.inp), m.x(a.out), m.f32(a.mean), m.f32(a.rstd));
    let (residual, product, weight, bias) = (m.x(residual), m.x(product), m.x(a.weight), m.x(a.bias));
    let mask = m.dropout(dropout);
    match (Forward::new(a.N, a.C, pack), dropout) {
        (Forward::Warps(launch), None) => kernel::residual_layernorm_forward(
            dev, launch, sum, out, mean, rstd, residual, product, weight, bias, N, C,
        ),
        (Forward::Blocks(launch), None) => kernel::residual_layernorm_forward_wide(
            dev, launch, sum, out, mean, rstd, residual, product, weight, bias, C,
        ),
        (Forward::Warps(launch), Some(_)) => kernel::residual_dropout_layernorm_forward(
            dev, launch, sum, out, mean, rstd, residual, product, weight, bias, mask, N, C,
        ),
        (Forward::Blocks(launch), Some(_)) => kernel::residual_dropout_layernorm_forward_wide(
            dev, launch, sum, out, mean, rstd, residual, product, weight, bias, mask, C,
        ),
    }
}

/// Returns the packs of a row per thread of the backward kernels.
fn backward_packs(C: usize, pack: usize) -> usize {
    let wide = C / pack > BACKWARD_THREADS;
    if wide { BACKWARD_MAX_C / BACKWARD_THREADS / pack } else { 1 }
}

/// The grid of the backward pass: a block per SM, of as many groups of threads as it holds, each of
/// which takes a row. A wide row takes all threads.
struct Backward {
    wide: bool,
    blocks: usize,
    groups: usize,
    threads: usize,
}

impl Backward {
    fn new(cuda: &Cuda, N: usize, C: usize) -> Self {
        let packs_each = backward_packs(C, cuda.pack());
        let wide = packs_each > 1;
        let threads = (C / cuda.pack()).div_ceil(packs_each).next_multiple_of(WARP);
        let groups = if wide { 1 } else { BACKWARD_THREADS / threads };
        let rows = if wide { 1 } else { BACKWARD_ROWS };
        let blocks = cuda.driver.info().sm_count.min(N.div_ceil(groups * rows));
        Backward { wide, blocks, groups, threads }
    }
}

/// Returns room for a row of sums per block, for any number of rows.
pub fn scratch_bytes(cuda: &Cuda, limits: &Limits) -> usize {
    cuda.driver.info().sm_count * 2 * limits.C * size_of::<f32>()
}

pub fn backward(cuda: &mut Cuda, a: LayernormBackward) -> Result<()> {
    let (N, C) = (a.N, a.C);
    assert!(C > 0 && C.is_multiple_of(8), "layernorm over {C} channels: a multiple of 8 is needed");
    assert!(C <= BACKWARD_MAX_C, "layernorm over {C} channels: {BACKWARD_MAX_C} is the most");
    assert!(a.dinp.len == N * C && a.dout.len == N * C && a.inp.len == N * C && a.weight.len == C);
    assert!(a.dweight.len == C && a.dbias.len == C && a.mean.len == N && a.rstd.len == N);
    let grid = Backward::new(cuda, N, C);
    let launch = Launch::new(grid.blocks, (grid.groups * grid.threads) as u32);
    let Cuda { driver, memory: m, .. } = cuda;
    let dev = driver.as_mut();
    let partials = Ptr::<f32>::new(m.scratch(grid.blocks * 2 * C * size_of::<f32>()));
    let (dinp, dout, inp, weight) = (m.x(a.dinp), m.x(a.dout), m.x(a.inp), m.x(a.weight));
    let (mean, rstd, rows, channels) = (m.f32(a.mean), m.f32(a.rstd), N as i32, C as i32);
    let overwrite = i32::from(a.overwrite_dinp);
    if grid.wide {
        kernel::layernorm_backward_wide(
            dev, launch, dinp, partials, dout, inp, weight, mean, rstd, overwrite, rows, channels,
        )?;
    } else {
        let threads = grid.threads as i32;
        kernel::layernorm_backward(
            dev, launch, dinp, partials, dout, inp, weight, mean, rstd, overwrite, threads, rows, channels,
        )?;
    }
    let launch = Launch::new(2 * C / 16, 512);
    let (dweight, dbias) = (m.x(a.dweight), m.x(a.dbias));
    kernel::layernorm_backward_sum(dev, launch, dweight, dbias, partials, grid.blocks as i32, channels)
}

#[cfg(all(test, emulated))]
mod tests {
    use super::*;
    use crate::device::compare::assert_close;
    use crate::device::compare::testing::random;
    use crate::device::cpu;
    use crate::device::cuda::emulated::{self, EmulatorOptions};
    use crate::device::cuda::{CudaOptions, MatmulChoice};
    use crate::tensor::{Dtype, MemoryPlan};
    use half::bf16;

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
    }

    /// Only here does it run without a matmul before it. The other kernels are tested in
    /// tests/kernels/.
    #[test]
    fn the_residual_is_added_and_normalized() {
        for (N, C) in [(5, 264), (3, 1032)] {
            for (check, rate) in [(false, 0.0), (true, 0.0), (false, 0.3), (true, 0.3)] {
                residual_row(N, C, rate, EmulatorOptions { check, ..EmulatorOptions::default() });
            }
        }
    }

    fn residual_row(N: usize, C: usize, rate: f32, options: EmulatorOptions) {
        let mut plan = MemoryPlan::new();
        let [sum, out, residual] = [N * C; 3].map(|len| plan.add("test", "x", Dtype::Bf16, len));
        let [weight, bias] = [C; 2].map(|len| plan.add("test", "x", Dtype::Bf16, len));
        let [mean, rstd] = [N; 2].map(|len| plan.add("test", "f32", Dtype::F32, len));
        let state = plan.add("test", "state", Dtype::I32, 4);
        let inputs = [(out, 1), (residual, 2), (weight, 3), (bias, 4)];
        let values = inputs.map(|(tensor, seed)| rounded(&random(seed, tensor.len)));
        let dtype = Dtype::Bf16;
        let choices = CudaOptions {
            dtype,
            tf32: false,
            gelu_fusion: 0,
            deterministic: true,
            matmul: MatmulChoice::Own,
            graphs: false,
        };
        let mut dev = Cuda::new(emulated::open(dtype, options).unwrap(), choices);
        dev.allocate(&plan).unwrap();
        for ((tensor, _), values) in inputs.iter().zip(&values) {
            let bits: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            dev.upload(*tensor, bytemuck::cast_slice(&bits)).unwrap();
        }
        let numbers = DropoutState { key: [5, 6], first_row: 7, unused: 0 };
        dev.upload(state, bytemuck::bytes_of(&numbers)).unwrap();
        let dropout = (rate > 0.0).then_some(Dropout { rate, state, stream: 8 });
        // The product lies where the output goes.
        residual_forward(
            &mut dev,
            LayernormForward { out, mean, rstd, inp: sum, weight, bias, N, C },
            residual,
            out,
            dropout,
        )
        .unwrap();

        let mut download = |tensor: Tensor| {
            let mut bits = vec![bf16::ZERO; tensor.len];
            dev.download(bytemuck::cast_slice_mut(&mut bits), tensor).unwrap();
            bits.iter().map(|b| b.to_f32()).collect::<Vec<f32>>()
        };
        let [product, residual, weight, bias] = &values;
        let mut want_sum: Vec<f32> = product.iter().zip(residual).map(|(a, b)| a + b).collect();
        if let Some(dropout) = dropout {
            want_sum.copy_from_slice(product);
            cpu::dropout::residual(&mut want_sum, residual, &dropout.mask(numbers), C);
        }
        let want_sum = rounded(&want_sum);
        assert_close("sum", &download(sum), &want_sum, if rate > 0.0 { 2f64.powi(-8) } else { 0.0 });
        let (mut want, mut mean, mut rstd) = (vec![0.0; N * C], vec![0.0; N], vec![0.0; N]);
        cpu::layernorm::forward(&mut want, &mut mean, &mut rstd, &want_sum, weight, bias, C);
        assert_close("out", &download(out), &want, 2f64.powi(-8));
    }
}
