//! The readers of supervised fine-tuning.

use super::{directory, judge, read_shards, write};
use std::fs;
use warpsmith::data::mask::MaskedShardWriter;
use warpsmith::data::sft::{self, Columns, SftOptions, Template};
use warpsmith::data::tokenizer::{Tokenizer, TokenizerId};

/// Valid input of the readers.
pub fn masks() -> Vec<Vec<u8>> {
    vec![seed_masked("mask")]
}

pub fn examples() -> Vec<Vec<u8>> {
    let pairs = concat!(
        "{\"prompt\": \"2 + 2?\", \"response\": \"It is 4.\"}\n",
        "{\"id\": 7, \"prompt\": \"\", \"completion\": \"caf\\u00e9\"}\n"
    );
    let turns = concat!(
        r#"[{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, "#,
        r#"{"role": "assistant", "content": "c"}]}, {"prompt": "d", "response": "e"}]"#
    );
    [pairs, turns].map(Into::into).into()
}

pub fn templates() -> Vec<Vec<u8>> {
    let template = r#"{"pair": "Q: {prompt}\nA: {response}", "messages": {"assistant": "A: {content}"}}"#;
    vec![template.into()]
}

/// A file of a masked shard: `bin` or `mask`.
fn seed_masked(extension: &str) -> Vec<u8> {
    let path = directory().join("masked.bin");
    let mut writer = MaskedShardWriter::create(&path, TokenizerId::GPT2).unwrap();
    for length in [5, 9, 2, 20] {
        let counts: Vec<bool> = (0..length).map(|token| token > 0).collect();
        writer.write(&(0..length as u32).collect::<Vec<_>>(), &counts).unwrap();
    }
    writer.seal().unwrap().into_iter().for_each(|file| file.publish().unwrap());
    fs::read(path.with_extension(extension)).unwrap()
}

pub fn shard_mask(bytes: &[u8]) -> bool {
    seed_masked("bin");
    write(&directory().join("masked.mask"), bytes);
    judge(read_shards(&directory().join("masked.bin")), "masked.mask")
}

pub fn json(bytes: &[u8]) -> bool {
    let (input, output) = (directory().join("sft.jsonl"), directory().join("sft_shards"));
    write(&input, bytes);
    let options = SftOptions {
        inputs: vec![input],
        val: Vec::new(),
        val_examples: Some(1),
        seed: 42,
        template: Template::default(),
        columns: Columns::default(),
        skip_bad_lines: false,
        output,
        tokenizer: Tokenizer::gpt2(),
        name: "sft".to_owned(),
        shard_size: 1000,
        force: true,
    };
    judge(sft::prepare(&options, &|_, _| {}), "sft.jsonl")
}

pub fn template(bytes: &[u8]) -> bool {
    let path = directory().join("template.json");
    write(&path, bytes);
    judge(sft::template(&path), "template.json")
}
