//! Files by which the libraries of Hugging Face know a tokenizer.

use super::{BYTE_CHARS, Engine, Tokenizer};
use crate::files;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The name of the file of a tokenizer, beside shards and models.
pub const FILE_NAME: &str = "tokenizer.json";

/// The characters of a byte-level token.
fn chars(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| BYTE_CHARS[usize::from(byte)]).collect()
}

/// The `tokenizer.json` of a byte-level tokenizer with GPT-2's words.
pub(super) fn json(tokenizer: &Tokenizer) -> String {
    let Tokenizer(inner) = tokenizer;
    let token = |id: u32| {
        let special = inner.specials.iter().find(|special| special.1 == id);
        special.map_or_else(|| chars(inner.vocabulary.token_bytes(id).unwrap_or_default()), |s| s.0.clone())
    };
    let vocab: Map<String, Value> = (0..inner.id.vocab_size).map(|id| (token(id), id.into())).collect();
    let merges: Vec<Value> = inner
        .merges
        .iter()
        .map(|&[left, right, _]| format!("{} {}", token(left), token(right)).into())
        .collect();
    let added: Vec<Value> = inner
        .specials
        .iter()
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": true,
            })
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": {"type": "ByteLevel", "add_prefix_space": true,
            "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    format!("{file:#}\n")
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
