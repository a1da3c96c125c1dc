//! Files by which the libraries of Hugging Face know a tokenizer.

use super::split::Pattern;
use super::{ByteLevel, Engine, Tokenizer};
use crate::files;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The name of the file of a tokenizer, beside shards and models.
pub const FILE_NAME: &str = "tokenizer.json";

/// The `tokenizer.json` of a byte-level tokenizer.
///
/// # Errors
/// If its way to encode words is not known.
pub(super) fn json(parts: &ByteLevel) -> Result<String> {
    let ByteLevel { tokens, merges, added, .. } = parts;
    let (pattern, whole_words) = parts.words()?;
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added: Vec<Value> = added
        .iter()
        .map(|&(id, special)| {
            json!({
                "id": id, "content": tokens[id as usize], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": special,
            })
        })
        .collect();
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let before = match pattern {
        Pattern::Gpt2 => bytes(true),
        Pattern::Digits(_) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern.regex()}, "behavior": "Isolated", "invert": false},
            bytes(false),
        ]}),
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": before, "post_processor": {"type": "ByteLevel", "add_prefix_space": true,
            "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
            "vocab": vocab, "merges": merges,
        },
    });
    Ok(format!("{file:#}\n"))
}

impl Tokenizer {
    /// Writes `tokenizer.json` into a folder. Returns its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_json(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(FILE_NAME);
        files::write(&path, |out| Ok(out.write_all(self.json().as_bytes())?))?;
        Ok(path)
    }

    /// The files beside a model by which `AutoTokenizer`, `pipeline` and `generate` need no further
    /// argument: their names and contents. `maxT` is the length of the model's context in tokens.
    pub fn hf_files(&self, maxT: usize) -> Vec<(&'static str, String)> {
        let (eot, text) = (self.eot(), self.eot_text());
        let class = match self.0.engine {
            Engine::Bytes(_) if self.0.json.is_none() => "GPT2Tokenizer",
            _ => "PreTrainedTokenizerFast",
        };
        let config = json!({
            "tokenizer_class": class, "model_max_length": maxT, "add_prefix_space": false, "add_bos_token": false,
            "clean_up_tokenization_spaces": false,
            "bos_token": text, "eos_token": text, "unk_token": text, "pad_token": text,
        });
        // A pipeline would go on beyond the positions of a small model.
        let generation = json!({
            "bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot, "do_sample": true,
            "max_new_tokens": (maxT / 2).clamp(1, 256),
        });
        let special = json!({"bos_token": text, "eos_token": text, "unk_token": text, "pad_token": text});
        let pretty = |value: &Value| format!("{value:#}\n");
        vec![
            (FILE_NAME, self.json().into_owned()),
            ("tokenizer_config.json", pretty(&config)),
            ("special_tokens_map.json", pretty(&special)),
            ("generation_config.json", pretty(&generation)),
        ]
    }
}
