//! The choice of implementation for a matmul on this CPU.

#[cfg(target_arch = "x86_64")]
use super::packed::Instructions;
use super::product::Product;
use super::{Precision, Scratch, portable};
use std::fmt;

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
