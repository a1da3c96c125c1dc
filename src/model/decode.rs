//! Decoding token by token with a key-value cache.
//!
//! The cache is the `qkv` buffer of each layer: row t holds the keys and values of position t.

use super::activations::Activations;
use super::forward::Attention;
use super::hooks::LayerHooks;
use super::{BatchShape, GPT2, Weights};
use crate::ops::{Limits, Ops, download_f32};
use crate::tensor::MemoryPlan;
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
        Decoder { model: GPT2 { weights: weights.clone(), grads: None, unwanted: None, acts }, cached: 0 }
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

    /// Forgets the positions from `cached` on.
    ///
    /// # Panics
    /// If fewer are in the cache.
    pub fn rewind(&mut self, cached: usize) {
        assert!(cached <= self.cached, "{cached} positions of {}", self.cached);
        self.cached = cached;
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
        let shape = BatchShape::new(1, tokens.len());
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
        let (a, t) = (&self.model.acts, self.cached);
        assert!(t < a.rows, "the context of {} positions is full", a.rows);
        dev.upload(a.inputs.slice(0, 1), bytemuck::bytes_of(&token))?;
        self.model.forward_rows(dev, hooks, Attention::Decode { t })?;
        self.cached = t + 1;
        self.last_logits(dev, 0)
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
