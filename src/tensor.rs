//! Tensors are handles: arena, offset, length and type. They own nothing and are `Copy`; a
//! [`Device`](crate::ops::Device) owns the memory behind them.
//!
//! One [`MemoryPlan`] describes all memory of a run before the first byte is allocated, so that it
//! can be printed and checked against the machine, and never grows while training.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
    I32,
}

impl Dtype {
    const ALL: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I32];

    /// The name in flags, logs, records and checkpoints.
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The name in PyTorch, and so in Hugging Face's `config.json`.
    pub fn pytorch_name(self) -> &'static str {
        self.names()[1]
    }

    /// All names that are understood: ours, PyTorch's, others.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Dtype::F32 => &["f32", "float32"],
            Dtype::Bf16 => &["bf16", "bfloat16"],
            Dtype::F16 => &["fp16", "float16", "f16"],
            Dtype::I32 => &["i32", "int32"],
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }
}

/// Rounds `wide` to the 16-bit type `dtype`: to nearest, ties to even.
///
/// # Panics
/// If the lengths differ, or `dtype` is neither bf16 nor fp16.
pub fn round(narrow: &mut [u16], wide: &[f32], dtype: Dtype) {
    match dtype {
        Dtype::Bf16 => bytemuck::cast_slice_mut::<_, bf16>(narrow).convert_from_f32_slice(wide),
        Dtype::F16 => bytemuck::cast_slice_mut::<_, f16>(narrow).convert_from_f32_slice(wide),
        Dtype::F32 | Dtype::I32 => panic!("cannot round to {dtype}"),
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|dtype| dtype.names().contains(&name));
        known.ok_or_else(|| format!("expected {}, found {name}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Type of a model's matrices in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Float(Dtype),
    /// ggml's: blocks of 32 elements, each a byte, and a scale of fp16.
    Q8_0,
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Stored::Float(dtype) => dtype.fmt(f),
            Stored::Q8_0 => f.pad("q8_0"),
        }
    }
}

impl FromStr for Stored {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == Stored::Q8_0.to_string() { Ok(Stored::Q8_0) } else { name.parse().map(Stored::Float) }
    }
}

/// A contiguous run of elements in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Number of the arena in the plan.
    pub arena: usize,
    /// Bytes from the start of the arena.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    pub dtype: Dtype,
}

impl Tensor {
    /// Size in bytes; the largest number if it is none that 64 bits can hold.
    pub fn size_bytes(&self) -> usize {
        self.len.saturating_mul(self.dtype.size())
    }

    /// Elements `start .. start + len` of this tensor.
    ///
    /// # Panics
    /// If the range is not inside the tensor.
    pub fn slice(&self, start: usize, len: usize) -> Tensor {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "slice {start}+{len} of a tensor of {}",
            self.len
        );
        Tensor { offset: self.offset + start * self.dtype.size(), len, ..*self }
    }

    /// Part `index` of this tensor, cut into equal parts of `len` elements: for example, one layer
    /// of a per-layer tensor.
    pub fn part(&self, index: usize, len: usize) -> Tensor {
        self.slice(index * len, len)
    }
}

/// Alignment of every tensor in an arena, in bytes: a multiple of the width of the widest vector
/// load and of the alignment that the strictest matmul library needs.
pub const TENSOR_ALIGN: usize = 256;

/// One named arena: one allocation on the device that holds the planned tensors back to back.
#[derive(Clone, Debug)]
pub struct ArenaPlan {
    pub name: &'static str,
    pub size_bytes: usize,
    pub tensors: Vec<(&'static str, Tensor)>,
}

/// All memory that a run allocates on a device. Arena numbers are positions in `arenas`.
#[derive(Clone, Debug, Default)]
pub struct MemoryPlan {
    pub arenas: Vec<ArenaPlan>,
}

impl MemoryPlan {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves `len` elements in the arena named `arena`, which its first tensor creates. Sizes
    /// saturate: a device refuses to allocate an arena of the largest size.
    pub fn add(&mut self, arena: &'static str, name: &'static str, dtype: Dtype, len: usize) -> Tensor {
        let index = self.arenas.iter().position(|a| a.name == arena).unwrap_or_else(|| {
            self.arenas.push(ArenaPlan { name: arena, size_bytes: 0, tensors: Vec::new() });
            self.arenas.len() - 1
        });
        let plan = &mut self.arenas[index];
        let tensor = Tensor { arena: index, offset: plan.size_bytes, len, dtype };
        let aligned = tensor.size_bytes().checked_next_multiple_of(TENSOR_ALIGN).unwrap_or(usize::MAX);
        plan.size_bytes = plan.size_bytes.saturating_add(aligned);
        plan.tensors.push((name, tensor));
        tensor
    }

    pub fn size_bytes(&self) -> usize {
        self.arenas.iter().fold(0, |sum, arena| sum.saturating_add(arena.size_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_plan_never_wrap() {
        let mut plan = MemoryPlan::new();
        plan.add("a", "small", Dtype::F32, 1);
        assert_eq!(plan.size_bytes(), TENSOR_ALIGN);
        for len in [usize::MAX / 4, usize::MAX, 1] {
            plan.add("a", "huge", Dtype::F32, len);
            plan.add("b", "huge", Dtype::Bf16, len);
            assert_eq!(plan.size_bytes(), usize::MAX);
        }
    }
}
