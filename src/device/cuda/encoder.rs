//! Token and position embeddings.

use super::Cuda;
use super::kernel::{FloatX, Launch, Ptr, kernels};
use crate::ops::*;
use anyhow::Result;

kernels! {
    "encoder.cu":
    fn encoder_forward(
        encoded: Ptr<FloatX>, tokens: Ptr<i32>, wte: Ptr<FloatX>, wpe: Ptr<FloatX>, N: i32, T: i32, C: i32,
    );
    fn encoder_backward_wte(
        dwte: Ptr<FloatX>, dout: Ptr<FloatX>, tokens: Ptr<i32>, rows: Ptr<i32>, N: i32, C: i32,
    );
    fn encoder_backward_wpe(dwpe: Ptr<FloatX>, dout: Ptr<FloatX>, B: i32, T: i32, C: i32);
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
    let (N, T, C, pack) = (a.B * a.T, a.T, a.C, cuda.pack());
    check(N, C, pack);
    assert!(a.encoded.len == N * C && a.tokens.len == N && a.wpe.len >= T * C);
    assert!(a.positions.is_none() && a.dropout.is_none());
    let launch = Launch::new((N * (C / pack)).div_ceil(THREADS), THREADS as u32);
    let Cuda { driver, memory: m, .. } = cuda;
    let (encoded, tokens, wte, wpe) = (m.x(a.encoded), m.i32(a.tokens), m.x(a.wte), m.x(a.wpe));
    kernel::encoder_forward(driver.as_mut(), launch, encoded, tokens, wte, wpe, N as i32, T as i32, C as i32)
}

pub fn backward(cuda: &mut Cuda, a: EncoderBackward) -> Result<()> {
    let (N, packs) = (a.B * a.T, a.C / cuda.pack());
    check(N, a.C, cuda.pack());
    assert!(a.dout.len == N * a.C && a.tokens.len == N && a.dwpe.is_none_or(|dwpe| dwpe.len >= a.T * a.C));
    assert_eq!(a.rows_by_token.len, N);
    assert!(a.positions.is_none() && a.dropout.is_none());
    let Cuda { driver, memory: m, .. } = cuda;
    let dev = driver.as_mut();
    let (dout, T, C) = (m.x(a.dout), a.T as i32, a.C as i32);

    if let Some(dwte) = a.dwte {
        let launch = Launch::new(N.div_ceil(WTE_ROWS) * packs.div_ceil(SLICE), WTE_THREADS);
        let (tokens, rows) = (m.i32(a.tokens), m.i32(a.rows_by_token));
        kernel::encoder_backward_wte(dev, launch, m.x(dwte), dout, tokens, rows, N as i32, C)?;
    }
    let Some(dwpe) = a.dwpe else { return Ok(()) };
    let launch = Launch::new((a.T * packs).div_ceil(THREADS), THREADS as u32);
    kernel::encoder_backward_wpe(dev, launch, m.x(dwpe), dout, a.B as i32, T, C)
}
