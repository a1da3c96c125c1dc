//! Readers of corpora: text, JSON and parquet, compressed or not; arrays of tokens; evaluation
//! sets.

use super::{directory, judge, write};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::Write;
use std::path::Path;
use warpsmith::data::filter::{Dedup, FilterOptions};
use warpsmith::data::imported;
use warpsmith::data::prepare::{PrepareOptions, prepare};
use warpsmith::data::tokenizer::Tokenizer;

pub const TEXT: &str =
    "Once upon a time.\n\n<|endoftext|>\r\nThe caf\u{e9} was \u{1f600} open,\tand 12345 people came.\n";

pub const JSON_LINES: &str = concat!(
    r#"{"text": "Once upon a time.", "id": 1, "score": -2.5e3}"#,
    "\n\n",
    r#"{"id": [2, {"x": null}], "text": "The caf\u00e9 \ud83d\ude00 was <|endoftext|> open."}"#,
    "\n",
);

pub const JSON_ARRAY: &str =
    r#" [ {"text": "Once upon a time."}, {"id": -2.5e3, "text": "The caf\u00e9 \ud83d\ude00 was open."} ] "#;

pub fn gzip(text: &str) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

pub fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 1).unwrap()
}

/// Files of pyarrow.
pub fn parquets() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet");
    ["zstd", "snappy", "binary", "dictionary", "large_string"]
        .map(|name| fs::read(folder.join(name).with_extension("parquet")).unwrap())
        .into()
}

/// NumPy's format, version 1: forty tokens.
pub fn seed_npy() -> Vec<u8> {
    let header = format!("{:117}\n", "{'descr': '<u2', 'fortran_order': False, 'shape': (40,), }");
    let tokens = (0..40u16).flat_map(u16::to_le_bytes);
    b"\x93NUMPY\x01\x00".iter().copied().chain([118, 0]).chain(header.bytes()).chain(tokens).collect()
}

pub fn npy(bytes: &[u8]) -> bool {
    let [input, output] = ["a.npy", "a.bin"].map(|name| directory().join(name));
    write(&input, bytes);
    judge(imported::convert(&input, &output, false), "a.npy")
}

/// Makes shards from a file of this name.
pub fn corpus(name: &str, bytes: &[u8]) -> bool {
    let (input, output) = (directory().join(name), directory().join("shards"));
    write(&input, bytes);
    let options = PrepareOptions {
        filter: FilterOptions {
            dedup: Some(Dedup::Minhash),
            max_chars: Some(100_000),
            scripts: vec!["latin".into(), "han".into()],
            ..FilterOptions::default()
        },
        shard_size: 1000,
        val_tokens: Some(2),
        force: true,
        ..PrepareOptions::new(vec![input], output, "data", Tokenizer::gpt2())
    };
    judge(prepare(&options, &|_, _| {}), name)
}

pub const EVALUATION: &str = concat!(
    r#"{"goal": "How do I boil an egg in a pot of water for about ten minutes?", "label": 1, "sols": ["Wait."]}"#,
    "\n"
);

/// Leaves out what an evaluation set of these bytes has, too.
pub fn evaluation_set(bytes: &[u8]) -> bool {
    let [input, set] = ["clean.txt", "set.jsonl"].map(|name| directory().join(name));
    write(&input, TEXT.as_bytes());
    write(&set, bytes);
    let options = PrepareOptions {
        filter: FilterOptions { decontaminate: vec![set], ..FilterOptions::default() },
        val_tokens: Some(2),
        force: true,
        ..PrepareOptions::new(vec![input], directory().join("clean"), "data", Tokenizer::gpt2())
    };
    judge(prepare(&options, &|_, _| {}), "set.jsonl")
}
