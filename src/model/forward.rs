//! The forward pass: tokens to the last layernorm, and from there to losses.
#![allow(non_snake_case)]

use super::activations::Recompute;
use super::{BatchShape, GPT2};
use crate::ops::{AttentionDims, Classifier, Epilogue, LayernormForward, MatmulForward, Ops};
use crate::params::Param::*;
use crate::tensor::Tensor;
use anyhow::Result;

impl GPT2 {
    /// Encoder, L blocks, last layernorm, of the batch that was loaded.
    pub fn forward(&self, dev: &mut dyn Ops, shape: BatchShape) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let (encoded, tokens) = (a.encoded.slice(0, N * C), a.inputs.slice(0, N));
        dev.encoder_forward(encoded, tokens, w.get(Wte, 0), w.get(Wpe, 0), (shape.B, shape.T, C))?;
        for l in 0..w.config.L {
            self.block_forward(dev, l, shape)?;
        }
        let (mean, rstd) = (a.lnf_mean.slice(0, N), a.lnf_rstd.slice(0, N));
        let residual = a.block_input(w.config.L, shape, C);
        dev.layernorm_forward(LayernormForward {
            out: a.lnf.slice(0, N * C),
            mean,
            rstd,
            inp: residual,
            weight: w.get(Lnfw, 0),
            bias: w.get(Lnfb, 0),
            N,
            C,
        })
    }

    /// x + attention(layernorm(x)), then x + mlp(layernorm(x)).
    fn block_forward(&self, dev: &mut dyn Ops, l: usize, shape: BatchShape) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let dims = AttentionDims { B: shape.B, T: shape.T, NH: w.config.NH, HS: w.config.HS() };
        let [ln1, qkv, atty, residual2] = [a.ln1, a.qkv, a.atty, a.residual2].map(|t| t.get(l, N));
        let [ln2, fch, fch_gelu, residual3] = [a.ln2, a.fch, a.fch_gelu, a.residual3].map(|t| t.get(l, N));

        self.layernorm1(dev, l, shape)?;
        dev.matmul_forward(MatmulForward {
            out: qkv,
            inp: ln1,
            weight: w.get(Qkvw, l),
            epilogue: w.qkv_epilogue(l),
            N,
            C,
            OC: 3 * C,
        })?;
        dev.attention_forward(atty, a.lse.get(l, N), qkv, dims)?;
        let epilogue =
            Epilogue::BiasResidual { bias: w.get(Attprojb, l), residual: a.block_input(l, shape, C) };
        dev.matmul_forward(MatmulForward {
            out: residual2,
            inp: atty,
            weight: w.get(Attprojw, l),
            epilogue,
            N,
            C,
            OC: C,
        })?;

        self.layernorm2(dev, l, shape)?;
        let epilogue = Epilogue::BiasGelu { bias: w.get(Fcb, l), pre_gelu: fch };
        dev.matmul_forward(MatmulForward {
            out: fch_gelu,
            inp: ln2,
            weight: w.get(Fcw, l),
            epilogue,
            N,
            C,
            OC: 4 * C,
        })?;
        let epilogue = Epilogue::BiasResidual { bias: w.get(Fcprojb, l), residual: residual2 };
        dev.matmul_forward(MatmulForward {
            out: residual3,
            inp: fch_gelu,
            weight: w.get(Fcprojw, l),
            epilogue,
            N,
            C: 4 * C,
            OC: C,
        })
    }

    /// The layernorm before attention; the backward pass calls it again where its output was not kept.
    pub(super) fn layernorm1(&self, dev: &mut dyn Ops, l: usize, shape: BatchShape) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let [out, mean, rstd] = [a.ln1, a.ln1_mean, a.ln1_rstd].map(|t| t.get(l, N));
        let inp = a.block_input(l, shape, C);
        let (weight, bias) = (w.get(Ln1w, l), w.get(Ln1b, l));
        dev.layernorm_forward(LayernormForward { out, mean, rstd, inp, weight, bias, N, C })
    }

    /// The layernorm before the MLP.
    pub(super) fn layernorm2(&self, dev: &mut dyn Ops, l: usize, shape: BatchShape) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let [out, mean, rstd, inp] = [a.ln2, a.ln2_mean, a.ln2_rstd, a.residual2].map(|t| t.get(l, N));
        let (weight, bias) = (w.get(Ln2w, l), w.get(Ln2b, l));
        dev.layernorm_forward(LayernormForward { out, mean, rstd, inp, weight, bias, N, C })
    }

    /// logits of `rows` rows of the last layernorm, starting at `start`, into the logits buffer.
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

    /// The rows of logits that are in memory at a time: `(start, rows)` of each chunk of `N`.
    pub(super) fn logits_chunks(&self, N: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let chunk = self.acts.logits.len / self.weights.config.Vp;
        (0..N).step_by(chunk).map(move |start| (start, chunk.min(N - start)))
    }

    /// Forward pass and losses without gradients: the loss of each of the B*T rows, on the host.
    pub fn evaluate(&self, dev: &mut dyn Ops, shape: BatchShape) -> Result<Vec<f32>> {
        let (a, N) = (&self.acts, shape.rows());
        self.forward(dev, shape)?;
        let losses = a.losses.slice(0, N);
        dev.fill(losses, 0.0)?;
        for (start, rows) in self.logits_chunks(N) {
            let logits = self.logits(dev, start, rows)?;
            dev.classifier(self.classifier_args(logits, start, rows, None))?;
        }
        let mut host = vec![0.0; N];
        dev.download(bytemuck::cast_slice_mut(&mut host), losses)?;
        Ok(host)
    }

    pub(super) fn classifier_args(
        &self,
        logits: Tensor,
        start: usize,
        rows: usize,
        dloss: Option<f32>,
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
