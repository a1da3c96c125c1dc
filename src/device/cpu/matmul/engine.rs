//! The implementations of matmuls, and the choice among them on this CPU.

#[cfg(target_arch = "x86_64")]
use super::packed::{Buffers, Instructions};
use super::portable;
use super::product::Product;
use anyhow::{Result, ensure};
use std::fmt;

/// Operand type of matmuls; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Whether this CPU has the instructions. There is no software bf16, because it would gain
    /// nothing.
    pub fn is_supported(self) -> bool {
        Engine::best(self).is_some()
    }

    /// Checks that the precision is supported.
    ///
    /// # Errors
    /// If this CPU lacks the instructions.
    pub fn require_support(self) -> Result<()> {
        ensure!(
            self.is_supported(),
            "--dtype bf16: this CPU has no AVX512-BF16 or AMX instructions; use --dtype f32"
        );
        Ok(())
    }

    /// Returns `"f32 (AVX-512)"`, `"bf16 (AMX)"`, …
    pub fn describe(self) -> String {
        Engine::best(self).map_or("bf16 (not on this CPU)".into(), |engine| engine.to_string())
    }
}

/// Buffers that are reused by later matmuls.
#[derive(Default)]
pub struct Scratch {
    #[cfg(target_arch = "x86_64")]
    packed: Buffers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The `gemm` crate: f32 on any CPU.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Packed(Instructions),
}

impl Engine {
    /// Returns all engines that this CPU can run, the best first.
    pub fn available(precision: Precision) -> impl Iterator<Item = Engine> {
        #[cfg(target_arch = "x86_64")]
        let packed: &[Instructions] = match precision {
            Precision::F32 => &[Instructions::F32Amx, Instructions::F32Avx512],
            Precision::Bf16 => &[Instructions::Bf16Amx, Instructions::Bf16Avx512],
        };
        #[cfg(target_arch = "x86_64")]
        let packed = packed.iter().filter(|i| i.available()).map(|&i| Engine::Packed(i));
        #[cfg(not(target_arch = "x86_64"))]
        let packed = [].into_iter();
        packed.chain((precision == Precision::F32).then_some(Engine::Portable))
    }

    pub fn best(precision: Precision) -> Option<Engine> {
        Self::available(precision).next()
    }

    /// Returns the best engine.
    ///
    /// # Panics
    /// If this CPU does not support the precision.
    pub fn of(precision: Precision) -> Engine {
        Self::best(precision).expect("unsupported precisions are refused at start-up")
    }

    /// Bytes of [`Scratch`] for matmuls of these rows of lhs and lengths of sums. The `gemm` crate
    /// has buffers of its own, about as large as a cache.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn packed_bytes(self, lhs: impl Iterator<Item = (usize, usize)>) -> usize {
        match self {
            Engine::Portable => 0,
            #[cfg(target_arch = "x86_64")]
            Engine::Packed(instructions) => instructions.packed_bytes(lhs),
        }
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn run(self, scratch: &mut Scratch, product: Product) {
        match self {
            Engine::Portable => portable::run(&product),
            #[cfg(target_arch = "x86_64")]
            Engine::Packed(instructions) => instructions.run(&mut scratch.packed, &product),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Portable => "f32",
            #[cfg(target_arch = "x86_64")]
            Engine::Packed(Instructions::F32Amx) => "f32 (AMX, three bf16 per number)",
            #[cfg(target_arch = "x86_64")]
            Engine::Packed(Instructions::F32Avx512) => "f32 (AVX-512)",
            #[cfg(target_arch = "x86_64")]
            Engine::Packed(Instructions::Bf16Avx512) => "bf16 (AVX512-BF16)",
            #[cfg(target_arch = "x86_64")]
            Engine::Packed(Instructions::Bf16Amx) => "bf16 (AMX)",
        })
    }
}
