//! Byte-pair encoding of text that is cut into words by GPT-2's rule.

use super::words::words;
use rustc_hash::FxHashMap;
use std::sync::{Mutex, PoisonError};
use tiktoken_rs::{CoreBPE, byte_pair_split};

/// Longest word, in bytes, that is merged and remembered here. Longer ones are rare, and the
/// library has a method whose time does not grow with the square of their length.
const LONGEST: usize = 64;

/// Most words that a thread remembers: about 10 MB.
const MOST_REMEMBERED: usize = 1 << 16;

/// An encoder. Most words of a text are tokens, or were encoded shortly before.
pub struct Bpe {
    tokens: FxHashMap<Vec<u8>, u32>,
    library: CoreBPE,
    /// Encoded words that are several tokens, per thread of the pool.
    remembered: Box<[Mutex<FxHashMap<Box<str>, Box<[u32]>>>]>,
}

impl Bpe {
    /// Makes an encoder of all tokens, whose ids are the order in which they are merged, and the
    /// library's encoder of the same tokens.
    pub fn new(tokens: FxHashMap<Vec<u8>, u32>, library: CoreBPE) -> Self {
        let threads = rayon::current_num_threads();
        Bpe { tokens, library, remembered: (0..threads).map(|_| Mutex::default()).collect() }
    }

    /// Encodes `text`, in which special tokens are text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let thread = rayon::current_thread_index().unwrap_or(0) % self.remembered.len();
        let mut remembered = self.remembered[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids = Vec::with_capacity(text.len() / 3);
        for word in words(text) {
            if let Some(&id) = self.tokens.get(word.as_bytes()) {
                ids.push(id);
            } else if let Some(known) = remembered.get(word) {
                ids.extend_from_slice(known);
            } else if word.len() > LONGEST {
                ids.extend(self.library.encode_ordinary(word));
            } else {
                let start = ids.len();
                ids.extend(
                    byte_pair_split(word.as_bytes(), &self.tokens).iter().map(|&part| self.tokens[part]),
                );
                if remembered.len() < MOST_REMEMBERED {
                    remembered.insert(word.into(), ids[start..].into());
                }
            }
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use crate::data::tokenizer::Tokenizer;
    use proptest::prelude::*;

    /// Characters whose kinds are easily mistaken: spaces of all sorts, letters that are numbers,
    /// marks that join letters.
    const CHARACTERS: &str =
        "aeslvrtdmABC012 \t\n\r'é\u{301}\u{a0}\u{85}\u{2028}\u{200d}\u{3000}½²Ⅻ٣ªςß中🦀.,!_-";

    fn character() -> impl Strategy<Value = char> {
        prop::sample::select(CHARACTERS.chars().collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn tokens_are_those_of_the_library(
            text in prop::collection::vec(character(), 0..60),
            unit in character(),
            times in 1..300usize,
        ) {
            let text = String::from_iter(text);
            let repeated = text.clone() + &String::from(unit).repeat(times) + &text;
            let library = tiktoken_rs::r50k_base_singleton();
            for text in [text, repeated] {
                // Twice, because the second time most words are remembered.
                for _ in 0..2 {
                    prop_assert_eq!(Tokenizer::gpt2().encode_ordinary(&text), library.encode_ordinary(&text));
                }
            }
        }
    }
}
