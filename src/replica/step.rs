//! One training step.

use super::Replica;
use crate::data::loader::Batch;
use crate::model::backward::{MicroStep, forward_key};
use crate::model::{BatchShape, GPT2};
use crate::ops::{DropoutState, Ops, Span, download_f32, upload_f32, within};
use crate::optim::optimizer::Update;
use anyhow::Result;

/// The statistics of a step, reduced over all ranks before any update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// Mean over all tokens of the total batch that count.
    pub loss: f32,
    /// Norm of the gradient, unclipped and without the loss scale.
    pub norm: f32,
    /// The votes of all ranks to stop, added up.
    pub votes: f32,
}

/// Uploads a batch for forward passes, and returns its shape.
fn load(model: &GPT2, dev: &mut dyn Ops, shape: BatchShape, batch: &Batch) -> Result<BatchShape> {
    model.load_batch(dev, shape, &batch.inputs, &batch.targets)?;
    if let Some(packed) = &batch.packed {
        model.load_positions(dev, &packed.positions)?;
    }
    Ok(BatchShape { packed: batch.packed.is_some(), ..shape })
}

/// Uploads the sorted rows of a batch, which backward passes need as well.
fn load_sorted_rows(model: &GPT2, dev: &mut dyn Ops, batch: &Batch) -> Result<()> {
    model.load_rows_by_token(dev, &batch.rows_by_token)?;
    batch.packed.as_ref().map_or(Ok(()), |packed| model.load_rows_by_position(dev, &packed.rows_by_position))
}

impl Replica {
    /// Computes the gradients of the mean loss, times `loss_scale`, over the tokens that count in
    /// `grad_accum_steps` micro-batches of every rank, of which there are `counted`. Reads back the
    /// statistics, which at `-z 0` is the host's only wait in a step. `vote` is this rank's vote to
    /// stop, asked for as late as possible.
    pub fn forward_backward(
        &mut self,
        mut next_batch: impl FnMut() -> Result<Batch>,
        shape: BatchShape,
        grad_accum_steps: usize,
        counted: usize,
        loss_scale: f32,
        vote: impl FnOnce() -> f32,
    ) -> Result<StepStats> {
        let Replica { zero, dev, model, dropout_key, .. } = self;
        let dev = dev.as_mut();
        let (rank, ranks) = (zero.peers.process.rank, zero.peers.process.world_size);
        model.load_dloss(dev, loss_scale / counted as f32)?;
        for micro_step in 0..grad_accum_steps {
            within(dev, Span::MicroStep(micro_step + 1), |dev| {
                let (first, last) = (micro_step == 0, micro_step + 1 == grad_accum_steps);
                // (B, T) inputs, and targets one token on
                let batch = within(dev, Span::Batch, |_| next_batch())?;
                let shape = load(model, dev, shape, &batch)?;
                load_sorted_rows(model, dev, &batch)?;
                if let Some(key) = *dropout_key {
                    // Ranks take the batches of the step in turn.
                    let first_row = ((micro_step * ranks + rank) * shape.rows()) as u32;
                    model.load_dropout(dev, DropoutState { key, first_row, unused: 0 })?;
                }
                let fresh_grads = zero.begin_micro_step(first, last);
                let at = MicroStep { first, fresh_grads, dropout: dropout_key.is_some() };
                let communicates = zero.communicates();
                let mut passes = |dev: &mut dyn Ops| {
                    // encoder -> L blocks -> lnf
                    within(dev, Span::Forward, |dev| model.forward_to_train(dev, zero, shape, at))?;
                    // logits, losses -> ... -> dwte; gradients +=. Reductions start meanwhile.
                    within(dev, Span::Backward, |dev| model.backward(dev, shape, at, zero))
                };
                if communicates { passes(dev) } else { dev.replay(at.key(shape), &mut passes) }
            })?;
        }
        self.read_back(counted, loss_scale, vote)
    }

    /// Computes the mean loss as [`Self::forward_backward`] does, without gradients: the norm is 0.
    pub fn forward_only(
        &mut self,
        mut next_batch: impl FnMut() -> Result<Batch>,
        shape: BatchShape,
        grad_accum_steps: usize,
        counted: usize,
        vote: impl FnOnce() -> f32,
    ) -> Result<StepStats> {
        let Replica { zero, dev, model, .. } = self;
        let dev = dev.as_mut();
        for micro_step in 0..grad_accum_steps {
            within(dev, Span::MicroStep(micro_step + 1), |dev| {
                let first = micro_step == 0;
                let batch = within(dev, Span::Batch, |_| next_batch())?;
                let shape = load(model, dev, shape, &batch)?;
                let alone = zero.peers.is_alone();
                let mut pass = |dev: &mut dyn Ops| {
                    if first {
                        dev.fill(model.acts.losses, 0.0)?;
                    }
                    within(dev, Span::Forward, |dev| {
                        model.forward(dev, zero, shape)?;
                        model.losses(dev, shape)
                    })
                };
                if alone { dev.replay(forward_key(shape, first), &mut pass) } else { pass(dev) }
            })?;
        }
        let mut sums = [0.0, vote()];
        within(dev, Span::LossAndNorm, |dev| {
            let loss = model.loss_sum(dev)?;
            download_f32(dev, &mut sums[..1], loss)?;
            zero.peers.sum(dev, model, &mut sums)
        })?;
        Ok(StepStats { loss: sums[0] / counted as f32, norm: 0.0, votes: sums[1] })
    }

    /// Runs the forward pass of a batch and passes its logits on, as
    /// [`GPT2::read_logits`](crate::model::GPT2::read_logits) does.
    pub fn logits(
        &mut self,
        batch: &Batch,
        shape: BatchShape,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let Replica { zero, dev, model, .. } = self;
        let dev = dev.as_mut();
        let shape = load(model, dev, shape, batch)?;
        model.forward(dev, zero, shape)?;
        model.read_logits(dev, shape, sink)
    }

    /// Downloads elements of the gradients from `start` on, in the order of files, to the host of
    /// rank 0; those of frozen parameters are 0. All ranks must make the same calls.
    pub fn gradients(&mut self, start: usize, out: &mut [f32]) -> Result<()> {
        let grads = self.zero.grads().clone();
        self.zero.download(self.dev.as_mut(), &grads, None, start, out)
    }

    /// Reduces and downloads loss, norm and votes to stop.
    fn read_back(
        &mut self,
        counted: usize,
        loss_scale: f32,
        vote: impl FnOnce() -> f32,
    ) -> Result<StepStats> {
        let Replica { zero, dev, model, .. } = self;
        let mut host = [0.0; 3];
        within(dev.as_mut(), Span::LossAndNorm, |dev| {
            model.loss_sum(dev)?;
            let scalars = model.acts.scalars.slice(0, 3);
            upload_f32(dev, scalars.slice(2, 1), &[vote()])?;
            zero.finish_grads(dev, scalars)?;
            download_f32(dev, &mut host, scalars)
        })?;
        let [loss_sum, norm_squared, votes] = host;
        Ok(StepStats { loss: loss_sum / counted as f32, norm: norm_squared.sqrt() / loss_scale, votes })
    }

    /// Clips by `norm`, divides `loss_scale` out of the gradients and applies the update of `step`,
    /// which counts from 0.
    pub fn update(&mut self, step: usize, lr: f32, norm: f32, loss_scale: f32) -> Result<()> {
        let grad_scale = self.optimizer.clip_scale(norm) / loss_scale;
        let update = Update { lr, grad_scale, t: step + 1 };
        let Replica { zero, dev, optimizer, .. } = self;
        within(dev.as_mut(), Span::Optimizer, |dev| zero.update(dev, optimizer, update))
    }
}
