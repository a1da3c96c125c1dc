//! The reader of PEFT's adapters.

use super::{directory, judge, write};
use std::path::Path;
use warpsmith::checkpoint::Adapter;
use warpsmith::config::ModelConfig;

/// The files that PEFT wrote for the model of the fixtures.
const CONFIG: (&str, &[u8]) =
    ("adapter_config.json", include_bytes!("../fixtures/gpt2_tiny/lora/start/adapter_config.json"));
const WEIGHTS: (&str, &[u8]) = (
    "adapter_model.safetensors",
    include_bytes!("../fixtures/gpt2_tiny/lora/start/adapter_model.safetensors"),
);
const MODEL: ModelConfig =
    ModelConfig { maxT: 16, V: 96, Vp: 128, L: 2, NH: 2, C: 32, qkv_bias: true, lora: None };

pub fn configs() -> Vec<Vec<u8>> {
    vec![CONFIG.1.into()]
}

pub fn all_weights() -> Vec<Vec<u8>> {
    vec![WEIGHTS.1.into()]
}

pub fn config(bytes: &[u8]) -> bool {
    read((CONFIG.0, bytes), WEIGHTS)
}

pub fn weights(bytes: &[u8]) -> bool {
    read((WEIGHTS.0, bytes), CONFIG)
}

fn read((damaged, bytes): (&str, &[u8]), (good, whole): (&str, &[u8])) -> bool {
    let folder = directory().join("adapter");
    write(&folder.join(damaged), bytes);
    write(&folder.join(good), whole);
    let found = Adapter::read(Path::new(&folder), &MODEL);
    if let Ok(adapter) = &found {
        assert!(adapter.lora.rank > 0 && !adapter.values.is_empty());
    }
    judge(found, "adapter_")
}
