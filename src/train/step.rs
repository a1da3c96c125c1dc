//! One training step.

use super::zero::ZeroState;
use crate::data::loader::DataLoader;
use crate::model::backward::MicroStep;
use crate::model::{BatchShape, GPT2};
use crate::ops::{Ops, download_f32, upload_f32};
use crate::optim::optimizer::{Optimizer, Update};
use anyhow::Result;

/// The parts of a run that a step works on.
pub struct Step<'a> {
    pub dev: &'a mut dyn Ops,
    pub model: &'a GPT2,
    pub optimizer: &'a Optimizer,
    pub zero: &'a mut ZeroState,
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
    /// Whether any rank was asked to stop.
    pub stop: bool,
}

impl Step<'_> {
    /// Gradients of the mean loss, times `loss_scale`, over `grad_accum_steps` micro-batches of every rank, and the one
    /// read-back of the step. `stop` says whether this rank was asked to stop.
    pub fn forward_backward(
        &mut self,
        loader: &mut DataLoader,
        loss_scale: f32,
        stop: bool,
    ) -> Result<LossAndNorm> {
        let micro_steps = self.grad_accum_steps * self.zero.peers.process.world_size;
        let tokens = (self.shape.rows() * micro_steps) as f32;
        for micro_step in 0..self.grad_accum_steps {
            let (first, last) = (micro_step == 0, micro_step + 1 == self.grad_accum_steps);
            let batch = loader.next_batch()?; // (B, T) inputs, and targets one token on
            self.model.load_batch(self.dev, self.shape, &batch.inputs, &batch.targets)?;
            let buckets = self.model.load_buckets(self.dev, &batch.buckets.rows, &batch.buckets.starts)?;
            self.model.forward(self.dev, self.zero, self.shape)?; // encoder -> L blocks -> lnf
            let fresh_grads = self.zero.begin_micro_step(first, last);
            let at = MicroStep { first, fresh_grads, dloss: loss_scale / tokens };
            // logits, losses -> ... -> dwte; parameters +=. Sums over all ranks begin while it goes on.
            self.model.backward(self.dev, self.shape, buckets, at, self.zero)?;
        }
        self.read_back(tokens, loss_scale, stop)
    }

    /// Loss, norm and wishes to stop of all ranks.
    fn read_back(&mut self, tokens: f32, loss_scale: f32, stop: bool) -> Result<LossAndNorm> {
        self.model.loss_sum(self.dev)?;
        let scalars = self.model.acts.scalars.slice(0, 3);
        upload_f32(self.dev, scalars.slice(2, 1), &[f32::from(u8::from(stop))])?;
        self.zero.finish_grads(self.dev, scalars)?;
        let mut host = [0.0; 3];
        download_f32(self.dev, &mut host, scalars)?;
        let [loss_sum, norm_squared, votes] = host;
        let norm = norm_squared.sqrt() / loss_scale;
        Ok(LossAndNorm { loss: loss_sum / tokens, norm, stop: votes > 0.0 })
    }

    /// Clips by `norm`, takes `loss_scale` out of the gradients and applies update number `step`, counted from 0.
    pub fn update(&mut self, step: usize, lr: f32, norm: f32, loss_scale: f32) -> Result<()> {
        let grad_scale = self.optimizer.clip_scale(norm) / loss_scale;
        self.zero.update(self.dev, self.optimizer, Update { lr, grad_scale, t: step + 1 })
    }
}
