//! Loss on held-out text.

use crate::data::loader::DataLoader;
use crate::model::hooks::LayerHooks;
use crate::model::{BatchShape, GPT2};
use crate::ops::Ops;
use anyhow::Result;

/// Measures the mean loss, in nats per token that counts, over the first batches of the loader's
/// data. If ranks share the batches, this is one rank's contribution: the loss is the sum over all
/// ranks.
///
/// The loader is reset first, so that each validation sees the same text; it should not shuffle.
/// `None` batches read all of the data once. If there are fewer batches than asked for, reading
/// wraps around, as in llm.c. `progress` gets the number of batches done and their total, of this
/// rank.
///
/// # Errors
/// If a batch cannot be read.
///
/// # Panics
/// If `shape` differs from the loader's or does not fit the model, or `max_batches` is 0.
pub fn validation_loss(
    model: &GPT2,
    dev: &mut dyn Ops,
    hooks: &mut dyn LayerHooks,
    loader: &mut DataLoader,
    shape: BatchShape,
    max_batches: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<f32> {
    loader.reset();
    let batches = max_batches.unwrap_or(loader.batches_per_epoch());
    assert!(batches > 0, "a mean of no batches");
    let counted = loader.counted(batches);
    let mut sum = 0.0;
    let turns = loader.turns(batches).len();
    for turn in 0..turns {
        let batch = loader.next_batch()?;
        model.load_batch(dev, shape, &batch.inputs, &batch.targets)?;
        if let Some(packed) = &batch.packed {
            model.load_positions(dev, &packed.positions)?;
        }
        let shape = BatchShape { packed: batch.packed.is_some(), ..shape };
        let losses = model.evaluate(dev, hooks, shape)?;
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        progress(turn + 1, turns);
    }
    for _ in turns..loader.most_turns(batches) {
        model.participate(dev, hooks)?;
    }
    Ok((sum / counted as f64) as f32)
}

/// The perplexity, exp(loss): a uniform choice among this many tokens has the same loss.
pub fn perplexity(loss: f32) -> f64 {
    f64::from(loss).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DropoutRates, ModelConfig};
    use crate::data::loader::{LoaderOptions, Packing, Sample};
    use crate::eval::testing::{cpu, randomize};
    use crate::model::ModelOptions;
    use crate::model::activations::Recompute;
    use crate::model::hooks::NoHooks;
    use crate::params::frozen::Frozen;
    use crate::sharding::Sharding;
    use crate::tensor::{Dtype, MemoryPlan};

    /// Writes a token shard: header, then tokens.
    fn shard(tokens: &[u16]) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".bin").tempfile().unwrap();
        let mut header = [0i32; 256];
        header[..3].copy_from_slice(&[20240520, 1, tokens.len() as i32]);
        let bytes = [bytemuck::cast_slice::<_, u8>(&header), bytemuck::cast_slice(tokens)].concat();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn it_is_the_mean_over_tokens_and_starts_over_each_time() {
        let shape = BatchShape::new(2, 8);
        let config = ModelConfig { maxT: 8, V: 96, Vp: 128, L: 1, NH: 2, C: 16, qkv_bias: true, lora: None };
        let options = ModelOptions {
            B: 2,
            T: 8,
            min_rows: 0,
            recompute: Recompute::Gelu,
            dropout: DropoutRates::NONE,
            logits_bytes: 1 << 20,
            sharding: Sharding::NONE,
            frozen: Frozen::default(),
        };
        let mut plan = MemoryPlan::new();
        let model = GPT2::plan_for_evaluation(&config, &options, Dtype::F32, &mut plan);
        let mut dev = cpu(&plan);
        randomize(&mut dev, &model.weights, 11);

        // Three batches of sixteen tokens, and one more token as the last target.
        let tokens: Vec<u16> = (0..49).map(|i| i * 37 % 96).collect();
        let file = shard(&tokens);
        let mut losses = Vec::new();
        for start in [0, 16, 32] {
            let text: Vec<i32> = tokens[start..start + 17].iter().map(|&t| i32::from(t)).collect();
            model.load_batch(&mut dev, shape, &text[..16], &text[1..]).unwrap();
            losses.extend(model.evaluate(&mut dev, &mut NoHooks, shape).unwrap());
        }
        let mean = |n: usize| losses[..n].iter().sum::<f32>() / n as f32;

        let mut loader = DataLoader::open(LoaderOptions {
            pattern: file.path().to_str().unwrap(),
            flag: "-j",
            B: 2,
            T: 8,
            rank: 0,
            num_processes: 1,
            sample: Sample::Batch,
            shuffle: false,
            packing: Packing::default(),
            V: 96,
        })
        .unwrap();
        loader.next_batch().unwrap();
        for (max_batches, expected) in [
            (None, mean(48)),
            (Some(1), mean(16)),
            (Some(2), mean(32)),
            (Some(4), (3.0 * mean(48) + mean(16)) / 4.0),
        ] {
            let mut shown = Vec::new();
            let show = &mut |done, total| shown.push((done, total));
            let loss = validation_loss(&model, &mut dev, &mut NoHooks, &mut loader, shape, max_batches, show);
            let loss = loss.unwrap();
            let batches = max_batches.unwrap_or(3);
            assert_eq!(shown, (1..=batches).map(|done| (done, batches)).collect::<Vec<_>>());
            assert!((loss - expected).abs() <= 1e-5 * expected, "{max_batches:?}: {loss} against {expected}");
        }
        assert_ne!(mean(16), mean(32));
    }

    #[test]
    fn perplexity_of_a_uniform_guess_is_the_vocabulary() {
        assert!((perplexity(50257f32.ln()) - 50257.0).abs() <= 0.1);
    }
}
