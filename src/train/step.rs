//! One training step.
#![allow(non_snake_case)]

use crate::data::loader::DataLoader;
use crate::model::backward::MicroStep;
use crate::model::{BatchShape, GPT2};
use crate::ops::Ops;
use crate::optim::optimizer::Optimizer;
use anyhow::Result;

/// The parts of a run that a step works on.
pub struct Step<'a> {
    pub dev: &'a mut dyn Ops,
    pub model: &'a GPT2,
    pub optimizer: &'a Optimizer,
    pub shape: BatchShape,
    pub grad_accum_steps: usize,
}

/// What a step measured, before any update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossAndNorm {
    /// Mean over all tokens of the total batch.
    pub loss: f32,
    /// Of the gradient, before clipping and without the scale of the loss.
    pub norm: f32,
}

impl Step<'_> {
    /// Gradients of the mean loss, times `loss_scale`, over `grad_accum_steps` micro-batches, and the one read-back of the
    /// step.
    pub fn forward_backward(&mut self, loader: &mut DataLoader, loss_scale: f32) -> Result<LossAndNorm> {
        let tokens = (self.shape.rows() * self.grad_accum_steps) as f32;
        for micro_step in 0..self.grad_accum_steps {
            let batch = loader.next_batch()?; // (B, T) inputs, and targets one token on
            self.model.load_batch(self.dev, self.shape, &batch.inputs, &batch.targets)?;
            let buckets = self.model.load_buckets(self.dev, &batch.groups.rows, &batch.groups.starts)?;
            self.model.forward(self.dev, self.shape)?; // encoder -> L blocks -> lnf
            let at = MicroStep { first: micro_step == 0, dloss: loss_scale / tokens };
            self.model.backward(self.dev, self.shape, buckets, at)?; // logits, losses -> ... -> dwte; parameters +=
        }
        let (loss_sum, norm_squared) = self.model.loss_and_norm(self.dev)?;
        Ok(LossAndNorm { loss: loss_sum / tokens, norm: norm_squared.sqrt() / loss_scale })
    }

    /// Clips by `norm`, takes `loss_scale` out of the gradients and applies update number `step`, counted from 0.
    pub fn update(&mut self, step: usize, lr: f32, norm: f32, loss_scale: f32) -> Result<()> {
        let grads = self.model.grads.expect("a model planned for training");
        let scale = self.optimizer.clip_scale(norm) / loss_scale;
        self.optimizer.update(self.dev, self.model.weights.all, grads, lr, scale, step + 1)
    }
}
