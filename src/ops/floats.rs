//! Conversion between the host, where numbers are f32, and a device, where they have the type it
//! computes in.

use super::Device;
use crate::tensor::{Dtype, Tensor, round};
use anyhow::Result;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements converted at a time, so that the host never holds a second copy of a model.
const CHUNK: usize = 1 << 20;

/// Copies `src` to a tensor of any floating-point type, rounding to nearest, ties to even.
///
/// # Panics
/// If the lengths differ, or the tensor holds integers.
pub fn upload_f32(dev: &mut (impl Device + ?Sized), dst: Tensor, src: &[f32]) -> Result<()> {
    assert_eq!(dst.len, src.len());
    let mut narrow = vec![0u16; if dst.dtype == Dtype::F32 { 0 } else { CHUNK.min(src.len()) }];
    for (index, wide) in src.chunks(CHUNK).enumerate() {
        let part = dst.slice(index * CHUNK, wide.len());
        match dst.dtype {
            Dtype::F32 => dev.upload(part, bytemuck::cast_slice(wide))?,
            Dtype::Bf16 | Dtype::F16 => {
                let narrow = &mut narrow[..wide.len()];
                round(narrow, wide, dst.dtype);
                dev.upload(part, bytemuck::cast_slice(narrow))?;
            }
            Dtype::I32 => panic!("cannot upload floats to a tensor of integers"),
        }
    }
    Ok(())
}

/// Copies a tensor of any floating-point type to the host, exactly.
///
/// # Panics
/// If the lengths differ, or the tensor holds integers.
pub fn download_f32(dev: &mut (impl Device + ?Sized), dst: &mut [f32], src: Tensor) -> Result<()> {
    assert_eq!(src.len, dst.len());
    let mut narrow = vec![0u16; if src.dtype == Dtype::F32 { 0 } else { CHUNK.min(dst.len()) }];
    for (index, wide) in dst.chunks_mut(CHUNK).enumerate() {
        let part = src.slice(index * CHUNK, wide.len());
        match src.dtype {
            Dtype::F32 => dev.download(bytemuck::cast_slice_mut(wide), part)?,
            Dtype::Bf16 | Dtype::F16 => {
                let narrow = &mut narrow[..wide.len()];
                dev.download(bytemuck::cast_slice_mut(narrow), part)?;
                widen(wide, narrow, src.dtype);
            }
            Dtype::I32 => panic!("cannot download a tensor of integers as floats"),
        }
    }
    Ok(())
}

fn widen(wide: &mut [f32], narrow: &[u16], dtype: Dtype) {
    match dtype {
        Dtype::F16 => bytemuck::cast_slice::<_, f16>(narrow).convert_to_f32_slice(wide),
        _ => bytemuck::cast_slice::<_, bf16>(narrow).convert_to_f32_slice(wide),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Buffer;
    use crate::tensor::MemoryPlan;

    /// A device with memory and no operations.
    #[derive(Default)]
    struct Store(Vec<u8>);

    impl Device for Store {
        fn describe(&self) -> String {
            "memory".into()
        }
        fn float_dtype(&self) -> Dtype {
            Dtype::Bf16
        }
        fn allocate(&mut self, plan: &MemoryPlan) -> Result<()> {
            self.0 = vec![0; plan.size_bytes()];
            Ok(())
        }
        fn upload(&mut self, dst: Tensor, src: &[u8]) -> Result<()> {
            self.0[dst.offset..][..dst.size_bytes()].copy_from_slice(src);
            Ok(())
        }
        fn download(&mut self, dst: &mut [u8], src: Tensor) -> Result<()> {
            dst.copy_from_slice(&self.0[src.offset..][..src.size_bytes()]);
            Ok(())
        }
        fn synchronize(&mut self) -> Result<()> {
            Ok(())
        }
        fn copy(&mut self, _dst: Tensor, _src: Tensor) -> Result<()> {
            unreachable!("these tests copy nothing")
        }
        fn lend(&mut self, _tensor: Tensor) -> Buffer {
            unreachable!("these tests lend nothing")
        }
        fn reclaim(&mut self, _tensor: Tensor) {}
    }

    fn there_and_back(dtype: Dtype, values: &[f32]) -> Vec<f32> {
        let mut plan = MemoryPlan::new();
        plan.add("a", "before", dtype, 3);
        let tensor = plan.add("a", "tensor", dtype, values.len());
        let mut dev = Store::default();
        dev.allocate(&plan).unwrap();
        upload_f32(&mut dev, tensor, values).unwrap();
        let mut back = vec![f32::NAN; values.len()];
        download_f32(&mut dev, &mut back, tensor).unwrap();
        back
    }

    #[test]
    fn rounding_is_to_nearest_and_ties_are_to_even() {
        let ulp = 2f32.powi(-7);
        let ties = [1.0 + 0.5 * ulp, 1.0 + 1.5 * ulp, 1.0 + 0.51 * ulp, -1.0 - 0.5 * ulp, 3e38, 1e-40];
        assert_eq!(there_and_back(Dtype::F32, &ties), ties);
        let rounded = there_and_back(Dtype::Bf16, &ties);
        assert_eq!(rounded[..4], [1.0, 1.0 + 2.0 * ulp, 1.0 + ulp, -1.0]);
        assert!(rounded[4].is_finite() && rounded[5] > 0.0);
        let ulp = 2f32.powi(-10);
        let rounded =
            there_and_back(Dtype::F16, &[1.0 + 0.5 * ulp, 1.0 + 1.5 * ulp, 65504.0, 1e6, 2f32.powi(-24)]);
        assert_eq!(rounded, [1.0, 1.0 + 2.0 * ulp, 65504.0, f32::INFINITY, 2f32.powi(-24)]);
    }

    #[test]
    fn what_is_longer_than_a_chunk_arrives_whole() {
        let values: Vec<f32> = (0..2 * CHUNK + 5).map(|i| (i % 251) as f32).collect();
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            assert!(there_and_back(dtype, &values) == values, "{dtype:?}");
        }
    }
}
