//! The identity of a tokenizer, which shards, runs and questions name.

use crate::llmc::Header;
use anyhow::{Result, ensure};
use std::fmt;

/// Largest vocabulary: that of the largest model (`ModelConfig`).
pub const VOCAB_MAX: u32 = 1 << 20;

/// The identity of a tokenizer, as files hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenizerId {
    /// Number of tokens; ids are below it.
    pub vocab_size: u32,
    /// The end-of-text token, which precedes each document.
    pub eot: u32,
    /// The digest of the vocabulary and the rules; 0 if it is not known.
    pub digest: u64,
}

impl TokenizerId {
    pub const GPT2: Self = TokenizerId { vocab_size: 50257, eot: 50256, digest: 2_769_277_711_267_683_100 };

    /// Llama 3's, as far as llm.c's shards say. They separate documents by `<|begin_of_text|>`.
    pub const LLAMA3: Self = TokenizerId { vocab_size: 128_256, eot: 128_000, digest: 0 };

    /// Whether both may be the same tokenizer: vocabulary and digest are equal, where known.
    pub fn agrees(&self, other: &Self) -> bool {
        let known = self.digest != 0 && other.digest != 0;
        self.vocab_size == other.vocab_size && (!known || self == other)
    }

    /// Writes it into three consecutive fields of a header, from `first` on: vocabulary size,
    /// end-of-text token, and (64 bits) digest. `default` is the tokenizer that zeros stand for, as
    /// in llm.c's files.
    pub fn write(&self, header: &mut Header, first: usize, default: Self) {
        if *self != default {
            header.set(first, self.vocab_size.cast_signed());
            header.set(first + 1, self.eot.cast_signed());
            header.set_u64(first + 2, self.digest);
        }
    }

    /// Reads what [`Self::write`] writes.
    ///
    /// # Errors
    /// If the fields cannot be those of a tokenizer.
    pub fn read(header: &Header, first: usize, default: Self) -> Result<Self> {
        let [vocab_size, eot] = [first, first + 1].map(|field| header.i32(field).cast_unsigned());
        let id = TokenizerId { vocab_size, eot, digest: header.u64(first + 2) };
        if id == (TokenizerId { vocab_size: 0, eot: 0, digest: 0 }) {
            return Ok(default);
        }
        ensure!(
            (1..=VOCAB_MAX).contains(&vocab_size) && eot < vocab_size,
            "header names a tokenizer of {vocab_size} tokens whose end-of-text token is {eot}; expected at most \
             {VOCAB_MAX} tokens and one of them; the file is damaged: copy it again or recreate it"
        );
        Ok(id)
    }
}

impl fmt::Display for TokenizerId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let TokenizerId { vocab_size, digest, .. } = self;
        match *self {
            Self::GPT2 => write!(f, "gpt2"),
            Self::LLAMA3 => write!(f, "llama3"),
            _ if *digest == 0 => write!(f, "unnamed, {vocab_size} tokens"),
            _ => write!(f, "{digest:016x}, {vocab_size} tokens"),
        }
    }
}
