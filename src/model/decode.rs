//! Decoding token by token with a key-value cache.
//!
//! The cache is the `qkv` buffer of each layer, with room for a sequence per slot: row t of a slot
//! holds the keys and values of position t.

use super::activations::Activations;
use super::forward::{Attention, CacheRow};
use super::hooks::LayerHooks;
use super::{BatchShape, GPT2, Weights};
use crate::ops::{Limits, Ops, download_f32};
use crate::tensor::MemoryPlan;
use anyhow::Result;

/// A model that continues several sequences at the same time, each in a slot of its own. Sequences
/// join and leave between steps, and each is at a position of its own.
///
/// On a CPU whose matmuls are ours (AVX-512, AMX), the logits of a sequence have the same bits
/// whichever others there are; elsewhere they may differ by rounding, as the number of rows decides
/// which kernel multiplies.
#[derive(Clone, Debug)]
pub struct BatchDecoder {
    model: GPT2,
    context: usize,
    /// Per slot, the number of positions whose keys and values are in the cache.
    cached: Vec<usize>,
}

impl BatchDecoder {
    /// Plans a decoder that shares the weights of another model and holds `context` positions of
    /// `slots` sequences.
    ///
    /// # Panics
    /// If `context` is 0 or more than the position embedding covers, or `slots` is 0.
    pub fn plan(weights: &Weights, context: usize, slots: usize, plan: &mut MemoryPlan) -> Self {
        assert!((1..=weights.config.maxT).contains(&context) && slots > 0);
        let dtype = weights.params.dtype();
        let acts = Activations::plan_for_decoding(&weights.config, context, slots, dtype, plan);
        let model = GPT2 { weights: weights.clone(), grads: None, unwanted: None, acts };
        BatchDecoder { model, context, cached: vec![0; slots] }
    }

    /// The sizes of the largest operations that decoding asks of a device.
    pub fn limits(&self) -> Limits {
        self.model.limits()
    }

    /// The number of positions of each slot.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The number of sequences that can be decoded at the same time.
    pub fn slots(&self) -> usize {
        self.cached.len()
    }

    /// The size of the vocabulary, which is the number of logits per row.
    pub fn V(&self) -> usize {
        self.model.weights.config.V
    }

    /// The number of positions whose keys and values are in the cache of a slot.
    pub fn cached(&self, slot: usize) -> usize {
        self.cached[slot]
    }

    /// Clears a slot and runs all of `tokens` in it at once; returns the V logits after the last
    /// one.
    ///
    /// # Panics
    /// If there are no tokens or more than [`Self::context`].
    pub fn prefill(
        &mut self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        slot: usize,
        tokens: &[i32],
    ) -> Result<Vec<f32>> {
        let T = tokens.len();
        assert!((1..=self.context).contains(&T) && slot < self.slots());
        self.model.load_batch(dev, BatchShape::new(1, T), tokens, tokens)?;
        self.model.forward_rows(dev, hooks, Attention::Prefill { slot, T })?;
        self.cached[slot] = T;
        self.logits(dev, T - 1, 1)
    }

    /// Passes on the V logits after each of the T tokens of the last [`Self::prefill`], if nothing
    /// has run since.
    ///
    /// # Errors
    /// Those of the device and of `sink`.
    pub fn prompt_logits(
        &self,
        dev: &mut dyn Ops,
        T: usize,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        self.model.read_logits(dev, BatchShape::new(1, T), sink)
    }

    /// Appends a token to each of some slots; returns the V logits after each, in order.
    ///
    /// # Panics
    /// If there are no slots, or one is named twice, is empty or full.
    pub fn step(
        &mut self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        tokens: &[(usize, i32)],
    ) -> Result<Vec<f32>> {
        assert!(!tokens.is_empty());
        let rows: Vec<CacheRow> =
            tokens.iter().map(|&(slot, _)| CacheRow { slot, t: self.cached[slot] }).collect();
        for &CacheRow { slot, t } in &rows {
            assert!(0 < t && t < self.context, "slot {slot} has {t} of {} positions", self.context);
            self.cached[slot] += 1;
        }
        let distinct = rows.iter().all(|row| self.cached[row.slot] == row.t + 1);
        assert!(distinct, "a slot is named twice");
        let (a, n) = (&self.model.acts, rows.len());
        let ids: Vec<i32> = tokens.iter().map(|&(_, token)| token).collect();
        dev.upload(a.inputs.slice(0, n), bytemuck::cast_slice(&ids))?;
        let positions: Vec<i32> = rows.iter().map(|row| row.t as i32).collect();
        self.model.load_positions(dev, &positions)?;
        self.model.forward_rows(dev, hooks, Attention::Decode { rows: &rows })?;
        self.logits(dev, 0, n)
    }

    /// The logits of some rows of the final layernorm, without the padding.
    fn logits(&self, dev: &mut dyn Ops, start: usize, rows: usize) -> Result<Vec<f32>> {
        let (V, Vp) = (self.V(), self.model.weights.config.Vp);
        let logits = self.model.logits(dev, start, rows)?;
        let mut host = vec![0.0f32; (rows - 1) * Vp + V];
        download_f32(dev, &mut host, logits.slice(0, (rows - 1) * Vp + V))?;
        for row in 1..rows {
            host.copy_within(row * Vp..row * Vp + V, row * V);
        }
        host.truncate(rows * V);
        Ok(host)
    }
}

/// A model that continues one sequence.
#[derive(Clone, Debug)]
pub struct Decoder(BatchDecoder);

impl Decoder {
    /// Plans a decoder that shares the weights of another model and holds `context` positions.
    ///
    /// # Panics
    /// If `context` is 0 or more than the position embedding covers.
    pub fn plan(weights: &Weights, context: usize, plan: &mut MemoryPlan) -> Self {
        Decoder(BatchDecoder::plan(weights, context, 1, plan))
    }

    /// The sizes of the largest operations that decoding asks of a device.
    pub fn limits(&self) -> Limits {
        self.0.limits()
    }

    /// The number of positions the buffers hold.
    pub fn context(&self) -> usize {
        self.0.context()
    }

    /// The size of the vocabulary, which is the length of the logits.
    pub fn V(&self) -> usize {
        self.0.V()
    }

    /// The number of positions whose keys and values are in the cache.
    pub fn cached(&self) -> usize {
        self.0.cached(0)
    }

    /// Forgets the positions from `cached` on.
    ///
    /// # Panics
    /// If fewer are in the cache.
    pub fn rewind(&mut self, cached: usize) {
        let of = &mut self.0.cached[0];
        assert!(cached <= *of, "{cached} positions of {of}");
        *of = cached;
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
        self.0.prefill(dev, hooks, 0, tokens)
    }

    /// Appends one token; returns the V logits after it.
    ///
    /// # Panics
    /// If the cache is empty, or the context is full.
    pub fn step(&mut self, dev: &mut dyn Ops, hooks: &mut dyn LayerHooks, token: i32) -> Result<Vec<f32>> {
        self.0.step(dev, hooks, &[(0, token)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::device::cpu::Cpu;
    use crate::eval::testing::{cpu, randomize};
    use crate::model::hooks::NoHooks;
    use crate::params::frozen::Frozen;
    use crate::sharding::Sharding;
    use crate::tensor::Dtype;

    const CONTEXT: usize = 40;
    const V: usize = 96;

    fn with_slots(slots: usize) -> (Cpu, BatchDecoder) {
        let config =
            ModelConfig { maxT: CONTEXT, V, Vp: 128, L: 2, NH: 3, C: 48, qkv_bias: true, lora: None };
        let mut plan = MemoryPlan::new();
        let weights = Weights::plan(&config, Dtype::F32, Sharding::NONE, &Frozen::default(), &mut plan);
        let decoder = BatchDecoder::plan(&weights, CONTEXT, slots, &mut plan);
        let mut dev = cpu(&plan);
        randomize(&mut dev, &weights, 7);
        (dev, decoder)
    }

    fn token(sequence: usize, t: usize) -> i32 {
        (sequence * 37 + t * 31 + t * t * sequence) as i32 % V as i32
    }

    fn prompt(sequence: usize) -> Vec<i32> {
        (0..=3 * sequence).map(|t| token(sequence, t)).collect()
    }

    /// The logits after the prompt of a sequence, and after each of some further tokens, alone.
    fn alone(sequence: usize, steps: usize) -> Vec<Vec<f32>> {
        let (mut dev, mut decoder) = with_slots(1);
        let mut all = vec![decoder.prefill(&mut dev, &mut NoHooks, 0, &prompt(sequence)).unwrap()];
        for _ in 0..steps {
            let next = token(sequence, decoder.cached(0));
            all.push(decoder.step(&mut dev, &mut NoHooks, &[(0, next)]).unwrap());
        }
        all
    }

    fn assert_same(found: &[f32], alone: &[f32], what: &str) {
        let spread = alone.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        assert!(spread > 0.5, "logits this flat would prove nothing");
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            assert!(found.iter().map(|x| x.to_bits()).eq(alone.iter().map(|x| x.to_bits())), "{what}");
        }
        assert!(found.len() == V && found.iter().zip(alone).all(|(a, b)| (a - b).abs() <= 1e-4), "{what}");
    }

    /// Sequences join and leave at different times, in slots in any order.
    #[test]
    fn a_sequence_has_the_logits_that_it_has_alone() {
        let alone: Vec<Vec<Vec<f32>>> = (0..4).map(|sequence| alone(sequence, 20)).collect();
        let (mut dev, mut decoder) = with_slots(3);
        // The sequence in each slot, and its steps so far.
        let mut slots: [Option<(usize, usize)>; 3] = [None; 3];
        let join = |decoder: &mut BatchDecoder, dev: &mut Cpu, slot: usize, sequence: usize| {
            let logits = decoder.prefill(dev, &mut NoHooks, slot, &prompt(sequence)).unwrap();
            assert_same(&logits, &alone[sequence][0], "prompt");
            Some((sequence, 0))
        };
        for round in 0..20 {
            match round {
                0 => slots[2] = join(&mut decoder, &mut dev, 2, 0),
                3 => slots[0] = join(&mut decoder, &mut dev, 0, 3),
                5 => slots[1] = join(&mut decoder, &mut dev, 1, 1),
                9 => slots[2] = join(&mut decoder, &mut dev, 2, 2),
                12 => slots[0] = None,
                _ => {}
            }
            let running: Vec<usize> = (0..3).filter(|&slot| slots[slot].is_some()).rev().collect();
            let tokens: Vec<(usize, i32)> = running
                .iter()
                .map(|&slot| (slot, token(slots[slot].unwrap().0, decoder.cached(slot))))
                .collect();
            let logits = decoder.step(&mut dev, &mut NoHooks, &tokens).unwrap();
            for (&slot, logits) in running.iter().zip(logits.chunks_exact(V)) {
                let (sequence, steps) = slots[slot].as_mut().unwrap();
                *steps += 1;
                assert_same(logits, &alone[*sequence][*steps], &format!("round {round}, slot {slot}"));
            }
        }
    }

    #[test]
    fn the_logits_of_a_prompt_are_those_after_each_of_its_tokens() {
        let (mut dev, mut decoder) = with_slots(2);
        let tokens = prompt(3);
        let last = decoder.prefill(&mut dev, &mut NoHooks, 1, &tokens).unwrap();
        let mut rows = Vec::new();
        let sink = &mut |row: &[f32]| {
            rows.push(row.to_vec());
            Ok(())
        };
        decoder.prompt_logits(&mut dev, tokens.len(), sink).unwrap();
        assert_eq!(rows.len(), tokens.len());
        assert_same(rows.last().unwrap(), &last, "last");
        let first = decoder.prefill(&mut dev, &mut NoHooks, 0, &tokens[..1]).unwrap();
        assert_same(&rows[0], &first, "first");
    }

    #[test]
    #[should_panic(expected = "named twice")]
    fn a_slot_takes_one_token_per_step() {
        let (mut dev, mut decoder) = with_slots(2);
        decoder.prefill(&mut dev, &mut NoHooks, 1, &[5]).unwrap();
        let _ = decoder.step(&mut dev, &mut NoHooks, &[(1, 5), (1, 6)]);
    }

    #[test]
    #[should_panic(expected = "slot 0 has 0 of 40 positions")]
    fn an_empty_slot_cannot_continue() {
        let (mut dev, mut decoder) = with_slots(2);
        let _ = decoder.step(&mut dev, &mut NoHooks, &[(0, 5)]);
    }
}
