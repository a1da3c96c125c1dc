//! Softmax, cross-entropy and their gradient.

use crate::harness::*;
use warpsmith::ops::{Classifier, IGNORED};

/// Random logits. The columns from V on are NaN, as they must not matter.
fn random_logits(N: usize, V: usize, Vp: usize) -> Vec<f32> {
    let mut logits: Vec<f32> = random(1, N * Vp).iter().map(|x| 5.0 * x).collect();
    logits.chunks_exact_mut(Vp).for_each(|row| row[V..].fill(f32::NAN));
    logits
}

/// (N, V, Vp): one class; whole packs of padding; no padding; several rounds of the block's
/// threads; GPT-2's row, which f32 reads twice; a row of which two do not fit on an SM in 16 bits.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 8), (5, 50, 128), (3, 64, 64), (2, 9001, 9008), (2, 50257, 50304), (1, 60001, 60008)];

#[test]
fn losses_and_gradients() {
    for (N, V, Vp) in SHAPES {
        check(&format!("classifier {N} {V} {Vp}"), |t| {
            let args = Classifier {
                losses: t.inout_f32("losses", &random(3, N), Tolerance::new(0.0, V)),
                logits: t.inout_x("logits", &random_logits(N, V, Vp), Tolerance::new(1.0, V)),
                targets: t.i32("targets", &random_indices(2, N, V)),
                dloss: Some(t.f32("dloss", &[0.125])),
                N,
                V,
                Vp,
            };
            Box::new(move |dev| dev.classifier(args))
        });
    }
}

#[test]
fn losses_alone_leave_logits() {
    for (N, V, Vp) in [(1, 1, 8), (5, 50, 128), (2, 9001, 9008)] {
        check(&format!("classifier losses {N} {V} {Vp}"), |t| {
            let logits = random_logits(N, V, Vp).into_iter().map(|x| if x.is_nan() { 80.0 } else { x });
            let args = Classifier {
                losses: t.inout_f32("losses", &random(3, N), Tolerance::new(0.0, V)),
                logits: t.inout_x("logits", &logits.collect::<Vec<_>>(), Tolerance::new(0.0, 1)),
                targets: t.i32("targets", &random_indices(2, N, V)),
                dloss: None,
                N,
                V,
                Vp,
            };
            Box::new(move |dev| dev.classifier(args))
        });
    }
}

/// Rows whose target does not count keep their loss; with a gradient it is 0, whatever the logits.
#[test]
fn ignored_targets() {
    for (N, V, Vp) in [(1, 1, 8), (5, 50, 128), (4, 9001, 9008), (3, 50257, 50304)] {
        let mut logits = random_logits(N, V, Vp);
        let mut targets = random_indices(2, N, V);
        for (row, target) in (0..N).zip([IGNORED, -1, 0, i32::MIN, 0]).filter(|(_, target)| *target < 0) {
            targets[row] = target;
            logits[row * Vp..][..Vp].fill(f32::NAN);
        }
        check(&format!("classifier {N} {V} {Vp}, ignored rows"), |t| {
            let args = Classifier {
                losses: t.inout_f32("losses", &random(3, N), Tolerance::new(0.0, V)),
                logits: t.inout_x("logits", &logits, Tolerance::new(1.0, V)),
                targets: t.i32("targets", &targets),
                dloss: Some(t.f32("dloss", &[0.125])),
                N,
                V,
                Vp,
            };
            Box::new(move |dev| dev.classifier(args))
        });
        let finite: Vec<f32> = logits.iter().map(|&x| if x.is_nan() { 80.0 } else { x }).collect();
        check(&format!("classifier losses {N} {V} {Vp}, ignored rows"), |t| {
            let args = Classifier {
                losses: t.inout_f32("losses", &random(3, N), Tolerance::new(0.0, V)),
                logits: t.inout_x("logits", &finite, Tolerance::new(0.0, 1)),
                targets: t.i32("targets", &targets),
                dloss: None,
                N,
                V,
                Vp,
            };
            Box::new(move |dev| dev.classifier(args))
        });
    }
}

/// Logits whose exponents have few bits after the point, in rows of more than a batch of packs.
#[test]
fn far_from_zero() {
    let (N, V, Vp) = (2, 17_001, 17_008);
    for mean in [3e4, -3e4] {
        check(&format!("classifier about {mean}"), |t| {
            let logits: Vec<f32> = random_logits(N, V, Vp).iter().map(|x| mean + 40.0 * x).collect();
            let args = Classifier {
                losses: t.inout_f32("losses", &random(3, N), Tolerance::new(0.0, V)),
                logits: t.inout_x("logits", &logits, Tolerance::new(1.0, V)),
                targets: t.i32("targets", &random_indices(2, N, V)),
                dloss: Some(t.f32("dloss", &[0.125])),
                N,
                V,
                Vp,
            };
            Box::new(move |dev| dev.classifier(args))
        });
    }
}

/// The largest finite ones, and minus infinity.
#[test]
fn extremes() {
    check("classifier extremes", |t| {
        let rows = [
            [6e4, -6e4, 0.0, f32::NEG_INFINITY, 1.0, 2.0, 3.0, 4.0],
            [6e4, 6e4, 6e4, 6e4, -6e4, -6e4, f32::NEG_INFINITY, -6e4],
        ];
        let args = Classifier {
            losses: t.inout_f32("losses", &[0.0; 2], Tolerance::new(0.0, 1)),
            logits: t.inout_x("logits", &rows.concat(), Tolerance::new(1.0, 1)),
            targets: t.i32("targets", &[0, 3]),
            dloss: Some(t.f32("dloss", &[1.0])),
            N: 2,
            V: 8,
            Vp: 8,
        };
        Box::new(move |dev| dev.classifier(args))
    });
}
