//! Byte-level BPE as lists of texts: the form of `tokenizer.json`, and of the metadata of GGUF.

use super::split::Pattern;
use super::{BYTE_CHARS, Engine, Tokenizer, export, hf};
use anyhow::{Context, Result, bail, ensure};

/// The ways to encode words that have a name in llama.cpp (`tokenizer.ggml.pre`): the pattern, and
/// whether a word that is a token becomes that token whatever the merges.
const KINDS: [(&str, Pattern, bool); 4] = [
    ("gpt-2", Pattern::Gpt2, false),
    ("llama-bpe", Pattern::Digits(3), true),
    ("dbrx", Pattern::Digits(3), false),
    ("qwen2", Pattern::Digits(1), false),
];

/// A byte-level tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteLevel {
    /// llama.cpp's name of the way to encode words.
    pub pre: String,
    /// The characters of each token, by id.
    pub tokens: Vec<String>,
    /// Tokens that are found in text before it is cut into words, and whether they are special.
    pub added: Vec<(u32, bool)>,
    /// Pairs of tokens with a space between, by rank.
    pub merges: Vec<String>,
    /// The end-of-text token.
    pub eot: u32,
}

impl ByteLevel {
    /// The pattern of the words, and whether a word that is a token becomes that token.
    ///
    /// # Errors
    /// If the name is not known.
    pub(super) fn words(&self) -> Result<(Pattern, bool)> {
        let known = KINDS.iter().find(|kind| kind.0 == self.pre);
        let names = KINDS.map(|kind| kind.0).join(", ");
        let found = &self.pre;
        let kind = known.with_context(|| format!("tokenizer.ggml.pre: expected {names}, found {found}"))?;
        Ok((kind.1, kind.2))
    }
}

/// The characters of a byte-level token.
fn chars(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| BYTE_CHARS[usize::from(byte)]).collect()
}

impl Tokenizer {
    /// Returns the tokenizer as lists of texts.
    ///
    /// # Errors
    /// If it is not byte-level BPE, or encodes words in a way that has no name in llama.cpp.
    pub fn byte_level(&self) -> Result<ByteLevel> {
        let Tokenizer(inner) = self;
        let Engine::Bytes(bpe) = &inner.engine else {
            bail!("{}: expected byte-level BPE, found a tokenizer of another kind", inner.name);
        };
        let kind = (bpe.pattern(), bpe.has_whole_words());
        let known = KINDS.iter().find(|known| (known.1, known.2) == kind);
        let (pre, ..) = known.with_context(|| {
            format!("{}: llama.cpp has no name for the way in which this tokenizer encodes words", inner.name)
        })?;
        let token = |id: u32| {
            let special = inner.specials.iter().find(|special| special.1 == id);
            special
                .map_or_else(|| chars(inner.vocabulary.token_bytes(id).unwrap_or_default()), |s| s.0.clone())
        };
        let pair = |&[left, right, _]: &[u32; 3]| format!("{} {}", token(left), token(right));
        Ok(ByteLevel {
            pre: (*pre).to_owned(),
            tokens: (0..inner.id.vocab_size).map(token).collect(),
            added: inner.specials.iter().map(|special| (special.1, true)).collect(),
            merges: inner.merges.iter().map(pair).collect(),
            eot: inner.id.eot,
        })
    }

    /// Makes a tokenizer of lists of texts. `name` is that for messages.
    ///
    /// # Errors
    /// If they are not those of a usable tokenizer.
    pub fn from_byte_level(name: String, parts: &ByteLevel) -> Result<Tokenizer> {
        let outside = parts.added.iter().map(|added| added.0).chain([parts.eot]);
        if let Some(id) = outside.into_iter().find(|&id| id as usize >= parts.tokens.len()) {
            bail!("expected ids of {} tokens, found {id}", parts.tokens.len());
        }
        let eot = parts.tokens[parts.eot as usize].clone();
        ensure!(!eot.is_empty(), "the end-of-text token is empty");
        Ok(Self::from_parts(name, hf::parse(export::json(parts)?.into_bytes(), Some(eot))?))
    }
}
