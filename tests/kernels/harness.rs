//! Runs one operation on the CPU device and on the device under test, and compares every output.
//!
//! A case declares its tensors and returns the work on them. Inputs are rounded to the device's
//! type before either device sees them, outputs start as NaN, and each tensor is followed by a band
//! of NaN that must stay as it is.

use crate::devices::{self, Under};
use std::panic::{AssertUnwindSafe, catch_unwind};
pub use warpsmith::device::compare::Tolerance;
use warpsmith::device::compare::assert_close;
use warpsmith::device::cpu::Cpu;
use warpsmith::device::cpu::matmul::Precision;
use warpsmith::ops::{Limits, Ops, SCRATCH};
use warpsmith::rng::Mt19937;
use warpsmith::tensor::{Dtype, MemoryPlan, Tensor};

/// The work of a case on the tensors that it declared.
pub type Work = Box<dyn Fn(&mut dyn Ops) -> anyhow::Result<()>>;

/// Bytes after each tensor that must stay untouched.
const GUARD_BYTES: usize = 256;

/// The tensors of a case on one device.
pub struct Tensors {
    /// Type of the device under test.
    pub dtype: Dtype,
    /// Type in which this device stores x tensors.
    stored: Dtype,
    plan: MemoryPlan,
    contents: Vec<(Tensor, Vec<u8>)>,
    guards: Vec<(String, Tensor)>,
    outputs: Vec<(String, Tensor, Tolerance)>,
    /// The limits that scratch memory is planned by.
    pub limits: Limits,
}

impl Tensors {
    fn new(dtype: Dtype, stored: Dtype) -> Self {
        let limits = Limits {
            rows: 512,
            logits_rows: 512,
            T: 512,
            C: 768,
            NH: 12,
            V: 1024,
            Vp: 1024,
            norm_pieces: 128,
        };
        Tensors {
            dtype,
            stored,
            plan: MemoryPlan::new(),
            contents: Vec::new(),
            guards: Vec::new(),
            outputs: Vec::new(),
            limits,
        }
    }

    /// Changes the limits that scratch memory is planned by, for cases beyond the usual ones.
    pub fn limit(&mut self, change: impl Fn(&mut Limits)) {
        change(&mut self.limits);
    }

    /// Adds an input of the device's type.
    pub fn x(&mut self, name: &str, values: &[f32]) -> Tensor {
        let rounded: Vec<f32> = values.iter().map(|&v| round(v, self.dtype)).collect();
        self.add(name, self.stored, encode(&rounded, self.stored))
    }

    pub fn f32(&mut self, name: &str, values: &[f32]) -> Tensor {
        self.add(name, Dtype::F32, encode(values, Dtype::F32))
    }

    pub fn i32(&mut self, name: &str, values: &[i32]) -> Tensor {
        self.add(name, Dtype::I32, bytemuck::cast_slice(values).to_vec())
    }

    /// Adds an output of the device's type that is assigned.
    pub fn out_x(&mut self, name: &str, len: usize, tolerance: Tolerance) -> Tensor {
        self.inout_x(name, &vec![f32::NAN; len], tolerance)
    }

    pub fn out_f32(&mut self, name: &str, len: usize, tolerance: Tolerance) -> Tensor {
        self.inout_f32(name, &vec![f32::NAN; len], tolerance)
    }

    /// Adds an output of the device's type that is added to, or an input overwritten by an output.
    pub fn inout_x(&mut self, name: &str, values: &[f32], tolerance: Tolerance) -> Tensor {
        let tensor = self.x(name, values);
        self.outputs.push((name.to_owned(), tensor, tolerance));
        tensor
    }

    pub fn inout_f32(&mut self, name: &str, values: &[f32], tolerance: Tolerance) -> Tensor {
        let tensor = self.f32(name, values);
        self.outputs.push((name.to_owned(), tensor, tolerance));
        tensor
    }

    /// Adds an output of this type, f32 or bf16, that is added to. The caller compares it.
    pub fn inout_state(&mut self, name: &str, dtype: Dtype, values: &[f32]) -> Tensor {
        let tensor = self.add(name, dtype, encode(values, dtype));
        self.outputs.push((name.to_owned(), tensor, Tolerance::new(1.0, 1)));
        tensor
    }

    /// Returns an output declared before.
    pub fn output(&self, name: &str) -> Tensor {
        let (_, tensor, _) = self.outputs.iter().find(|(n, ..)| n == name).expect("an output of that name");
        *tensor
    }

    /// Adds a tensor with its guard, in an allocation of its own.
    fn add(&mut self, name: &str, dtype: Dtype, bytes: Vec<u8>) -> Tensor {
        let arena: &'static str = format!("{name} {}", self.plan.arenas.len()).leak();
        let reserved = (bytes.len() + GUARD_BYTES).next_multiple_of(GUARD_BYTES);
        let whole = self.plan.add(arena, arena, Dtype::Bf16, reserved / 2);
        let tensor = Tensor { len: bytes.len() / dtype.size(), dtype, ..whole };
        let guard = Tensor { offset: bytes.len(), len: (reserved - bytes.len()) / 2, ..whole };
        self.contents.push((tensor, bytes));
        self.guards.push((name.to_owned(), guard));
        tensor
    }

    /// Runs the work and returns the outputs.
    fn run(mut self, dev: &mut dyn Ops, work: &Work) -> anyhow::Result<Vec<(String, Vec<f32>, Tolerance)>> {
        let scratch = dev.scratch_bytes(&self.limits)?;
        self.plan.add(SCRATCH, SCRATCH, Dtype::F32, scratch.div_ceil(4));
        dev.allocate(&self.plan)?;
        for (tensor, bytes) in &self.contents {
            dev.upload(*tensor, bytes)?;
        }
        for (_, guard) in &self.guards {
            dev.upload(*guard, &vec![0xff; guard.size_bytes()])?;
        }
        work(dev)?;
        for (name, guard) in &self.guards {
            let mut bytes = vec![0; guard.size_bytes()];
            dev.download(&mut bytes, *guard)?;
            assert!(bytes.iter().all(|&byte| byte == 0xff), "something was written past the end of {name}");
        }
        let mut outputs = Vec::new();
        for (name, tensor, tolerance) in self.outputs {
            let mut bytes = vec![0; tensor.size_bytes()];
            dev.download(&mut bytes, tensor)?;
            outputs.push((name, decode(&bytes, tensor.dtype), tolerance));
        }
        Ok(outputs)
    }
}

/// Checks a case for bf16, f16 and f32, in every mode of the device under test.
#[track_caller]
pub fn check(case: &str, declare: impl Fn(&mut Tensors) -> Work) {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        check_dtype(case, dtype, &declare);
    }
}

/// Checks a case for one type.
#[track_caller]
pub fn check_dtype(case: &str, dtype: Dtype, declare: impl Fn(&mut Tensors) -> Work) {
    check_on(case, dtype, devices::under_test(dtype), declare);
}

/// Checks a case on some devices: those of [`devices::under_test`], or some with other options.
#[track_caller]
pub fn check_on(case: &str, dtype: Dtype, devices: Vec<Under>, declare: impl Fn(&mut Tensors) -> Work) {
    let mut tensors = Tensors::new(dtype, Dtype::F32);
    let work = declare(&mut tensors);
    let mut cpu = Cpu::new(Precision::F32).unwrap();
    let want = tensors.run(&mut cpu, &work).unwrap();
    for Under { mode, mut device, .. } in devices {
        let mut tensors = Tensors::new(dtype, dtype);
        let work = declare(&mut tensors);
        let got = tensors
            .run(device.as_mut(), &work)
            .unwrap_or_else(|e| panic!("{case}, {dtype:?}, {mode}: {e:#}"));
        for ((name, got, tolerance), (_, want, _)) in got.iter().zip(&want) {
            let what = format!("{case}, {dtype:?}, {mode}: {name}");
            assert_close(&what, got, want, tolerance.relative(dtype));
        }
    }
}

/// Runs a case on one device and returns its outputs, to compare a device with itself.
#[track_caller]
pub fn outputs_of(mut under: Under, dtype: Dtype, declare: impl Fn(&mut Tensors) -> Work) -> Vec<Vec<f32>> {
    let mut tensors = Tensors::new(dtype, dtype);
    let work = declare(&mut tensors);
    let outputs =
        tensors.run(under.device.as_mut(), &work).unwrap_or_else(|e| panic!("{}: {e:#}", under.mode));
    outputs.into_iter().map(|(_, values, _)| values).collect()
}

/// Checks that the device under test panics at a case in bf16 with these words.
#[track_caller]
pub fn refuses(case: &str, words: &str, declare: impl Fn(&mut Tensors) -> Work) {
    for under in devices::under_test(Dtype::Bf16) {
        let mode = under.mode.clone();
        let run = AssertUnwindSafe(|| outputs_of(under, Dtype::Bf16, &declare));
        let panic = catch_unwind(run).err().unwrap_or_else(|| panic!("{case}, {mode}: passed"));
        let found = panic.downcast_ref::<String>().map(String::as_str).unwrap_or_default();
        assert!(found.contains(words), "{case}, {mode}: expected {words}, found {found}");
    }
}

/// Numbers between -1 and 1 that depend only on the seed.
pub fn random(seed: u32, len: usize) -> Vec<f32> {
    let mut rng = Mt19937::new(seed);
    (0..len).map(|_| rng.randint32() as f32 / 2f32.powi(31) - 1.0).collect()
}

/// Indices below `end`.
pub fn random_indices(seed: u32, len: usize, end: usize) -> Vec<i32> {
    let mut rng = Mt19937::new(seed);
    (0..len).map(|_| (rng.randint32() as usize % end) as i32).collect()
}

pub fn round(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_ne_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_ne_bytes()).collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::Bf16 => pairs.map(|b| half::bf16::from_ne_bytes(b).to_f32()).collect(),
        Dtype::F16 => pairs.map(|b| half::f16::from_ne_bytes(b).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

#[cfg(test)]
mod tests {
    //! The harness itself: the faults that it must find.
    use super::*;
    use std::cell::Cell;

    fn cpu() -> Vec<Under> {
        let device = Box::new(Cpu::new(Precision::F32).unwrap());
        vec![Under { mode: "CPU".to_owned(), sm_count: 1, device }]
    }

    /// Fills an output with 1 on the first device and with `second` on the other, `elements` of 5.
    fn fill(second: f32, elements: usize) {
        let runs = Cell::new(0);
        check_on("fill", Dtype::F32, cpu(), |t| {
            let out = t.out_x("out", 5, Tolerance::new(1.0, 1));
            runs.set(runs.get() + 1);
            let (value, len) = if runs.get() == 1 { (1.0, 5) } else { (second, elements) };
            Box::new(move |dev| dev.fill(Tensor { len, ..out }, value))
        });
    }

    #[test]
    fn the_same_passes() {
        fill(1.0, 5);
    }

    #[test]
    #[should_panic(expected = "of 5 is 2e0, want 1e0")]
    fn another_number_fails() {
        fill(2.0, 5);
    }

    #[test]
    #[should_panic(expected = "is NaN")]
    fn an_element_left_out_fails() {
        fill(1.0, 4);
    }

    #[test]
    #[should_panic(expected = "something was written past the end of out")]
    fn a_write_past_the_end_fails() {
        fill(1.0, 6);
    }
}
