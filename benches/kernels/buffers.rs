//! The tensors of a case. They are declared with their contents, laid out at the start of one
//! arena, and known element by element on the host, so that a sum over them can be checked without
//! a copy.

use anyhow::Result;
use half::{bf16, f16};
use std::cell::OnceCell;
use warpsmith::device::compare::Tolerance;
use warpsmith::ops::Device;
use warpsmith::rng::Mt19937;
use warpsmith::tensor::{Dtype, TENSOR_ALIGN, Tensor};

/// The arena that the cases share, the first of a plan.
pub const ARENA: &str = "cases";

/// Period of the random numbers: a prime, so that no row or column of a matrix repeats its
/// neighbor.
const PERIOD: usize = 1_048_573;

enum Content {
    /// Random numbers, rounded to the device's type and repeated; generated on first use.
    Numbers {
        seed: u32,
        range: (f32, f32),
        rounded_to: Dtype,
        values: OnceCell<Vec<f32>>,
    },
    Integers(Vec<i32>),
    /// To be overwritten: NaN.
    Nothing,
}

pub struct Buffer {
    pub name: &'static str,
    pub tensor: Tensor,
    content: Content,
    /// Tolerance, for outputs.
    pub tolerance: Option<Tolerance>,
}

pub struct Buffers {
    /// Element type of the device, to which numbers are rounded.
    dtype: Dtype,
    /// Storage type of x tensors: f32 on the CPU.
    stored: Dtype,
    used_bytes: usize,
    pub all: Vec<Buffer>,
}

impl Buffers {
    pub fn new(dtype: Dtype, stored: Dtype) -> Self {
        Buffers { dtype, stored, used_bytes: 0, all: Vec::new() }
    }

    pub fn size_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Declares an input of the device's type, with numbers between `-size` and `size`.
    pub fn x(&mut self, name: &'static str, len: usize, size: f32) -> Tensor {
        self.numbers(name, len, (self.stored, self.dtype), (-size, size), None)
    }

    /// Declares an input in f32.
    pub fn f32(&mut self, name: &'static str, len: usize, range: (f32, f32)) -> Tensor {
        self.numbers(name, len, (Dtype::F32, Dtype::F32), range, None)
    }

    pub fn i32(&mut self, name: &'static str, values: Vec<i32>) -> Tensor {
        self.add(name, values.len(), Dtype::I32, Content::Integers(values), None)
    }

    /// Declares indices below `end`.
    pub fn indices(&mut self, name: &'static str, len: usize, end: usize) -> Tensor {
        self.i32(name, random_indices(len, end))
    }

    /// Declares an output that is assigned.
    pub fn out_x(&mut self, name: &'static str, len: usize, tolerance: Tolerance) -> Tensor {
        self.add(name, len, self.stored, Content::Nothing, Some(tolerance))
    }

    pub fn out_f32(&mut self, name: &'static str, len: usize, tolerance: Tolerance) -> Tensor {
        self.add(name, len, Dtype::F32, Content::Nothing, Some(tolerance))
    }

    /// Declares an output that is added to, or an input that an output overwrites.
    pub fn inout_x(&mut self, name: &'static str, len: usize, size: f32, tolerance: Tolerance) -> Tensor {
        self.numbers(name, len, (self.stored, self.dtype), (-size, size), Some(tolerance))
    }

    pub fn inout_f32(
        &mut self,
        name: &'static str,
        len: usize,
        range: (f32, f32),
        tolerance: Tolerance,
    ) -> Tensor {
        self.numbers(name, len, (Dtype::F32, Dtype::F32), range, Some(tolerance))
    }

    fn numbers(
        &mut self,
        name: &'static str,
        len: usize,
        (dtype, rounded_to): (Dtype, Dtype),
        range: (f32, f32),
        tolerance: Option<Tolerance>,
    ) -> Tensor {
        // Numbers differ between tensors, but are the same on the CPU and the device.
        let seed = 1 + self.all.len() as u32;
        let content = Content::Numbers { seed, range, rounded_to, values: OnceCell::new() };
        self.add(name, len, dtype, content, tolerance)
    }

    fn add(
        &mut self,
        name: &'static str,
        len: usize,
        dtype: Dtype,
        content: Content,
        tolerance: Option<Tolerance>,
    ) -> Tensor {
        let tensor = Tensor { arena: 0, offset: self.used_bytes, len, dtype };
        self.used_bytes += tensor.size_bytes().next_multiple_of(TENSOR_ALIGN);
        self.all.push(Buffer { name, tensor, content, tolerance });
        tensor
    }

    pub fn outputs(&self) -> impl Iterator<Item = (&Buffer, Tolerance)> {
        self.all.iter().filter_map(|buffer| Some((buffer, buffer.tolerance?)))
    }

    /// Fills every tensor with its content.
    pub fn fill(&self, dev: &mut (impl Device + ?Sized)) -> Result<()> {
        self.all.iter().try_for_each(|buffer| buffer.fill(dev))
    }

    /// Refills the outputs before another device or kernel runs.
    pub fn fill_outputs(&self, dev: &mut (impl Device + ?Sized)) -> Result<()> {
        self.outputs().try_for_each(|(buffer, _)| buffer.fill(dev))
    }

    /// The initial number at `index` of a tensor.
    pub fn value(&self, tensor: Tensor, index: usize) -> f64 {
        let buffer = self.all.iter().find(|buffer| buffer.tensor == tensor).expect("a declared tensor");
        f64::from(buffer.numbers()[index % PERIOD])
    }
}

impl Buffer {
    /// The numbers that repeat in it.
    fn numbers(&self) -> &[f32] {
        let Content::Numbers { seed, range: (low, high), rounded_to, values } = &self.content else {
            panic!("{} has no numbers to begin with", self.name)
        };
        values.get_or_init(|| {
            let mut rng = Mt19937::new(*seed);
            let mut unit = || rng.randint32() as f32 / 2f32.powi(32);
            (0..self.tensor.len.min(PERIOD))
                .map(|_| round(low + (high - low) * unit(), *rounded_to))
                .collect()
        })
    }

    fn fill(&self, dev: &mut (impl Device + ?Sized)) -> Result<()> {
        let bytes = match &self.content {
            Content::Integers(values) => return dev.upload(self.tensor, bytemuck::cast_slice(values)),
            Content::Numbers { .. } => encode(self.numbers(), self.tensor.dtype),
            Content::Nothing => encode(&vec![f32::NAN; self.tensor.len.min(PERIOD)], self.tensor.dtype),
        };
        for start in (0..self.tensor.len).step_by(PERIOD) {
            let part = self.tensor.slice(start, PERIOD.min(self.tensor.len - start));
            dev.upload(part, &bytes[..part.size_bytes()])?;
        }
        Ok(())
    }
}

/// Returns the same random indices every time.
pub fn random_indices(len: usize, end: usize) -> Vec<i32> {
    let mut rng = Mt19937::new(7);
    (0..len).map(|_| (rng.randint32() as usize % end) as i32).collect()
}

fn round(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_ne_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_ne_bytes()).collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}
