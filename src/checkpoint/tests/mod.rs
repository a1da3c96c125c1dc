//! Round trips, and invalid files.

mod directory;
mod formats;
mod safetensors_file;

use super::*;
use crate::data::loader::{LoaderState, ShuffleState};
use crate::params::{PARAMS, Param, ParamLayout};
use crate::rng::Mt19937;
use std::fs;

/// SplitMix64 (Steele, Lea & Flood 2014), the source of random bits.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).collect()
    }
}

/// A model whose dimensions all differ, with a vocabulary padded by zeros.
fn tiny_model() -> ModelFile {
    let config = ModelConfig { maxT: 7, V: 50, Vp: 128, L: 3, NH: 2, C: 6, qkv_bias: true, lora: None };
    let layout = ParamLayout::new(&config);
    let mut params = Bits(1).floats(layout.len());
    params[config.V * config.C..layout.range(Param::Wte).end].fill(0.0);
    ModelFile { config, dropout: DropoutRates::NONE, params }
}

fn tiny_state(step: u64, use_master_weights: bool, shuffle: bool) -> State {
    let shuffle = shuffle.then(|| ShuffleState {
        shard_indices: vec![2, 0, 1],
        intra_shard_indices: vec![4, 3, 2, 1, 0],
        rng: Mt19937::new(0x0403_0201),
    });
    State {
        step,
        num_processes: 1,
        rank: 0,
        use_master_weights,
        muon: false,
        adapters: false,
        dtype: Dtype::F32,
        rng_state: 0x0123_4567_89ab_cdef,
        rng_state_last_update: 0xfedc_ba98_7654_3210,
        loader: LoaderState { current_shard_idx: 2, current_sample_idx: 5, shuffle },
    }
}

/// The smallest of models, with 30 parameters.
const SMALLEST: ModelConfig =
    ModelConfig { maxT: 2, V: 1, Vp: 1, L: 1, NH: 1, C: 1, qkv_bias: true, lora: None };

fn write_state(path: &Path, state: &State, config: &ModelConfig, source: &mut Source) -> Result<()> {
    crate::files::write(path, |out| state::encode(state, config, source, out))
}

/// The four tensors of a run, different for each `seed`.
struct Tensors([Vec<f32>; 4]);

impl Tensors {
    fn random(seed: u64, len: usize) -> Tensors {
        let mut bits = Bits(seed);
        Tensors(std::array::from_fn(|_| bits.floats(len)))
    }

    fn poisoned(len: usize) -> Tensors {
        Tensors(std::array::from_fn(|_| vec![f32::NAN; len]))
    }

    fn source(&self) -> impl FnMut(TensorKind, usize, &mut [f32]) -> Result<()> {
        |kind, start, out| {
            out.copy_from_slice(&self.0[kind as usize][start..start + out.len()]);
            Ok(())
        }
    }

    fn sink(&mut self) -> impl FnMut(TensorKind, usize, &[f32]) -> Result<()> {
        |kind, start, values| {
            self.0[kind as usize][start..start + values.len()].copy_from_slice(values);
            Ok(())
        }
    }
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Returns the message of `result`, which has to be an error of one line that names the file.
fn message<T>(result: Result<T>, path: &Path) -> String {
    let Err(error) = result else { panic!("{}: accepted", path.display()) };
    let message = format!("{error:#}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(&*path.file_name().unwrap().to_string_lossy()), "{message}");
    message
}

#[track_caller]
fn assert_refused<T>(result: Result<T>, path: &Path, expected: &str) {
    let message = message(result, path);
    assert!(message.contains(expected), "expected \"{expected}\" in: {message}");
}
