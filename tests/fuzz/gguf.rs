//! The reader of GGUF: the model, and the tokenizer in the file.

use super::{directory, judge, model, write};
use std::fs;
use warpsmith::checkpoint::{self, ModelFile, gguf};
use warpsmith::config::ModelConfig;
use warpsmith::data::tokenizer::{ByteLevel, Tokenizer};
use warpsmith::params::ParamLayout;
use warpsmith::tensor::{Dtype, Stored};

/// A model whose tokenizer is the bytes and an end of text, in floats and in blocks.
pub fn models() -> Vec<Vec<u8>> {
    let gpt2 = Tokenizer::gpt2().byte_level().unwrap();
    let tokens = gpt2.tokens[..257].iter().cloned().chain(["<|endoftext|>".to_owned()]).collect();
    let merges = gpt2.merges[..1].to_vec();
    let parts = ByteLevel { tokens, added: vec![(257, true)], merges, eot: 257, ..gpt2 };
    let tokenizer = Tokenizer::from_byte_level("bytes".to_owned(), &parts).unwrap();
    let config = ModelConfig { C: 32, ..model().config.with_vocab(259) };
    let params = vec![0.25; ParamLayout::new(&config).len()];
    let model = ModelFile { config, params, ..model() };
    let path = directory().join("seed.gguf");
    let file = |stored| {
        gguf::write(&path, &model, stored, &tokenizer).unwrap();
        fs::read(&path).unwrap()
    };
    [Stored::Float(Dtype::F32), Stored::Float(Dtype::Bf16), Stored::Q8_0].map(file).into()
}

pub fn read(bytes: &[u8]) -> bool {
    let path = directory().join("model.gguf");
    write(&path, bytes);
    let tokenizer = gguf::tokenizer(&path);
    if let Ok(Some(tokenizer)) = &tokenizer {
        assert!(tokenizer.vocab_size() > 0);
    }
    judge(tokenizer, "model.gguf") & judge(checkpoint::load_model(&path), "model.gguf")
}
