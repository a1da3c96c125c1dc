//! The elements of tensors in GGUF.

use super::container::Info;
use crate::checkpoint::stream::FloatWriter;
use crate::tensor::{Dtype, Stored};
use anyhow::{Context, Result, bail};
use half::f16;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

/// Elements of a block of Q8_0.
pub const BLOCK: usize = 32;

/// Bytes of a block of Q8_0: the scale, then the elements.
const BLOCK_BYTES: usize = 2 + BLOCK;

/// Elements that are converted at a time, a multiple of [`BLOCK`].
const PIECE: usize = 1 << 20;

/// Bytes of elements of a type; `None` if they do not fill blocks, or are too many.
pub fn size(stored: Stored, len: usize) -> Option<usize> {
    match stored {
        Stored::Float(dtype) => len.checked_mul(dtype.size()),
        Stored::Q8_0 => (len / BLOCK).checked_mul(BLOCK_BYTES).filter(|_| len.is_multiple_of(BLOCK)),
    }
}

/// Writes values as a type.
pub fn write(out: &mut dyn Write, stored: Stored, values: &[f32]) -> Result<()> {
    match stored {
        Stored::Float(dtype) => FloatWriter::new(out, dtype).write(values),
        Stored::Q8_0 => {
            let mut bytes = Vec::with_capacity(PIECE / BLOCK * BLOCK_BYTES);
            for piece in values.chunks(PIECE) {
                bytes.clear();
                piece.chunks_exact(BLOCK).for_each(|block| quantize(block, &mut bytes));
                out.write_all(&bytes)?;
            }
            Ok(())
        }
    }
}

/// Appends a block of Q8_0: the largest magnitude becomes 127, as in ggml's reference.
fn quantize(block: &[f32], out: &mut Vec<u8>) {
    let scale = block.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(block.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
}

/// Reads the elements of a tensor, in pieces.
///
/// # Errors
/// If the file cannot be read.
pub fn read(file: &mut File, info: &Info, each: &mut dyn FnMut(&[f32])) -> Result<()> {
    file.seek(SeekFrom::Start(info.start))?;
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let mut left: usize = info.shape.iter().product();
    while left > 0 {
        let len = left.min(PIECE);
        bytes.resize(size(info.stored, len).context("expected whole blocks")?, 0);
        file.read_exact(&mut bytes)?;
        widen(&bytes, info.stored, &mut values)?;
        each(&values);
        left -= len;
    }
    Ok(())
}

/// Replaces `values` by the elements in `bytes`.
fn widen(bytes: &[u8], stored: Stored, values: &mut Vec<f32>) -> Result<()> {
    values.clear();
    let halves = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    match stored {
        Stored::Float(Dtype::F32) => {
            values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Stored::Float(Dtype::F16) => values.extend(halves.map(|half| f16::from_bits(half).to_f32())),
        // Exact to the bit, signaling NaNs included.
        Stored::Float(Dtype::Bf16) => values.extend(halves.map(|half| f32::from_bits(u32::from(half) << 16))),
        Stored::Q8_0 => values.extend(bytes.chunks_exact(BLOCK_BYTES).flat_map(|block| {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            block[2..].iter().map(move |&byte| scale * f32::from(byte.cast_signed()))
        })),
        Stored::Float(Dtype::I32) => bail!("expected a type of floats, found {stored}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_the_largest_and_round_the_others() {
        let values: Vec<f32> = (0..64).map(|i| if i < 32 { (i as f32 - 12.0) * 0.37 } else { 0.0 }).collect();
        let mut bytes = Vec::new();
        write(&mut bytes, Stored::Q8_0, &values).unwrap();
        assert_eq!(Some(bytes.len()), size(Stored::Q8_0, 64));
        let scale = f16::from_f32(19.0 * 0.37 / 127.0);
        assert_eq!(bytes[..2], scale.to_le_bytes());
        assert_eq!((bytes[2 + 31], bytes[2 + 12]), (127, 0));
        assert!(bytes[BLOCK_BYTES..].iter().all(|&byte| byte == 0), "a block of zeros");
        let mut back = Vec::new();
        widen(&bytes, Stored::Q8_0, &mut back).unwrap();
        // Half a step, and the rounding of the scale, which 127 steps multiply.
        let step = scale.to_f32();
        for (was, is) in values.iter().zip(&back) {
            assert!((was - is).abs() <= step * 0.5 + 127.0 * step * 2f32.powi(-11), "{was} became {is}");
        }
        assert_eq!(size(Stored::Q8_0, 33), None);
    }
}
