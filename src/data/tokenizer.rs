//! GPT-2's byte-pair encoding: text to tokens and back.

use crate::files;
use crate::llmc::{HEADER_BYTES, Header, TOKENIZER};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::sync::{LazyLock, OnceLock};
use tiktoken_rs::CoreBPE;

/// `<|endoftext|>`, which starts every document.
pub const EOT: u16 = 50256;

/// The characters of that token. In a text they are text, unless a caller of
/// [`encode_with_special`] says otherwise.
pub const EOT_TEXT: &str = "<|endoftext|>";

fn gpt2() -> &'static CoreBPE {
    static GPT2: LazyLock<CoreBPE> =
        LazyLock::new(|| tiktoken_rs::r50k_base().expect("the vocabulary is part of the program"));
    &GPT2
}

/// Encodes `text` without special tokens.
pub fn encode_ordinary(text: &str) -> Vec<u16> {
    gpt2()
        .encode_ordinary(text)
        .into_iter()
        .map(|t| u16::try_from(t).expect("GPT-2's ids fit in 16 bits"))
        .collect()
}

/// Encodes `text`, in which `<|endoftext|>` is the token.
pub fn encode_with_special(text: &str) -> Vec<u16> {
    let parts: Vec<Vec<u16>> = text.split(EOT_TEXT).map(encode_ordinary).collect();
    parts.join(&EOT)
}

/// Size limit of a tokenizer file. GPT-2's has 375 kB.
const FILE_BYTES: u64 = 1 << 26;

/// The bytes of every token of a vocabulary.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// End of each token in `bytes`; it starts at the end of the one before.
    ends: Vec<usize>,
    /// The token that separates documents.
    pub eot: u32,
}

impl Vocabulary {
    /// Returns GPT-2's vocabulary, which is built in.
    pub fn gpt2() -> &'static Vocabulary {
        static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
        VOCABULARY.get_or_init(|| {
            let mut vocabulary = Vocabulary { bytes: Vec::new(), ends: Vec::new(), eot: u32::from(EOT) };
            for id in 0..=u32::from(EOT) {
                let bytes = gpt2().decode_bytes(&[id]).expect("GPT-2's ids have no gaps");
                vocabulary.push(&bytes);
            }
            vocabulary
        })
    }

    /// Reads llm.c's tokenizer file, `gpt2_tokenizer.bin`: a header (field 2: vocabulary size;
    /// field 3, from version 2: the end-of-text token), then per token its length as one byte and
    /// its bytes.
    ///
    /// # Errors
    /// If the file cannot be read or has another format.
    pub fn from_file(path: &Path) -> Result<Vocabulary> {
        let name = path.display();
        let file = files::read(path, FILE_BYTES)?;
        Self::parse(&file).with_context(|| format!("{name}: not a usable tokenizer"))
    }

    fn parse(file: &[u8]) -> Result<Vocabulary> {
        let header = Header::parse(file, &TOKENIZER)?;
        let mut rest = &file[HEADER_BYTES..];
        let vocab = header.i32(2).cast_unsigned();
        let eot = if header.version() == 1 { u32::from(EOT) } else { header.i32(3).cast_unsigned() };
        ensure!(eot < vocab, "end-of-text token {eot} is outside the vocabulary of {vocab}");
        let mut vocabulary = Vocabulary { bytes: Vec::new(), ends: Vec::new(), eot };
        for id in 0..vocab {
            let token = rest.split_first().and_then(|(&len, tail)| tail.split_at_checked(len.into()));
            let (token, tail) = token.with_context(|| format!("it ends within token {id} of {vocab}"))?;
            ensure!(!token.is_empty(), "token {id} is empty");
            vocabulary.push(token);
            rest = tail;
        }
        ensure!(rest.is_empty(), "{} bytes follow the last token", rest.len());
        Ok(vocabulary)
    }

    fn push(&mut self, token: &[u8]) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len());
    }

    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Returns the bytes of one token, which need not be whole characters; `None` outside the
    /// vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.bytes[start..end])
    }

    /// Concatenates the bytes of tokens. Ids outside the vocabulary have none.
    pub fn decode_bytes<I: Copy + Into<u32>>(&self, ids: &[I]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.token_bytes(id.into()).unwrap_or_default()).copied().collect()
    }
}

/// Turns bytes that arrive in pieces into text. A character is held back until it is complete, and
/// bytes that can never become one are replaced by U+FFFD.
#[derive(Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and returns the text that is now certain.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut held = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let may_continue = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if chunks.peek().is_none() && may_continue {
                held = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - held);
        text
    }

    /// Returns the rest when no more bytes follow.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use tempfile::TempDir;

    const SAMPLES: [&str; 5] = [
        "Hello, I'm a language model,",
        "  two  spaces,\n\n\ttabs and 1234567 they've",
        "naïve café — 你好 🦀 \u{1f469}\u{200d}\u{1f680}",
        "<|endoftext|> in a text is text",
        "",
    ];

    /// The output of Hugging Face's `tokenizers` with GPT-2's published `encoder.json` and
    /// `vocab.bpe`.
    #[test]
    fn tokens_are_those_of_gpt2() {
        assert_eq!(encode_ordinary(SAMPLES[0]), [15496, 11, 314, 1101, 257, 3303, 2746, 11]);
        assert_eq!(encode_ordinary("First Citizen:"), [5962, 22307, 25]);
        assert_eq!(encode_ordinary("<|endoftext|>"), [27, 91, 437, 1659, 5239, 91, 29]);
    }

    #[test]
    fn the_end_of_text_is_a_token_if_asked_for() {
        for (text, expected) in [
            ("", &[][..]),
            ("Hello", &[15496]),
            ("<|endoftext|>", &[EOT]),
            ("<|endoftext|>Hello<|endoftext|><|endoftext|>", &[EOT, 15496, EOT, EOT]),
            ("<|endoftext|", &[27, 91, 437, 1659, 5239, 91]),
        ] {
            assert_eq!(encode_with_special(text), expected, "{text}");
        }
    }

    #[test]
    fn decoding_undoes_encoding() {
        for sample in SAMPLES {
            assert_eq!(Vocabulary::gpt2().decode_bytes(&encode_ordinary(sample)), sample.as_bytes());
        }
        assert_eq!(Vocabulary::gpt2().vocab_size(), 50257);
        assert_eq!(Vocabulary::gpt2().decode_bytes(&[EOT]), b"<|endoftext|>");
        assert_eq!(Vocabulary::gpt2().decode_bytes(&[50257u32, 15496]), b"Hello");
        assert_eq!(Vocabulary::gpt2().token_bytes(50303), None);
    }

    #[test]
    fn long_runs_are_encoded() {
        for unit in [" ", "a", "\n", "=", "7"] {
            let text = unit.repeat(300_000) + "x";
            let bytes = Vocabulary::gpt2().decode_bytes(&encode_ordinary(&text));
            assert!(bytes == text.as_bytes(), "{unit:?}");
        }
    }

    #[test]
    fn streamed_text_is_whole_characters() {
        for sample in SAMPLES {
            let mut stream = TextStream::new();
            let mut text = String::new();
            for id in encode_ordinary(sample) {
                text += &stream.push(Vocabulary::gpt2().token_bytes(id.into()).unwrap());
            }
            assert_eq!(text, sample, "nothing is held back at the end of complete text");
            assert_eq!(stream.finish(), "");
        }
        let mut stream = TextStream::new();
        assert_eq!(stream.push(b"a\xf0\x9f"), "a");
        assert_eq!(stream.push(b"\xa6"), "");
        assert_eq!(stream.push(b"\x80b"), "🦀b");
        assert_eq!(stream.push(b"\xffc\x80\xe4\xbd"), "\u{fffd}c\u{fffd}");
        assert_eq!(stream.push(b"!"), "\u{fffd}!");
        assert_eq!(stream.push(b"\xe4"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    fn tokenizer_file(dir: &TempDir, [version, vocab, eot]: [u32; 3], tokens: &[u8]) -> PathBuf {
        let mut bytes = vec![0; 1024];
        bytes[..16].copy_from_slice(bytemuck::cast_slice(&[20240328, version, vocab, eot]));
        bytes.extend_from_slice(tokens);
        let path = dir.path().join("tokenizer.bin");
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn llmc_tokenizer_files_are_read() {
        let dir = TempDir::new().unwrap();
        let path = tokenizer_file(&dir, [2, 3, 2], b"\x01a\x02bc\x03eot");
        let vocabulary = Vocabulary::from_file(&path).unwrap();
        assert_eq!((vocabulary.vocab_size(), vocabulary.eot), (3, 2));
        assert_eq!(vocabulary.decode_bytes(&[1u32, 0]), b"bca");

        let all: Vec<u8> = (0..50257)
            .map(|id| Vocabulary::gpt2().token_bytes(id).unwrap())
            .flat_map(|token| [&[token.len() as u8], token].concat())
            .collect();
        let vocabulary = Vocabulary::from_file(&tokenizer_file(&dir, [1, 50257, 0], &all)).unwrap();
        assert_eq!(vocabulary.eot, 50256);
        assert_eq!(vocabulary.bytes, Vocabulary::gpt2().bytes);
    }

    #[test]
    fn bad_tokenizer_files_are_refused() {
        let dir = TempDir::new().unwrap();
        let refuse = |header, tokens: &[u8]| {
            let path = tokenizer_file(&dir, header, tokens);
            let message = format!("{:#}", Vocabulary::from_file(&path).unwrap_err());
            assert!(message.contains("tokenizer.bin") && !message.contains('\n'), "{message}");
            message
        };
        let shard = dir.path().join("tokenizer.bin");
        fs::write(&shard, [1, 0, 0, 0].repeat(256)).unwrap();
        let error = Vocabulary::from_file(&shard).unwrap_err();
        assert!(format!("{error:#}").contains("expected a tokenizer (magic 20240328), found magic 1"));
        assert!(refuse([3, 1, 0], b"\x01a").contains("version 3"));
        assert!(refuse([2, 1, 1], b"\x01a").contains("end-of-text token 1"));
        assert!(refuse([1, 1, 0], b"\x01a").contains("end-of-text token 50256"));
        assert!(refuse([2, u32::MAX, 0], b"\x01a").contains("within token 1"));
        assert!(refuse([2, 2, 0], b"\x01a\x05abc").contains("within token 1 of 2"));
        assert!(refuse([2, 2, 0], b"\x01a\x00").contains("token 1 is empty"));
        assert!(refuse([2, 1, 0], b"\x01abc").contains("2 bytes follow"));
        fs::write(dir.path().join("tokenizer.bin"), b"short").unwrap();
        let error = Vocabulary::from_file(&dir.path().join("tokenizer.bin")).unwrap_err();
        assert!(format!("{error:#}").contains("found 5 bytes"));
        assert!(Vocabulary::from_file(&dir.path().join("none")).is_err());
    }
}
