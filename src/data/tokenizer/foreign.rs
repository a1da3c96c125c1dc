//! Tokenizers of other kinds than byte-level BPE, by the `tokenizers` crate.

use super::Vocabulary;
use super::hf::bytes_of_token;
use anyhow::{Result, anyhow};
use std::collections::HashMap;
use tokenizers::{DecoderWrapper, Tokenizer};

pub struct Foreign {
    /// Special tokens are text to this one.
    ordinary: Tokenizer,
    special: Tokenizer,
}

impl Foreign {
    /// Parses the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// If the crate does not take it.
    pub fn parse(text: &str) -> Result<Foreign> {
        let mut special: Tokenizer = text.parse().map_err(|e: tokenizers::Error| anyhow!(one_line(&*e)))?;
        special.with_truncation(None).map_err(|e| anyhow!(one_line(&*e)))?.with_padding(None);
        let mut ordinary = special.clone();
        ordinary.set_encode_special_tokens(true);
        // Characters that no vocabulary has. A tokenizer that takes these takes any text.
        ordinary.encode_fast("\u{e000} a\u{10fffd}", false).map_err(|e| {
            anyhow!("it refuses characters outside its vocabulary: {}; give it an unk_token", one_line(&*e))
        })?;
        Ok(Foreign { ordinary, special })
    }

    /// Encodes text, in which special tokens are tokens if `special`.
    ///
    /// # Panics
    /// If the crate fails on the text. It fails on unknown characters alone, and [`Self::parse`]
    /// tries these.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let tokenizer = if special { &self.special } else { &self.ordinary };
        match tokenizer.encode_fast(text, false) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            Err(e) => panic!("the tokenizer cannot encode a text: {e}"),
        }
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.special.token_to_id(token)
    }

    pub fn vocabulary(&self) -> HashMap<String, u32> {
        self.special.get_vocab(true)
    }

    /// Returns the bytes that each token adds to a text. `tokens` are in the order of their ids.
    pub fn bytes_of(&self, tokens: &[String]) -> Vocabulary {
        let byte_level = matches!(self.special.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let decode = |ids: &[u32]| self.special.decode(ids, false).unwrap_or_default();
        // The start of a text may lose a space, so that tokens are decoded after another one.
        let anchor = (0..tokens.len() as u32).find(|&id| {
            let once = decode(&[id]);
            !once.is_empty() && once.is_ascii() && decode(&[id, id]).starts_with(&once)
        });
        let start = anchor.map(|anchor| decode(&[anchor])).unwrap_or_default();
        let mut vocabulary = Vocabulary::default();
        for (id, token) in (0..).zip(tokens) {
            let bytes = match (byte_level.then(|| bytes_of_token(token)).flatten(), byte_of(token)) {
                (Some(bytes), _) => bytes,
                (None, Some(byte)) => vec![byte],
                (None, None) => {
                    let text = anchor.map_or_else(|| decode(&[id]), |anchor| decode(&[anchor, id]));
                    text.strip_prefix(&start).map_or_else(|| token.clone(), ToOwned::to_owned).into_bytes()
                }
            };
            vocabulary.push(&bytes);
        }
        vocabulary
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The message of an error of the crate, without line breaks.
fn one_line(error: &(dyn std::error::Error + Send + Sync)) -> String {
    error.to_string().lines().collect::<Vec<_>>().join("; ")
}
