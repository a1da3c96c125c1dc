//! The places where GPT-2 drops activations in training, and the masks of a step there.

use super::GPT2;
use crate::ops::{Dropout, DropoutState, Ops, philox};
use anyhow::Result;

/// A place of dropout.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// The sum of the embeddings.
    Embeddings,
    /// The attention weights of a layer.
    Weights(usize),
    /// The output of a layer's attention, before it is added to the residual stream.
    Attention(usize),
    /// The same of its MLP.
    Mlp(usize),
}

impl Place {
    /// The number of the place among all of them.
    fn stream(self) -> u32 {
        let stream = match self {
            Place::Embeddings => 0,
            Place::Weights(l) => 3 * l + 1,
            Place::Attention(l) => 3 * l + 2,
            Place::Mlp(l) => 3 * l + 3,
        };
        stream as u32
    }
}

/// The key of all masks of `step`, in a run with this seed.
pub fn key(seed: u32, step: usize) -> [u32; 2] {
    let [first, second, ..] = philox([step as u32, (step as u64 >> 32) as u32, seed, 0], [0; 2]);
    [first, second]
}

impl GPT2 {
    /// Uploads what the masks of the next forward and backward passes depend on, if anything is
    /// dropped.
    pub fn load_dropout(&self, dev: &mut dyn Ops, state: DropoutState) -> Result<()> {
        match self.acts.dropout.any() {
            true => dev.upload(self.acts.dropout_state, bytemuck::bytes_of(&state)),
            false => Ok(()),
        }
    }

    /// The dropout at a place, if there is one and it is `on`.
    pub(super) fn dropout(&self, on: bool, place: Place) -> Option<Dropout> {
        let rates = self.acts.dropout;
        let rate = match place {
            Place::Embeddings => rates.embd,
            Place::Weights(_) => rates.attn,
            Place::Attention(_) | Place::Mlp(_) => rates.resid,
        };
        let dropout = Dropout { rate, state: self.acts.dropout_state, stream: place.stream() };
        (on && rate > 0.0).then_some(dropout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_place_has_a_stream_of_its_own() {
        let of_layer = |l| [Place::Weights(l), Place::Attention(l), Place::Mlp(l)];
        let all = (0..100).flat_map(of_layer).chain([Place::Embeddings]);
        assert_eq!(all.map(Place::stream).collect::<BTreeSet<_>>().len(), 301);
    }

    #[test]
    fn each_step_and_each_seed_has_a_key_of_its_own() {
        let keys = (0..100).flat_map(|seed| (0..100).map(move |step| key(seed, step)));
        assert_eq!(keys.collect::<BTreeSet<_>>().len(), 10_000);
        assert_ne!(key(1, 2), key(2, 1));
        assert_ne!(key(0, 1 << 32), key(0, 0));
    }
}
