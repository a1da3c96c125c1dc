//! One device on which cases are checked and timed one after another.

use crate::args::Args;
use crate::cases::Case;
use crate::elements;
use crate::op::{Op, Target};
use crate::operands::{ARENA, Operands};
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeMap;
use warpsmith::device::compare::{Tolerance, close};
use warpsmith::device::cpu::Cpu;
use warpsmith::device::cpu::matmul::Precision;
use warpsmith::device::cuda::driver::Counts;
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::nvidia::Nvidia;
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::device::open::DeviceName;
use warpsmith::ops::{Call, Device, Ops, download_f32, plan_scratch};
use warpsmith::rng::Mt19937;
use warpsmith::tensor::{Dtype, MemoryPlan, Tensor};

/// Bytes written between repetitions: more than the L2 cache of any GPU known here.
const COLD_BYTES: usize = 512 << 20;
/// Elements of a matmul that are computed in f64, besides the four corners.
const SAMPLES: usize = 28;
/// TF32 has 13 fewer bits than f32; one in thousands of sums is off by four standard deviations.
const TF32_ROUNDINGS: f64 = 4.0 * 8192.0;
/// Some of cuBLASLt's kernels round a product once more before they add it to its destination. It
/// exceeds the result by what the destination held: up to twice the root mean square of all
/// results.
const PRODUCT_ROUNDINGS: f64 = 3.0;

/// The outcome of a case.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A wrong result or a failure, in one line.
    Wrong(String),
    /// The device does not have this many bytes.
    TooLarge(usize),
    Right(Measured),
}

#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// One run per matmul choice; a single run for other kernels.
    pub runs: Vec<Measurement>,
    /// Why cuBLASLt has no result: it lacks this matmul, or is not installed.
    pub missing: Option<String>,
    /// Plans of the case's matmuls with the times of alternatives, one line per tuned matmul.
    pub plans: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Measurement {
    pub matmul: MatmulChoice,
    /// `None` on a device whose times are meaningless.
    pub times: Option<Times>,
    /// Only on a device that counts.
    pub counted: Option<Counted>,
}

/// Counts of one call.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub counts: Counts,
    /// The kernel with the most tensor core FLOPs.
    pub device_kernel: Option<&'static str>,
}

/// Microseconds per call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    pub median: f64,
    pub min: f64,
    pub p10: f64,
    pub p90: f64,
}

impl Times {
    fn of(mut us: Vec<f64>) -> Self {
        us.sort_by(f64::total_cmp);
        let at = |share: f64| us[(share * (us.len() - 1) as f64).round() as usize];
        Times { median: at(0.5), min: us[0], p10: at(0.1), p90: at(0.9) }
    }
}

pub struct Bench {
    cuda: Cuda,
    dtype: Dtype,
    reps: usize,
    room_bytes: usize,
    /// `None` where there is no cache to clear.
    cold: Option<Tensor>,
    /// (1) f32
    scalar: Tensor,
    emulated: bool,
}

impl Bench {
    /// Opens the device and allocates the memory of the largest case.
    ///
    /// # Errors
    /// If there is no such device, in one line.
    pub fn open(args: &Args, cases: &[Case]) -> Result<Self> {
        let options = CudaOptions {
            dtype: args.dtype,
            tf32: true,
            gelu_fusion: args.gelu_fusion,
            deterministic: false,
            matmul: MatmulChoice::Fastest,
            graphs: false,
        };
        let emulated = args.device == DeviceName::Emulated;
        let mut cuda = match emulated {
            true => {
                let driver =
                    emulated::open(args.dtype, EmulatorOptions { count: true, ..EmulatorOptions::default() });
                Cuda::new(driver.context("--device emulated")?, options)
            }
            false => {
                let driver = Nvidia::open(0, args.dtype);
                Cuda::new(Box::new(driver.context("--device cuda")?), options)
            }
        };
        let limits: Vec<_> = cases.iter().map(|case| case.limits).collect();
        let mut plan = MemoryPlan::new();
        let cold_bytes = if emulated { 0 } else { COLD_BYTES };
        plan_scratch(&cuda, &limits, &mut plan)?;
        let others = plan.size_bytes() + cold_bytes;
        // A tenth stays free for the driver, cuBLASLt and other processes.
        let room = cuda.gpu().map_or(usize::MAX, |gpu| (gpu.memory_bytes / 10 * 9).saturating_sub(others));
        let sizes = |case: &Case| [case.operands(args.dtype), case.few_operands(args.dtype, args.dtype)];
        let needs = cases.iter().flat_map(sizes).map(|operands| operands.size_bytes);
        let room_bytes = needs.filter(|&bytes| bytes <= room).max().unwrap_or_default();

        let mut plan = MemoryPlan::new();
        plan.add(ARENA, ARENA, Dtype::Bf16, room_bytes / 2);
        let scalar = plan.add("results", "scalar", Dtype::F32, 1);
        let cold = (!emulated).then(|| plan.add("cold", "cold", Dtype::F32, cold_bytes / 4));
        plan_scratch(&cuda, &limits, &mut plan)?;
        cuda.allocate(&plan)?;
        Ok(Bench { cuda, dtype: args.dtype, reps: args.reps, room_bytes, cold, scalar, emulated })
    }

    /// The vendor's name of the device, and the element type.
    pub fn describe(&self) -> String {
        self.cuda.describe()
    }

    /// Libraries used besides our kernels, one line each.
    ///
    /// # Errors
    /// If a library is installed but unusable, in one line.
    pub fn libraries(&mut self) -> Result<Vec<String>> {
        let libraries = self.cuda.libraries()?;
        Ok(libraries.into_iter().map(|(name, found)| format!("{name} {found}")).collect())
    }

    /// The GPU's name; `None` for the emulated device.
    pub fn gpu_name(&self) -> Option<String> {
        self.cuda.gpu().map(|gpu| gpu.name)
    }

    /// Checks a case, then times it.
    pub fn run(&mut self, case: &Case) -> Outcome {
        let bytes = case.operands(self.dtype).size_bytes;
        if bytes > self.room_bytes {
            return Outcome::TooLarge(bytes);
        }
        self.checked_and_measured(case).map_or_else(|e| Outcome::Wrong(format!("{e:#}")), Outcome::Right)
    }

    fn checked_and_measured(&mut self, case: &Case) -> Result<Measured> {
        let small = case.few_operands(self.dtype, self.dtype);
        let want = outputs_on_cpu(case, self.dtype)?;
        let (mut choices, mut missing) = (Vec::new(), None);
        for choice in self.choices(case) {
            self.cuda.choose_matmul(choice);
            match outputs(&mut self.cuda, &small) {
                Err(error) if choice == MatmulChoice::Cublaslt => missing = Some(format!("{error:#}")),
                got => {
                    let tolerances = tolerances(&small, self.dtype, choice);
                    compare(&got?, &want, &tolerances).with_context(|| choice.to_string())?;
                    choices.push(choice);
                }
            }
        }
        let t = case.operands(self.dtype);
        t.fill(&mut self.cuda)?;
        // Plans of the small case are of no interest.
        self.cuda.take_matmul_plans();
        let mut runs = Vec::new();
        for (i, &matmul) in choices.iter().enumerate() {
            self.cuda.choose_matmul(matmul);
            if i > 0 {
                t.fill_outputs(&mut self.cuda)?;
            }
            self.cuda.take_counts();
            t.run(&mut self.cuda)?;
            let counted = sum(&self.cuda.take_counts());
            let tolerances = tolerances(&t, self.dtype, matmul);
            self.check_full(&t, &tolerances).with_context(|| format!("{matmul}, full size"))?;
            runs.push(Measurement { matmul, times: None, counted });
        }
        self.time(&t, &mut runs)?;
        Ok(Measured { runs, missing, plans: self.cuda.take_matmul_plans() })
    }

    /// The matmul choices to compare: without a clock to choose by, every tile.
    fn choices(&self, case: &Case) -> Vec<MatmulChoice> {
        use MatmulChoice::{Cublaslt, Fastest, Hopper, Own, Tile};
        let tile = |(M, N)| Tile { M, N, splits: 1 };
        match (case.is_matmul(), self.emulated, self.dtype) {
            (false, ..) => vec![Fastest],
            (true, false, _) => vec![Fastest, Own, Cublaslt],
            (true, true, Dtype::F32) => [(128, 256), (128, 128), (64, 64)].map(tile).to_vec(),
            (true, true, _) => {
                // Tiles of 64 rows compute no weight gradient.
                let rows = if case.kernel.name.ends_with("wgrad") { &[128][..] } else { &[128, 64] };
                let hopper = rows.iter().map(|&M| Hopper { M, runs: None });
                [(128, 256), (128, 128), (64, 64)].map(tile).into_iter().chain(hopper).collect()
            }
        }
    }

    /// Checks the full-size outputs: every element is finite, and samples of a matmul are correct.
    fn check_full(&mut self, t: &Operands, tolerances: &[f64]) -> Result<()> {
        for output in t.outputs() {
            let mut sum = [0.0f32];
            match output.tensor.dtype {
                Dtype::F32 => self.cuda.sum(self.scalar, output.tensor)?,
                _ => self.cuda.norm_squared(self.scalar, &[output.tensor])?,
            }
            download_f32(&mut self.cuda, &mut sum, self.scalar)?;
            ensure!(sum[0].is_finite(), "{}: an element is {}", output.name, sum[0]);
        }
        let expected: Vec<_> = t.ops.iter().flat_map(|op| samples(op, t)).collect();
        for (output, &tolerance) in t.outputs().zip(tolerances) {
            let (mut got, mut want) = (Vec::new(), Vec::new());
            for &(_, index, value) in expected.iter().filter(|(tensor, ..)| *tensor == output.tensor) {
                let mut element = [0.0f32];
                download_f32(&mut self.cuda, &mut element, output.tensor.slice(index, 1))?;
                got.push(element[0]);
                want.push(value);
            }
            compare_one(output.name, &got, &want, tolerance)?;
        }
        Ok(())
    }

    /// Overwrites the first output of a full-size case with `value` and checks it, to test the
    /// check.
    ///
    /// # Errors
    /// The fault that the check found.
    pub fn check_spoiled(&mut self, case: &Case, value: f32) -> Result<()> {
        let t = case.operands(self.dtype);
        t.fill(&mut self.cuda)?;
        t.run(&mut self.cuda)?;
        let first = t.outputs().next().context("an output")?;
        self.cuda.fill(first.tensor, value)?;
        self.check_full(&t, &tolerances(&t, self.dtype, MatmulChoice::Own))
    }

    /// Times the runs alternately; each call starts with a cold cache.
    fn time(&mut self, t: &Operands, runs: &mut [Measurement]) -> Result<()> {
        let Some(cold) = self.cold else { return Ok(()) };
        let mut us = vec![Vec::with_capacity(self.reps); runs.len()];
        for rep in 0..=self.reps {
            for (run, us) in runs.iter().zip(&mut us) {
                self.cuda.choose_matmul(run.matmul);
                // While this is written, the host queues the timed call.
                self.cuda.fill(cold, 1.0 + rep as f32)?;
                let ms = self.cuda.time(|cuda| t.run(cuda))?.context("a GPU without a clock")?;
                // The first round warms up clocks and code.
                if rep > 0 {
                    us.push(1e3 * f64::from(ms));
                }
            }
        }
        for (run, us) in runs.iter_mut().zip(us) {
            run.times = Some(Times::of(us));
        }
        Ok(())
    }
}

/// Returns the expected values of some elements of a matmul's results: those of the corners and of
/// random places.
fn samples(op: &Op, t: &Operands) -> Vec<(Tensor, usize, f64)> {
    let Some((rows, columns)) = elements::extent(op) else { return Vec::new() };
    let mut rng = Mt19937::new(11);
    let mut below = |end: usize| rng.randint32() as usize % end;
    let corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)];
    let places = corners.into_iter().chain((0..SAMPLES).map(|_| (below(rows), below(columns))));
    places.flat_map(|(row, column)| elements::expected(op, t, row, column)).collect()
}

/// Returns the tolerance of each output, relative to the output, where this choice computes the
/// matmul.
pub fn tolerances(t: &Operands, dtype: Dtype, choice: MatmulChoice) -> Vec<f64> {
    let library = matches!(choice, MatmulChoice::Fastest | MatmulChoice::Cublaslt);
    let of_op = |op: &Op| {
        let tf32 = if dtype == Dtype::F32 && elements::extent(op).is_some() { TF32_ROUNDINGS } else { 0.0 };
        let added_to = match op.call {
            Call::MatmulBackward(a) if library && !a.overwrite_dweight => a.dweight,
            _ => None,
        };
        let outputs = op.outputs().into_iter().map(move |output| {
            let adds = if added_to == Some(output.tensor) { PRODUCT_ROUNDINGS } else { 0.0 };
            let roundings = output.tolerance.roundings + tf32 + adds;
            Tolerance { roundings, ..output.tolerance }.relative(dtype)
        });
        outputs.collect::<Vec<_>>()
    };
    t.ops.iter().flat_map(of_op).collect()
}

/// Returns `None` if nothing was launched: clearing memory takes no kernel.
fn sum(launched: &BTreeMap<&'static str, Counts>) -> Option<Counted> {
    let mut sum = Counts::default();
    launched.values().for_each(|counts| sum += *counts);
    let most = launched.iter().max_by_key(|(_, counts)| counts.tensor_flops);
    let device_kernel = most.filter(|(_, counts)| counts.tensor_flops > 0).map(|(name, _)| *name);
    (sum.launches > 0).then_some(Counted { counts: sum, device_kernel })
}

/// The name of an output and its values on the host.
type Values = (&'static str, Vec<f32>);

/// Runs operations from their inputs and returns their outputs.
fn outputs(dev: &mut impl Target, t: &Operands) -> Result<Vec<Values>> {
    t.fill(dev)?;
    t.run(dev)?;
    let mut outputs = Vec::new();
    for output in t.outputs() {
        let mut values = vec![0.0; output.tensor.len];
        download_f32(dev, &mut values, output.tensor)?;
        outputs.push((output.name, values));
    }
    Ok(outputs)
}

/// Computes the expected outputs of the small case.
fn outputs_on_cpu(case: &Case, dtype: Dtype) -> Result<Vec<Values>> {
    let mut cpu = Cpu::new(Precision::F32)?;
    let t = case.few_operands(dtype, Dtype::F32);
    let mut plan = MemoryPlan::new();
    plan.add(ARENA, ARENA, Dtype::Bf16, t.size_bytes / 2);
    plan_scratch(&cpu, &[case.limits], &mut plan)?;
    cpu.allocate(&plan)?;
    outputs(&mut cpu, &t)
}

fn compare(got: &[Values], want: &[Values], tolerances: &[f64]) -> Result<()> {
    ensure!(got.len() == want.len() && !got.is_empty(), "{} outputs, expected {}", got.len(), want.len());
    got.iter()
        .zip(want)
        .zip(tolerances)
        .try_for_each(|(((name, got), (_, want)), &tolerance)| compare_one(name, got, want, tolerance))
}

fn compare_one<W: Into<f64> + Copy>(name: &str, got: &[f32], want: &[W], tolerance: f64) -> Result<()> {
    close(got, want, tolerance).map_err(|fault| anyhow!("{name}: {fault}"))
}
