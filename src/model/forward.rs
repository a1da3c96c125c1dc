//! The forward pass: tokens to the last layernorm, and from there to losses.

use super::activations::Recompute;
use super::backward::MicroStep;
use super::dropout::Place;
use super::hooks::{LayerHooks, Pass};
use super::{BatchShape, GPT2};
use crate::config::logits_rows;
use crate::ops::{
    AttentionDims, AttentionForward, Classifier, EncoderForward, Epilogue, Kept, LayernormForward,
    MatmulForward, Ops, Span, download_f32, within,
};
use crate::params::{Param, Param::*};
use crate::tensor::Tensor;
use anyhow::Result;

/// The rows of a forward pass, and the keys and values that they attend to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attention<'a> {
    /// B sequences of T rows, each row with those before it; with dropout, if the pass trains.
    Full { shape: BatchShape, dropout: bool },
    /// The same for one sequence of T rows, whose keys and values stay in the cache of a slot.
    Prefill { slot: usize, T: usize },
    /// A row per sequence, each with the rows before it in the cache of its slot.
    Decode { rows: &'a [CacheRow] },
}

/// A row of the key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheRow {
    pub slot: usize,
    pub t: usize,
}

impl Attention<'_> {
    fn shape(self) -> BatchShape {
        match self {
            Attention::Full { shape, .. } => shape,
            Attention::Prefill { T, .. } => BatchShape::new(1, T),
            // Each sequence is at a position of its own.
            Attention::Decode { rows } => BatchShape { B: rows.len(), T: 1, packed: true },
        }
    }

    fn drops(self) -> bool {
        matches!(self, Attention::Full { dropout: true, .. })
    }
}

impl GPT2 {
    /// Runs the encoder, L blocks and the final layernorm on the loaded batch, without dropout.
    pub fn forward(&self, dev: &mut dyn Ops, hooks: &mut dyn LayerHooks, shape: BatchShape) -> Result<()> {
        self.forward_rows(dev, hooks, Attention::Full { shape, dropout: false })
    }

    /// Does the same before the backward pass of `step`, with its dropout.
    pub fn forward_to_train(
        &self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        shape: BatchShape,
        step: MicroStep,
    ) -> Result<()> {
        self.forward_rows(dev, hooks, Attention::Full { shape, dropout: step.dropout })
    }

    /// Runs the encoder, L blocks and the final layernorm on the rows of `attention`.
    pub(super) fn forward_rows(
        &self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        attention: Attention,
    ) -> Result<()> {
        let (a, w, shape) = (&self.acts, &self.weights, attention.shape());
        let (N, C) = (shape.rows(), w.config.C);
        hooks.before(dev, Pass::Forward, w.params.layout.shared_unit())?;
        let (encoded, tokens) = (a.encoded.slice(0, N * C), a.inputs.slice(0, N));
        let (wte, wpe, BatchShape { B, T, .. }) = (w.get(Wte, 0), w.get(Wpe, 0), shape);
        let (positions, dropout) = (a.positions(shape), self.dropout(attention.drops(), Place::Embeddings));
        dev.encoder_forward(EncoderForward { encoded, tokens, positions, wte, wpe, dropout, B, T, C })?;
        hooks.before(dev, Pass::Forward, 0)?;
        dev.layernorm_forward(self.norm_before_block(0, shape))?;
        for l in 0..w.config.L {
            within(dev, Span::Layer(l), |dev| self.block(dev, hooks, l, attention))?;
            hooks.after(dev, Pass::Forward, l)?;
        }
        Ok(())
    }

    /// Runs the hooks of a forward pass without computing: a rank without a batch takes part in the
    /// all-gathers of the ranks that have one.
    pub fn participate(&self, dev: &mut dyn Ops, hooks: &mut dyn LayerHooks) -> Result<()> {
        let layout = &self.weights.params.layout;
        hooks.before(dev, Pass::Forward, layout.shared_unit())?;
        for l in 0..layout.shared_unit() {
            hooks.before(dev, Pass::Forward, l)?;
            hooks.after(dev, Pass::Forward, l)?;
        }
        Ok(())
    }

    /// x + attention(layernorm(x)), then x + mlp(layernorm(x)). Each layernorm is fused with the
    /// matmul whose output it reads: this block's first one has already run, and the one that the
    /// next block or the head starts with runs here.
    fn block(
        &self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        l: usize,
        attention: Attention,
    ) -> Result<()> {
        let (a, w, shape) = (&self.acts, &self.weights, attention.shape());
        let (N, C) = (shape.rows(), w.config.C);
        let [ln1, atty, residual2] = [a.ln1, a.atty, a.residual2].map(|t| t.get(l, N));
        let [ln2, fch, fch_gelu, residual3] = [a.ln2, a.fch, a.fch_gelu, a.residual3].map(|t| t.get(l, N));
        let matmul = |out: Tensor, inp: Tensor, weight: Param, epilogue| {
            let weight = w.get(weight, l);
            MatmulForward { out, inp, weight, epilogue, N, C: inp.len / N, OC: out.len / N }
        };

        let epilogue = self.epilogue_with_adapter(dev, l, (Qkvw, Qkvb), ln1, w.qkv_epilogue(l))?;
        let qkv = self.qkv_rows(l, attention);
        dev.matmul_forward(matmul(qkv, ln1, Qkvw, epilogue))?;
        self.attend(dev, l, qkv, attention)?;
        let dropout = |place| self.dropout(attention.drops(), place);
        let (bias, drop) = (w.get(Attprojb, l), dropout(Place::Attention(l)));
        let operands = [atty, a.block_input(l, shape, C)];
        let residual = self.residual_with_adapter(dev, l, Attprojw, operands, drop)?;
        let attproj = matmul(residual2, atty, Attprojw, Epilogue::BiasResidual { bias, residual });
        dev.matmul_residual_layernorm(attproj, drop, self.norm_before_mlp(l, shape))?;

        let kept = if self.recomputes(Recompute::Gelu) { Kept::Input(fch) } else { Kept::Gradient(fch) };
        self.fc_forward(dev, l, matmul(fch_gelu, ln2, Fcw, Epilogue::None), kept)?;
        let (bias, drop) = (w.get(Fcprojb, l), dropout(Place::Mlp(l)));
        let residual = self.residual_with_adapter(dev, l, Fcprojw, [fch_gelu, residual2], drop)?;
        let fcproj = matmul(residual3, fch_gelu, Fcprojw, Epilogue::BiasResidual { bias, residual });
        if l + 1 < w.config.L {
            hooks.before(dev, Pass::Forward, l + 1)?;
        }
        dev.matmul_residual_layernorm(fcproj, drop, self.norm_before_block(l + 1, shape))
    }

    /// The queries, keys and values that a pass computes: in the cache itself, or, for several
    /// sequences at positions of their own, beside it.
    fn qkv_rows(&self, l: usize, attention: Attention) -> Tensor {
        let (a, C) = (&self.acts, self.weights.config.C);
        match attention {
            Attention::Full { shape, .. } => a.qkv.get(l, shape.rows()),
            Attention::Prefill { slot, T } => self.cache(l, slot, T),
            Attention::Decode { rows: &[CacheRow { slot, t }] } => self.cache(l, slot, t + 1).part(t, 3 * C),
            Attention::Decode { rows } => a.qkv_step.slice(0, rows.len() * 3 * C),
        }
    }

    /// The first `rows` rows of the cache of a slot in layer `l`.
    fn cache(&self, l: usize, slot: usize, rows: usize) -> Tensor {
        let slots = self.acts.qkv_step.len / (3 * self.weights.config.C);
        self.acts.qkv.get(l * slots + slot, rows)
    }

    /// Attention of layer `l` over `qkv`, into `atty`.
    fn attend(&self, dev: &mut dyn Ops, l: usize, qkv: Tensor, attention: Attention) -> Result<()> {
        let (a, C, NH, HS) =
            (&self.acts, self.weights.config.C, self.weights.config.NH, self.weights.config.HS());
        let shape = attention.shape();
        let out = a.atty.get(l, shape.rows());
        let Attention::Decode { rows } = attention else {
            let (lse, BatchShape { B, T, .. }) = (a.lse.get(l, shape.rows()), shape);
            let (positions, dropout) =
                (a.positions(shape), self.dropout(attention.drops(), Place::Weights(l)));
            let dims = AttentionDims { B, T, NH, HS };
            return dev.attention_forward(AttentionForward { out, lse, qkv, positions, dropout, dims });
        };
        for (i, &CacheRow { slot, t }) in rows.iter().enumerate() {
            let cache = self.cache(l, slot, t + 1);
            if rows.len() > 1 {
                dev.copy(cache.part(t, 3 * C), qkv.part(i, 3 * C))?;
            }
            dev.attention_decode(out.part(i, C), cache, t, AttentionDims { B: 1, T: t + 1, NH, HS })?;
        }
        Ok(())
    }

    /// The layernorm before attention in block `l`, or after the last block the one before the
    /// logits. The backward pass repeats it where its output was not stored.
    pub(super) fn norm_before_block(&self, l: usize, shape: BatchShape) -> LayernormForward {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let inp = a.block_input(l, shape, C);
        if l == w.config.L {
            let (out, mean, rstd) = (a.lnf.slice(0, N * C), a.lnf_mean.slice(0, N), a.lnf_rstd.slice(0, N));
            let (weight, bias) = (w.get(Lnfw, 0), w.get(Lnfb, 0));
            return LayernormForward { out, mean, rstd, inp, weight, bias, N, C };
        }
        let [out, mean, rstd] = [a.ln1, a.ln1_mean, a.ln1_rstd].map(|t| t.get(l, N));
        let (weight, bias) = (w.get(Ln1w, l), w.get(Ln1b, l));
        LayernormForward { out, mean, rstd, inp, weight, bias, N, C }
    }

    /// The layernorm before the MLP.
    pub(super) fn norm_before_mlp(&self, l: usize, shape: BatchShape) -> LayernormForward {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let [out, mean, rstd, inp] = [a.ln2, a.ln2_mean, a.ln2_rstd, a.residual2].map(|t| t.get(l, N));
        let (weight, bias) = (w.get(Ln2w, l), w.get(Ln2b, l));
        LayernormForward { out, mean, rstd, inp, weight, bias, N, C }
    }

    /// Computes the logits of `rows` rows of the final layernorm, from `start` on, into the logits
    /// buffer.
    pub(super) fn logits(&self, dev: &mut dyn Ops, start: usize, rows: usize) -> Result<Tensor> {
        let (C, Vp) = (self.weights.config.C, self.weights.config.Vp);
        let out = self.acts.logits.slice(0, rows * Vp);
        dev.matmul_forward(MatmulForward {
            out,
            inp: self.acts.lnf.slice(start * C, rows * C),
            weight: self.weights.get(Wte, 0),
            epilogue: Epilogue::None,
            N: rows,
            C,
            OC: Vp,
        })?;
        Ok(out)
    }

    /// Splits `N` rows into chunks whose logits fit the buffer: `(start, rows)` of each.
    pub(super) fn logits_chunks(&self, N: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let chunk = logits_rows(N, self.acts.logits.len / self.weights.config.Vp);
        (0..N).step_by(chunk).map(move |start| (start, chunk.min(N - start)))
    }

    /// Computes the losses of the rows that `forward` ran on, and adds them to the loss buffer.
    pub fn losses(&self, dev: &mut dyn Ops, shape: BatchShape) -> Result<()> {
        for (start, rows) in self.logits_chunks(shape.rows()) {
            let logits = self.logits(dev, start, rows)?;
            dev.classifier(self.classifier_args(logits, start, rows, None))?;
        }
        Ok(())
    }

    /// Computes the logits of the rows that `forward` ran on, and passes them on: V for each row,
    /// some rows at a time, in order.
    ///
    /// # Errors
    /// Those of the device and of `sink`.
    pub fn read_logits(
        &self,
        dev: &mut dyn Ops,
        shape: BatchShape,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let (V, Vp) = (self.weights.config.V, self.weights.config.Vp);
        for (start, rows) in self.logits_chunks(shape.rows()) {
            let mut padded = vec![0.0; rows * Vp];
            let logits = self.logits(dev, start, rows)?;
            download_f32(dev, &mut padded, logits)?;
            padded.chunks_exact(Vp).try_for_each(|row| sink(&row[..V]))?;
        }
        Ok(())
    }

    /// Returns the token with the largest logit after each of `rows`, which ascend; of equals, the
    /// first. The logits are those of the rows that `forward` ran on.
    pub fn greedy_tokens(&self, dev: &mut dyn Ops, shape: BatchShape, rows: &[usize]) -> Result<Vec<u32>> {
        let (V, Vp) = (self.weights.config.V, self.weights.config.Vp);
        let (mut tokens, mut row_logits) = (Vec::with_capacity(rows.len()), vec![0.0; V]);
        let mut rest = rows;
        for (start, len) in self.logits_chunks(shape.rows()) {
            let (here, later) = rest.split_at(rest.partition_point(|&row| row < start + len));
            rest = later;
            if here.is_empty() {
                continue;
            }
            let logits = self.logits(dev, start, len)?;
            for row in here {
                download_f32(dev, &mut row_logits, logits.slice((row - start) * Vp, V))?;
                let better = |best, i| if row_logits[i] > row_logits[best] { i } else { best };
                tokens.push((1..V).fold(0, better) as u32);
            }
        }
        Ok(tokens)
    }

    /// Runs the forward pass and returns the loss of each of the B*T rows; no gradients.
    pub fn evaluate(
        &self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        shape: BatchShape,
    ) -> Result<Vec<f32>> {
        let (a, N) = (&self.acts, shape.rows());
        self.forward(dev, hooks, shape)?;
        let losses = a.losses.slice(0, N);
        dev.fill(losses, 0.0)?;
        self.losses(dev, shape)?;
        let mut host = vec![0.0; N];
        download_f32(dev, &mut host, losses)?;
        Ok(host)
    }

    pub(super) fn classifier_args(
        &self,
        logits: Tensor,
        start: usize,
        rows: usize,
        dloss: Option<Tensor>,
    ) -> Classifier {
        let (a, config) = (&self.acts, &self.weights.config);
        Classifier {
            losses: a.losses.slice(start, rows),
            logits,
            targets: a.targets.slice(start, rows),
            dloss,
            N: rows,
            V: config.V,
            Vp: config.Vp,
        }
    }

    pub(super) fn recomputes(&self, what: Recompute) -> bool {
        self.acts.recompute >= what
    }
}
