//! Text to tokens and back.

mod bpe;
mod id;
pub mod llmc_file;
mod stream;
mod vocabulary;
mod words;

pub use id::{TokenizerId, VOCAB_MAX};
pub use stream::TextStream;
pub use vocabulary::Vocabulary;

use bpe::Bpe;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The characters of the end-of-text token of GPT-2. In a text they are text, unless a caller of
/// [`Tokenizer::encode`] says otherwise.
pub const EOT_TEXT: &str = "<|endoftext|>";

/// A tokenizer; copies share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    name: String,
    id: TokenizerId,
    vocabulary: Vocabulary,
    encoder: Bpe,
}

impl Tokenizer {
    /// Returns GPT-2's, which is built in.
    pub fn gpt2() -> Tokenizer {
        static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| {
            let library = tiktoken_rs::r50k_base().expect("the vocabulary is part of the program");
            let id = TokenizerId::GPT2;
            let mut vocabulary = Vocabulary::default();
            for token in 0..id.vocab_size {
                vocabulary.push(&library.decode_bytes(&[token]).expect("GPT-2's ids have no gaps"));
            }
            let ordinary = (0..id.vocab_size).filter(|&token| token != id.eot);
            let bytes = |token| vocabulary.token_bytes(token).expect("below the size").to_vec();
            let encoder = Bpe::new(ordinary.map(|token| (bytes(token), token)).collect(), library);
            Tokenizer(Arc::new(Inner { name: "gpt2".to_owned(), id, vocabulary, encoder }))
        });
        GPT2.clone()
    }

    /// The name for messages: `gpt2`, or the file that it was read from.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn id(&self) -> TokenizerId {
        self.0.id
    }

    /// The end-of-text token, which precedes each document.
    pub fn eot(&self) -> u32 {
        self.0.id.eot
    }

    /// The characters of the end-of-text token.
    pub fn eot_text(&self) -> &str {
        std::str::from_utf8(self.token_bytes(self.eot()).unwrap_or_default()).unwrap_or_default()
    }

    /// The number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.0.id.vocab_size as usize
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// Returns the bytes of one token, which need not be whole characters; `None` outside the
    /// vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.vocabulary.token_bytes(id)
    }

    /// Concatenates the bytes of tokens. Ids outside the vocabulary have none.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        self.0.vocabulary.decode_bytes(ids)
    }

    /// Encodes `text`, in which special tokens are text.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        self.0.encoder.encode(text)
    }

    /// Encodes `text`, in which the end-of-text token is that token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let parts: Vec<Vec<u32>> =
            text.split(self.eot_text()).map(|part| self.encode_ordinary(part)).collect();
        parts.join(&self.eot())
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Tokenizer({}: {})", self.0.name, self.0.id)
    }
}

#[cfg(test)]
mod tests;
