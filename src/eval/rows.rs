//! Rows of a batch whose last tokens are scored: a context and a continuation.

use crate::model::hooks::LayerHooks;
use crate::model::{BatchShape, GPT2};
use crate::ops::Ops;
use anyhow::Result;
use std::ops::Range;

/// A context and the tokens that are scored after it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub ctx: &'a [u32],
    pub tokens: &'a [u32],
}

impl<'a> Row<'a> {
    /// Builds a row, without the start of the context if it has more than `maxT` inputs.
    ///
    /// # Panics
    /// If nothing of the context remains.
    pub fn new(ctx: &'a [u32], tokens: &'a [u32], maxT: usize) -> Self {
        let excess = (ctx.len() + tokens.len() - 1).saturating_sub(maxT);
        assert!(excess < ctx.len(), "the first token is predicted from the context");
        Row { ctx: &ctx[excess..], tokens }
    }

    /// The number of inputs: the last token is only a target.
    pub fn T(&self) -> usize {
        self.ctx.len() + self.tokens.len() - 1
    }

    /// Fills one row of inputs and targets. Padding after the row stays zero; attention is causal,
    /// so it does not affect the row.
    fn render(&self, inputs: &mut [i32], targets: &mut [i32]) {
        let row = self.ctx.iter().chain(self.tokens).map(|&token| token.cast_signed());
        for (input, token) in inputs.iter_mut().zip(row.clone().take(self.T())) {
            *input = token;
        }
        for (target, token) in targets.iter_mut().zip(row.skip(1)) {
            *target = token;
        }
    }

    /// The positions that predict the tokens: the last of the context predicts the first.
    pub fn scored(&self) -> Range<usize> {
        self.ctx.len() - 1..self.T()
    }

    /// Returns the sum over the scored tokens of a row's losses.
    pub fn sum_loss(&self, losses: &[f32]) -> f64 {
        losses[self.scored()].iter().map(|&loss| f64::from(loss)).sum()
    }
}

/// The number of batches that these rows make.
pub fn count_passes(mut rows: &[Row], capacity: usize) -> usize {
    let mut passes = 0;
    while !rows.is_empty() {
        rows = &rows[pack(rows, capacity).B..];
        passes += 1;
    }
    passes
}

/// The shape of a batch of as many of the next rows as fit into `capacity` tokens when padded to
/// the longest of them.
pub fn pack(rows: &[Row], capacity: usize) -> BatchShape {
    let mut shape = BatchShape::new(1, rows[0].T());
    for row in &rows[1..] {
        let grown = BatchShape::new(shape.B + 1, shape.T.max(row.T()));
        if grown.rows() > capacity {
            break;
        }
        shape = grown;
    }
    shape
}

/// The losses (B, T) of the first B rows.
pub fn run(
    model: &GPT2,
    dev: &mut dyn Ops,
    hooks: &mut dyn LayerHooks,
    shape: BatchShape,
    rows: &[Row],
) -> Result<Vec<f32>> {
    let (mut inputs, mut targets) = (vec![0; shape.rows()], vec![0; shape.rows()]);
    let lines = inputs.chunks_exact_mut(shape.T).zip(targets.chunks_exact_mut(shape.T));
    for (row, (inputs, targets)) in rows.iter().zip(lines) {
        row.render(inputs, targets);
    }
    model.load_batch(dev, shape, &inputs, &targets)?;
    model.evaluate(dev, hooks, shape)
}
