//! Text to tokens and back.

mod bpe;
mod byte_level;
mod export;
mod foreign;
mod hf;
mod id;
mod llmc_file;
mod split;
mod stream;
pub mod train;
mod vocabulary;

pub use byte_level::ByteLevel;
pub use export::FILE_NAME;
pub use id::{TokenizerId, VOCAB_MAX};
pub(super) use split::characters_of;
pub use stream::TextStream;
pub use vocabulary::Vocabulary;

use anyhow::{Context, Result, bail, ensure};
use bpe::Bpe;
use foreign::Foreign;
use sha2::{Digest, Sha256};
use split::Pattern;
use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// The characters of the end-of-text token of GPT-2. In a text they are text, unless a caller of
/// [`Tokenizer::encode`] says otherwise.
pub const EOT_TEXT: &str = "<|endoftext|>";

/// The name of the tokenizer that is built in.
pub const GPT2: &str = "gpt2";

/// The places where a text may be cut so that the tokens of the pieces are those of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cuts {
    /// Before a space or a line break that follows another character.
    #[default]
    SpaceOrLine,
    /// Before a space that follows another character.
    Space,
    /// Nowhere, as far as is known.
    Nowhere,
}

/// A tokenizer; copies share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    name: String,
    id: TokenizerId,
    vocabulary: Vocabulary,
    /// Special tokens, the end-of-text token among them: their characters and ids.
    specials: Vec<(String, u32)>,
    engine: Engine,
    /// Pairs of tokens and what they become, by rank; empty if the `tokenizers` crate encodes.
    merges: Vec<[u32; 3]>,
    /// The `tokenizer.json` that it was read from.
    json: Option<String>,
}

/// The encoder, from text to tokens.
enum Engine {
    Bytes(Box<Bpe>),
    Foreign(Box<Foreign>),
}

impl Tokenizer {
    /// Returns GPT-2's, which is built in.
    pub fn gpt2() -> Tokenizer {
        static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| {
            let ranks = tiktoken_rs::r50k_base().expect("the vocabulary is part of the program");
            let mut vocabulary = Vocabulary::default();
            for token in 0..TokenizerId::GPT2.vocab_size {
                vocabulary.push(&ranks.decode_bytes(&[token]).expect("GPT-2's ids have no gaps"));
            }
            let tokenizer = Tokenizer::from_ranks(self::GPT2.to_owned(), vocabulary, TokenizerId::GPT2.eot);
            tokenizer.expect("GPT-2's tokens are made of each other")
        });
        GPT2.clone()
    }

    /// Opens `gpt2`, a `tokenizer.json`, a folder that holds one, or llm.c's `gpt2_tokenizer.bin`.
    ///
    /// # Errors
    /// One line that names the file, if it cannot be read or has no usable tokenizer.
    pub fn open(source: &Path) -> Result<Tokenizer> {
        if source.as_os_str() == GPT2 && !source.exists() {
            return Ok(Self::gpt2());
        }
        if source.is_dir() {
            return Self::open(&source.join(FILE_NAME));
        }
        if source.extension().is_some_and(|end| end == "bin") {
            let (vocabulary, eot) = llmc_file::read(source)?;
            let tokenizer = Self::from_ranks(source.display().to_string(), vocabulary, eot);
            return tokenizer.with_context(|| format!("{}: not a usable tokenizer", source.display()));
        }
        Ok(Self::from_parts(source.display().to_string(), hf::read(source)?))
    }

    /// Returns the tokenizer in the folder of a model, a run or shards, if there is one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn find_in(folder: &Path) -> Result<Option<Tokenizer>> {
        let path = folder.join(FILE_NAME);
        path.exists().then(|| Self::open(&path)).transpose()
    }

    /// Makes a tokenizer of a vocabulary whose tokens are made of earlier ones, with GPT-2's words.
    fn from_ranks(name: String, vocabulary: Vocabulary, eot: u32) -> Result<Tokenizer> {
        let (bpe, merges) = {
            let tokens = (0..vocabulary.len() as u32).filter(|&id| id != eot);
            let tokens = tokens.filter_map(|id| Some((id, vocabulary.token_bytes(id)?)));
            Bpe::from_ranks(Pattern::Gpt2, tokens)?
        };
        let eot_text = vocabulary.token_bytes(eot).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let eot_text = eot_text.context("the end-of-text token is not text")?.to_owned();
        let (rules, engine) = (Pattern::Gpt2.name(), Engine::Bytes(Box::new(bpe)));
        let specials = vec![(eot_text, eot)];
        Ok(Self::from_parts(
            name,
            hf::Parts { text: String::new(), vocabulary, eot, specials, engine, rules, merges },
        ))
    }

    fn from_parts(name: String, parts: hf::Parts) -> Tokenizer {
        let hf::Parts { text, vocabulary, eot, specials, engine, rules, merges } = parts;
        let digest = digest(&rules, eot, &vocabulary, &merges);
        let id = TokenizerId { vocab_size: vocabulary.len() as u32, eot, digest };
        let json = Some(text).filter(|text| !text.is_empty());
        let name = if id == TokenizerId::GPT2 { GPT2.to_owned() } else { name };
        Tokenizer(Arc::new(Inner { name, id, vocabulary, specials, engine, merges, json }))
    }

    /// The name for messages: `gpt2`, or the file that it was read from.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn id(&self) -> TokenizerId {
        self.0.id
    }

    pub fn is_gpt2(&self) -> bool {
        self.id() == TokenizerId::GPT2
    }

    /// The end-of-text token, which precedes each document.
    pub fn eot(&self) -> u32 {
        self.0.id.eot
    }

    /// The characters of the end-of-text token.
    pub fn eot_text(&self) -> &str {
        let named = self.0.specials.iter().find(|special| special.1 == self.eot());
        named.map_or(EOT_TEXT, |special| &special.0)
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

    /// The places where a text may be cut before it is encoded.
    pub fn cuts(&self) -> Cuts {
        match &self.0.engine {
            Engine::Bytes(bpe) => bpe.pattern().cuts(),
            Engine::Foreign(_) => Cuts::Nowhere,
        }
    }

    /// Encodes `text`, in which special tokens are text.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        match &self.0.engine {
            Engine::Bytes(bpe) => bpe.encode(text),
            Engine::Foreign(foreign) => foreign.encode(text, false),
        }
    }

    /// Encodes `text`, in which special tokens, such as the end-of-text token, are those tokens.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let bpe = match &self.0.engine {
            Engine::Bytes(bpe) => bpe,
            Engine::Foreign(foreign) => return foreign.encode(text, true),
        };
        let (mut tokens, mut rest) = (Vec::new(), text);
        while let Some((at, (special, id))) = self.first_special(rest) {
            tokens.extend(bpe.encode(&rest[..at]));
            tokens.push(*id);
            rest = &rest[at + special.len()..];
        }
        tokens.extend(bpe.encode(rest));
        tokens
    }

    /// Finds the first special token in a text; of several at one place, the longest.
    fn first_special(&self, text: &str) -> Option<(usize, &(String, u32))> {
        let found = self.0.specials.iter().filter_map(|special| Some((text.find(&special.0)?, special)));
        found.min_by_key(|(at, special)| (*at, std::cmp::Reverse(special.0.len())))
    }

    /// Refuses to go on with a tokenizer other than this one.
    ///
    /// # Errors
    /// One line that names both; `what` has tokens of `found`.
    pub fn ensure_is(&self, found: TokenizerId, what: &str) -> Result<()> {
        ensure!(
            self.id().agrees(&found),
            "{what}: expected tokens of the tokenizer {} ({}), found those of {found}; prepare the text again \
             with `warpsmith data --tokenizer {}`",
            self.name(),
            self.id(),
            self.name()
        );
        Ok(())
    }

    /// The `tokenizer.json`: the file that it was read from, or an equal one.
    pub fn json(&self) -> Cow<'_, str> {
        let own = || {
            let text = self.byte_level().and_then(|parts| export::json(&parts));
            Cow::Owned(text.expect("a tokenizer without a file is byte-level BPE with GPT-2's words"))
        };
        self.0.json.as_deref().map_or_else(own, Cow::Borrowed)
    }

    /// Writes llm.c's tokenizer file.
    ///
    /// # Errors
    /// If a token is longer than the format allows, or the file cannot be written.
    pub fn write_llmc(&self, path: &Path) -> Result<()> {
        if let Engine::Foreign(_) = self.0.engine {
            bail!(
                "{}: llm.c's tokenizer file holds byte-level BPE only; this is of another kind",
                self.name()
            );
        }
        llmc_file::write(path, self.vocabulary(), self.eot())
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Tokenizer({}: {})", self.0.name, self.0.id)
    }
}

/// The digest of a tokenizer: all that decides on the tokens of a text.
fn digest(rules: &str, eot: u32, vocabulary: &Vocabulary, merges: &[[u32; 3]]) -> u64 {
    let mut hash = Sha256::new();
    hash.update((rules.len() as u64).to_le_bytes());
    hash.update(rules);
    hash.update(eot.to_le_bytes());
    for token in (0..vocabulary.len() as u32).filter_map(|id| vocabulary.token_bytes(id)) {
        hash.update((token.len() as u32).to_le_bytes());
        hash.update(token);
    }
    merges.iter().flatten().for_each(|id| hash.update(id.to_le_bytes()));
    // 0 stands for an unknown digest.
    u64::from_le_bytes(*hash.finalize().first_chunk().expect("32 bytes")).max(1)
}

/// The byte that a character of a byte-level token stands for: printable characters of Latin-1
/// stand for their code, and those from U+0100 on for the other bytes, in order.
fn byte_of_char(c: char) -> Option<u8> {
    BYTE_CHARS.iter().position(|&known| known == c).map(|byte| byte as u8)
}

/// The character that stands for each byte.
static BYTE_CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    let mut chars = ['\0'; 256];
    for (byte, char) in (0..=255u8).zip(&mut chars) {
        *char = if is_printable(byte) { char::from(byte) } else { others.next().expect("68 of many") };
    }
    chars
});

#[cfg(test)]
mod tests;
