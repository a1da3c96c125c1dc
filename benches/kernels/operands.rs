//! The tensors of a case: laid out at the start of one arena, and known element by element on the
//! host, so that a sum over them can be checked without a copy.

use crate::op::{Op, Output, Part, Target};
use anyhow::Result;
use half::{bf16, f16};
use std::cell::OnceCell;
use warpsmith::ops::{Access, Device, upload_f32};
use warpsmith::rng::Mt19937;
use warpsmith::tensor::{Dtype, TENSOR_ALIGN, Tensor};

/// The arena that the cases share, the first of a plan.
pub const ARENA: &str = "cases";

/// Period of the random numbers: a prime, so that no row or column of a matrix repeats its
/// neighbor.
const PERIOD: usize = 1_048_573;

/// The type of parameters, activations and gradients in a recording.
const RECORDED: Dtype = Dtype::Bf16;

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

struct Operand {
    tensor: Tensor,
    content: Content,
}

/// Operations on tensors of their own.
pub struct Operands {
    pub ops: Vec<Op>,
    pub size_bytes: usize,
    all: Vec<Operand>,
}

impl Operands {
    /// Lays out the tensors of recorded operations. Numbers are rounded to `dtype`, the device's
    /// type, and stored as `stored`: f32 on the CPU. Tokens are below `V`.
    pub fn new(recorded: &[Op], V: usize, dtype: Dtype, stored: Dtype) -> Self {
        let (mut ops, mut size_bytes, mut all) = (recorded.to_vec(), 0, Vec::new());
        for op in &mut ops {
            let mut tensors = Vec::new();
            op.call.for_each_tensor(|tensor, access| {
                let is_float = tensor.dtype == RECORDED;
                let placed = if is_float { stored } else { tensor.dtype };
                *tensor = Tensor { arena: 0, offset: size_bytes, dtype: placed, ..*tensor };
                size_bytes += tensor.size_bytes().next_multiple_of(TENSOR_ALIGN);
                tensors.push((*tensor, access, if is_float { dtype } else { placed }));
            });
            let outputs = op.outputs();
            for (tensor, access, rounded_to) in tensors {
                let is_output = outputs.iter().any(|output| output.tensor == tensor);
                let is_input = access == Access::Read || op.part != Part::Whole;
                assert!(is_input || is_output, "{:?}: an output is not checked", op.call);
                let content = match rounded_to {
                    Dtype::I32 => Content::Integers(op.integers(tensor, V)),
                    _ if is_output && access == Access::Write => Content::Nothing,
                    // Numbers differ between tensors, but are the same on the CPU and the device.
                    _ => Content::Numbers {
                        seed: 1 + all.len() as u32,
                        range: op.range(tensor),
                        rounded_to,
                        values: OnceCell::new(),
                    },
                };
                all.push(Operand { tensor, content });
            }
        }
        Operands { ops, size_bytes, all }
    }

    /// All results.
    pub fn outputs(&self) -> impl Iterator<Item = Output> {
        self.ops.iter().flat_map(Op::outputs)
    }

    /// Fills every tensor with its content, and computes the inputs that depend on others.
    pub fn fill(&self, dev: &mut impl Target) -> Result<()> {
        self.all.iter().try_for_each(|operand| operand.fill(dev))?;
        self.ops.iter().filter_map(Op::before).try_for_each(|call| call.apply(dev))
    }

    /// Refills the outputs before another kernel runs.
    pub fn fill_outputs(&self, dev: &mut impl Target) -> Result<()> {
        self.outputs().try_for_each(|output| self.of(output.tensor).fill(dev))
    }

    pub fn run(&self, dev: &mut impl Target) -> Result<()> {
        self.ops.iter().try_for_each(|op| op.run(dev))
    }

    /// The initial number at `index` of a tensor.
    pub fn value(&self, tensor: Tensor, index: usize) -> f64 {
        f64::from(self.of(tensor).numbers()[index % PERIOD])
    }

    fn of(&self, tensor: Tensor) -> &Operand {
        self.all.iter().find(|operand| operand.tensor == tensor).expect("a tensor of the case")
    }
}

impl Operand {
    /// The numbers that repeat in it.
    fn numbers(&self) -> &[f32] {
        let Content::Numbers { seed, range: (low, high), rounded_to, values } = &self.content else {
            panic!("{:?} has no numbers to begin with", self.tensor)
        };
        values.get_or_init(|| {
            let mut rng = Mt19937::new(*seed);
            let mut unit = || rng.randint32() as f32 / 2f32.powi(32);
            let number = |_| round(low + (high - low) * unit(), *rounded_to);
            (0..self.tensor.len.min(PERIOD)).map(number).collect()
        })
    }

    fn fill(&self, dev: &mut impl Device) -> Result<()> {
        let poison;
        let values = match &self.content {
            Content::Integers(values) => return dev.upload(self.tensor, bytemuck::cast_slice(values)),
            Content::Numbers { .. } => self.numbers(),
            Content::Nothing => {
                poison = vec![f32::NAN; self.tensor.len.min(PERIOD)];
                &poison
            }
        };
        for start in (0..self.tensor.len).step_by(PERIOD) {
            let part = self.tensor.slice(start, PERIOD.min(self.tensor.len - start));
            upload_f32(dev, part, &values[..part.len])?;
        }
        Ok(())
    }
}

fn round(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}
