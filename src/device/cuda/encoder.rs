//! Token and position embeddings.

use super::Cuda;
use super::kernel::{DropoutArg, FloatX, Launch, Ptr, kernels};
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "encoder.cu":
    fn encoder_forward(
        encoded: Ptr<FloatX>, tokens: Ptr<i32>, positions: Ptr<i32>,
        wte: Ptr<FloatX>, wpe: Ptr<FloatX>, N: i32, T: i32, C: i32,
    );
    fn encoder_dropout_forward(
        encoded: Ptr<FloatX>, tokens: Ptr<i32>, positions: Ptr<i32>,
        wte: Ptr<FloatX>, wpe: Ptr<FloatX>, dropout: DropoutArg, N: i32, T: i32, C: i32,
    );
    fn encoder_backward_wte(
        dwte: Ptr<FloatX>, dout: Ptr<FloatX>, tokens: Ptr<i32>, rows: Ptr<i32>, N: i32, C: i32,
    );
    fn encoder_dropout_backward_wte(
        dwte: Ptr<FloatX>, dout: Ptr<FloatX>, tokens: Ptr<i32>, rows: Ptr<i32>, dropout: DropoutArg, N: i32, C: i32,
    );
    fn encoder_backward_wpe(dwpe: Ptr<FloatX>, dout: Ptr<FloatX>, B: i32, T: i32, C: i32);
    fn encoder_dropout_backward_wpe(
        dwpe: Ptr<FloatX>, dout: Ptr<FloatX>, dropout: DropoutArg, B: i32, T: i32, C: i32,
    );
}

const THREADS: usize = 256;

/// Threads per block of the gradient of wte, and the sorted rows whose tokens they take, as in
/// encoder.cu.
const WTE_THREADS: u32 = 512;
const WTE_ROWS: usize = 64;
/// Packs of a row per warp.
const SLICE: usize = 32;

fn check(N: usize, C: usize, pack: usize) {
    assert!(C > 0 && C.is_multiple_of(8), "embeddings of {C} channels: a multiple of 8 is needed");
    assert!(u32::try_from(N * (C / pack)).is_ok(), "a batch of {N} x {C} is too large");
}

pub fn forward(cuda: &mut Cuda, a: EncoderForward) -> Result<()> {
    let (N, pack) = (a.B * a.T, cuda.pack());
    check(N, a.C, pack);
    assert!(a.encoded.len == N * a.C && a.tokens.len == N && a.wpe.len >= a.T * a.C);
    assert!(a.positions.is_none_or(|positions| positions.len == N));
    let launch = Launch::new((N * (a.C / pack)).div_ceil(THREADS), THREADS as u32);
    let Cuda { driver, memory: m, .. } = cuda;
    let (dev, N, T, C) = (driver.as_mut(), N as i32, a.T as i32, a.C as i32);
    let positions = a.positions.map_or(Ptr::NULL, |positions| m.i32(positions));
    let (encoded, tokens, wte, wpe) = (m.x(a.encoded), m.i32(a.tokens), m.x(a.wte), m.x(a.wpe));
    match a.dropout {
        Some(_) => {
            let dropout = m.dropout(a.dropout);
            kernel::encoder_dropout_forward(
                dev, launch, encoded, tokens, positions, wte, wpe, dropout, N, T, C,
            )
        }
        None => kernel::encoder_forward(dev, launch, encoded, tokens, positions, wte, wpe, N, T, C),
    }
}

pub fn backward(cuda: &mut Cuda, a: EncoderBackward) -> Result<()> {
    let N = a.B * a.T;
    check(N, a.C, cuda.pack());
    assert!(a.dout.len == N * a.C && a.dwpe.len >= a.T * a.C);
    scatter(cuda, &a, a.dwte, a.tokens, a.rows_by_token)?;
    match a.positions {
        Some([positions, rows]) => scatter(cuda, &a, a.dwpe, positions, rows),
        None => sum_batch(cuda, &a),
    }
}

/// Adds the rows of `a.dout` to those of `dweight` that `indices` name; `rows` are sorted by index.
fn scatter(
    cuda: &mut Cuda,
    a: &EncoderBackward,
    dweight: Tensor,
    indices: Tensor,
    rows: Tensor,
) -> Result<()> {
    let (N, packs) = (a.B * a.T, a.C / cuda.pack());
    assert!(indices.len == N && rows.len == N);
    let launch = Launch::new(N.div_ceil(WTE_ROWS) * packs.div_ceil(SLICE), WTE_THREADS);
    let Cuda { driver, memory: m, .. } = cuda;
    let (dev, N, C) = (driver.as_mut(), N as i32, a.C as i32);
    let (dweight, dout, indices, rows) = (m.x(dweight), m.x(a.dout), m.i32(indices), m.i32(rows));
    match a.dropout {
        Some(_) => {
            let dropout = m.dropout(a.dropout);
            kernel::encoder_dropout_backward_wte(dev, launch, dweight, dout, indices, rows, dropout, N, C)
        }
        None => kernel::encoder_backward_wte(dev, launch, dweight, dout, indices, rows, N, C),
    }
}

/// Adds the rows of `a.dout` to the row of `a.dwpe` of their place in the sequence.
fn sum_batch(cuda: &mut Cuda, a: &EncoderBackward) -> Result<()> {
    let launch = Launch::new((a.T * (a.C / cuda.pack())).div_ceil(THREADS), THREADS as u32);
    let Cuda { driver, memory: m, .. } = cuda;
    let (dev, B, T, C) = (driver.as_mut(), a.B as i32, a.T as i32, a.C as i32);
    let (dwpe, dout) = (m.x(a.dwpe), m.x(a.dout));
    match a.dropout {
        Some(_) => {
            kernel::encoder_dropout_backward_wpe(dev, launch, dwpe, dout, m.dropout(a.dropout), B, T, C)
        }
        None => kernel::encoder_backward_wpe(dev, launch, dwpe, dout, B, T, C),
    }
}
