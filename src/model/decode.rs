//! Decoding token by token with a key-value cache.
//!
//! The cache is the `qkv` buffer of each layer: position t's keys and values stay in row t.
#![allow(non_snake_case)]

use super::activations::Activations;
use super::{BatchShape, GPT2, Weights};
use crate::ops::{AttentionDims, Epilogue, LayernormForward, MatmulForward, Ops};
use crate::params::Param::*;
use crate::tensor::{MemoryPlan, Tensor};
use anyhow::Result;

/// A model that continues one sequence.
#[derive(Clone, Debug)]
pub struct Decoder {
    model: GPT2,
    /// Positions whose keys and values are in the cache.
    cached: usize,
}

impl Decoder {
    /// Shares the weights of another model; its own buffers hold `context` positions.
    ///
    /// # Panics
    /// If `context` is 0 or more than the position embedding covers.
    pub fn plan(weights: &Weights, context: usize, plan: &mut MemoryPlan) -> Self {
        assert!((1..=weights.config.maxT).contains(&context));
        let acts = Activations::plan_for_decoding(&weights.config, context, weights.all.dtype, plan);
        Decoder { model: GPT2 { weights: weights.clone(), grads: None, acts }, cached: 0 }
    }

    /// Positions the buffers hold.
    pub fn context(&self) -> usize {
        self.model.acts.rows
    }

    /// Tokens the model knows, which is the length of the logits.
    pub fn V(&self) -> usize {
        self.model.weights.config.V
    }

    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Forgets the cache and runs all of `tokens` at once; returns the V logits that follow the last of them.
    ///
    /// # Panics
    /// If there are no tokens or more than [`Self::context`].
    pub fn prefill(&mut self, dev: &mut dyn Ops, tokens: &[i32]) -> Result<Vec<f32>> {
        let shape = BatchShape { B: 1, T: tokens.len() };
        self.model.load_batch(dev, shape, tokens, tokens)?;
        self.model.forward(dev, shape)?;
        self.cached = tokens.len();
        self.last_logits(dev, tokens.len() - 1)
    }

    /// Appends one token; returns the V logits that follow it.
    ///
    /// # Panics
    /// If the context is full.
    pub fn step(&mut self, dev: &mut dyn Ops, token: i32) -> Result<Vec<f32>> {
        let (a, w) = (&self.model.acts, &self.model.weights);
        let (t, C) = (self.cached, w.config.C);
        assert!(t < a.rows, "the context of {} positions is full", a.rows);
        dev.upload(a.inputs.slice(0, 1), bytemuck::bytes_of(&token))?;
        let wpe_t = w.get(Wpe, 0).part(t, C);
        dev.encoder_forward(a.encoded.slice(0, C), a.inputs.slice(0, 1), w.get(Wte, 0), wpe_t, (1, 1, C))?;
        for l in 0..w.config.L {
            self.block_step(dev, l, t)?;
        }
        let residual = a.block_input(w.config.L, ONE_ROW, C);
        let (mean, rstd) = (a.lnf_mean.slice(0, 1), a.lnf_rstd.slice(0, 1));
        let lnf = a.lnf.slice(0, C);
        let (weight, bias) = (w.get(Lnfw, 0), w.get(Lnfb, 0));
        dev.layernorm_forward(LayernormForward {
            out: lnf,
            mean,
            rstd,
            inp: residual,
            weight,
            bias,
            N: 1,
            C,
        })?;
        self.cached = t + 1;
        self.last_logits(dev, 0)
    }

    fn block_step(&self, dev: &mut dyn Ops, l: usize, t: usize) -> Result<()> {
        let (a, w) = (&self.model.acts, &self.model.weights);
        let C = w.config.C;
        let [ln1, atty, residual2, ln2] = [a.ln1, a.atty, a.residual2, a.ln2].map(|x| x.get(l, 1));
        let [fch, fch_gelu, residual3] = [a.fch, a.fch_gelu, a.residual3].map(|x| x.get(l, 1));
        let matmul = |dev: &mut dyn Ops, out: Tensor, inp: Tensor, weight, epilogue| {
            let weight = w.get(weight, l);
            dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N: 1, C: inp.len, OC: out.len })
        };

        self.model.layernorm1(dev, l, ONE_ROW)?;
        let cache = a.qkv.get(l, t + 1);
        matmul(dev, cache.part(t, 3 * C), ln1, Qkvw, w.qkv_epilogue(l))?;
        let dims = AttentionDims { B: 1, T: t + 1, NH: w.config.NH, HS: w.config.HS() };
        dev.attention_decode(atty, cache, t, dims)?;
        let residual = a.block_input(l, ONE_ROW, C);
        matmul(
            dev,
            residual2,
            atty,
            Attprojw,
            Epilogue::BiasResidual { bias: w.get(Attprojb, l), residual },
        )?;

        self.model.layernorm2(dev, l, ONE_ROW)?;
        matmul(dev, fch_gelu, ln2, Fcw, Epilogue::BiasGelu { bias: w.get(Fcb, l), pre_gelu: fch })?;
        let epilogue = Epilogue::BiasResidual { bias: w.get(Fcprojb, l), residual: residual2 };
        matmul(dev, residual3, fch_gelu, Fcprojw, epilogue)
    }

    /// Logits of one row of the last layernorm, without the padding.
    fn last_logits(&self, dev: &mut dyn Ops, row: usize) -> Result<Vec<f32>> {
        let logits = self.model.logits(dev, row, 1)?;
        let V = self.model.weights.config.V;
        let mut host = vec![0.0f32; V];
        dev.download(bytemuck::cast_slice_mut(&mut host), logits.slice(0, V))?;
        Ok(host)
    }
}

const ONE_ROW: BatchShape = BatchShape { B: 1, T: 1 };
