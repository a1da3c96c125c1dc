//! Sums, the global norm, and fills.

use crate::harness::*;
use warpsmith::tensor::{Dtype, Tensor};

/// Less than a pack; a pack; off the pack; more than one block; more than all blocks of the
/// emulated device at once.
const LENS: [usize; 5] = [3, 8, 1001, 512 * 8 + 7, 200_003];

#[test]
fn norm_squared() {
    for len in LENS {
        check(&format!("norm_squared of {len}"), |t| {
            let out = t.out_f32("out", 1, Tolerance::new(0.0, len));
            let src = t.x("src", &random(1, len));
            Box::new(move |dev| dev.norm_squared(out, &[src]))
        });
    }
}

/// Up to more pieces than the largest model has, of different lengths, some of them empty.
#[test]
fn norm_squared_of_pieces() {
    for pieces in [0, 1, 3, 98, 128] {
        check(&format!("norm_squared of {pieces} pieces"), |t| {
            let len = |piece: usize| [1001, 8, 0, 512 * 8 + 7][piece % 4];
            let total = (0..pieces).map(len).sum();
            let out = t.out_f32("out", 1, Tolerance::new(0.0, total));
            let src: Vec<Tensor> = (0..pieces).map(|p| t.x("piece", &random(p as u32 + 1, len(p)))).collect();
            Box::new(move |dev| dev.norm_squared(out, &src))
        });
    }
}

#[test]
fn more_pieces_than_scratch_memory_was_planned_for_are_refused() {
    refuses("norm_squared", "bytes of scratch memory needed", |t| {
        // Room for 16 partial sums per piece, on any device of at least four SMs.
        const PIECE_BYTES: usize = 16 * size_of::<f32>();
        let (out, src, limits) = (t.f32("out", &[0.0]), t.x("src", &[1.0; 16 * 512 * 8]), t.limits);
        Box::new(move |dev| {
            let planned = dev.scratch_bytes(&limits)?;
            dev.norm_squared(out, &vec![src; 2 * planned / PIECE_BYTES])
        })
    });
}

#[test]
fn sum() {
    for len in LENS {
        check_dtype(&format!("sum of {len}"), Dtype::Bf16, |t| {
            // Mostly positive: a sum of as many numbers of either sign would be nothing but
            // rounding errors.
            let values: Vec<f32> = random(1, len).iter().map(|x| x + 0.5).collect();
            let out = t.out_f32("out", 1, Tolerance::new(0.0, len));
            let src = t.f32("src", &values);
            Box::new(move |dev| dev.sum(out, src))
        });
    }
}

#[test]
fn fill() {
    for (start, len) in [(0, 1), (0, 24), (3, 5), (5, 256 * 8), (16, 1000)] {
        for value in [0.0, -1.5] {
            check(&format!("fill {start}..+{len} with {value}"), |t| {
                let x = t.inout_x("x", &vec![2.0; start + len + 9], Tolerance::new(0.0, 1));
                let f = t.inout_f32("f", &vec![2.0; start + len + 9], Tolerance::new(0.0, 1));
                Box::new(move |dev| {
                    dev.fill(x.slice(start, len), value)?;
                    dev.fill(f.slice(start, len), value)
                })
            });
        }
    }
}
