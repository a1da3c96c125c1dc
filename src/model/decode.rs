//! Decoding token by token with a key-value cache.
//!
//! The cache is the `qkv` buffer of each layer: row t holds the keys and values of position t.

use super::activations::Activations;
use super::hooks::{LayerHooks, Pass};
use super::{BatchShape, GPT2, Weights};
use crate::ops::{AttentionDims, Epilogue, Limits, MatmulForward, Ops, download_f32};
use crate::params::Param::*;
use crate::tensor::{MemoryPlan, Tensor};
use anyhow::Result;

/// A model that continues one sequence.
#[derive(Clone, Debug)]
pub struct Decoder {
    model: GPT2,
    /// The number of positions whose keys and values are in the cache.
    cached: usize,
}

impl Decoder {
    /// Plans a decoder that shares the weights of another model and holds `context` positions.
    ///
    /// # Panics
    /// If `context` is 0 or more than the position embedding covers.
    pub fn plan(weights: &Weights, context: usize, plan: &mut MemoryPlan) -> Self {
        assert!((1..=weights.config.maxT).contains(&context));
        let acts = Activations::plan_for_decoding(&weights.config, context, weights.params.dtype(), plan);
        Decoder { model: GPT2 { weights: weights.clone(), grads: None, acts }, cached: 0 }
    }

    /// The sizes of the largest operations that decoding asks of a device.
    pub fn limits(&self) -> Limits {
        self.model.limits()
    }

    /// The number of positions the buffers hold.
    pub fn context(&self) -> usize {
        self.model.acts.rows
    }

    /// The size of the vocabulary, which is the length of the logits.
    pub fn V(&self) -> usize {
        self.model.weights.config.V
    }

    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Clears the cache and runs all of `tokens` at once; returns the V logits after the last one.
    ///
    /// # Panics
    /// If there are no tokens or more than [`Self::context`].
    pub fn prefill(
        &mut self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        tokens: &[i32],
    ) -> Result<Vec<f32>> {
        let shape = BatchShape { B: 1, T: tokens.len() };
        self.model.load_batch(dev, shape, tokens, tokens)?;
        self.model.forward(dev, hooks, shape)?;
        self.cached = tokens.len();
        self.last_logits(dev, tokens.len() - 1)
    }

    /// Appends one token; returns the V logits after it.
    ///
    /// # Panics
    /// If the context is full.
    pub fn step(&mut self, dev: &mut dyn Ops, hooks: &mut dyn LayerHooks, token: i32) -> Result<Vec<f32>> {
        let (a, w) = (&self.model.acts, &self.model.weights);
        let (t, C) = (self.cached, w.config.C);
        assert!(t < a.rows, "the context of {} positions is full", a.rows);
        dev.upload(a.inputs.slice(0, 1), bytemuck::bytes_of(&token))?;
        hooks.before(dev, Pass::Forward, w.params.layout.shared_unit())?;
        let wpe_t = w.get(Wpe, 0).part(t, C);
        dev.encoder_forward(a.encoded.slice(0, C), a.inputs.slice(0, 1), w.get(Wte, 0), wpe_t, (1, 1, C))?;
        hooks.before(dev, Pass::Forward, 0)?;
        dev.layernorm_forward(self.model.norm_before_block(0, ONE_ROW))?;
        for l in 0..w.config.L {
            self.block_step(dev, hooks, l, t)?;
            hooks.after(dev, Pass::Forward, l)?;
        }
        self.cached = t + 1;
        self.last_logits(dev, 0)
    }

    fn block_step(&self, dev: &mut dyn Ops, hooks: &mut dyn LayerHooks, l: usize, t: usize) -> Result<()> {
        let (a, w) = (&self.model.acts, &self.model.weights);
        let C = w.config.C;
        let [ln1, atty, residual2, ln2] = [a.ln1, a.atty, a.residual2, a.ln2].map(|x| x.get(l, 1));
        let [fch, fch_gelu, residual3] = [a.fch, a.fch_gelu, a.residual3].map(|x| x.get(l, 1));
        let matmul = |out: Tensor, inp: Tensor, weight, epilogue| {
            let weight = w.get(weight, l);
            MatmulForward { out, inp, weight, epilogue, N: 1, C: inp.len, OC: out.len }
        };

        let cache = a.qkv.get(l, t + 1);
        dev.matmul_forward(matmul(cache.part(t, 3 * C), ln1, Qkvw, w.qkv_epilogue(l)))?;
        let dims = AttentionDims { B: 1, T: t + 1, NH: w.config.NH, HS: w.config.HS() };
        dev.attention_decode(atty, cache, t, dims)?;
        let residual = a.block_input(l, ONE_ROW, C);
        let attproj =
            matmul(residual2, atty, Attprojw, Epilogue::BiasResidual { bias: w.get(Attprojb, l), residual });
        dev.matmul_residual_layernorm(attproj, self.model.norm_before_mlp(l, ONE_ROW))?;

        let epilogue = Epilogue::BiasGelu { bias: w.get(Fcb, l), pre_gelu: fch };
        dev.matmul_forward(matmul(fch_gelu, ln2, Fcw, epilogue))?;
        let epilogue = Epilogue::BiasResidual { bias: w.get(Fcprojb, l), residual: residual2 };
        let fcproj = matmul(residual3, fch_gelu, Fcprojw, epilogue);
        if l + 1 < w.config.L {
            hooks.before(dev, Pass::Forward, l + 1)?;
        }
        dev.matmul_residual_layernorm(fcproj, self.model.norm_before_block(l + 1, ONE_ROW))
    }

    /// The logits of one row of the final layernorm, without the padding.
    fn last_logits(&self, dev: &mut dyn Ops, row: usize) -> Result<Vec<f32>> {
        let logits = self.model.logits(dev, row, 1)?;
        let V = self.model.weights.config.V;
        let mut host = vec![0.0f32; V];
        download_f32(dev, &mut host, logits.slice(0, V))?;
        Ok(host)
    }
}

const ONE_ROW: BatchShape = BatchShape { B: 1, T: 1 };
