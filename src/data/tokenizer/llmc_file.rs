//! llm.c's tokenizer file, `gpt2_tokenizer.bin`: a header (field 2: vocabulary size; field 3, from
//! version 2: the end-of-text token), then per token its length as one byte and its bytes. It has
//! no rules to encode by.

use super::Vocabulary;
use crate::files;
use crate::llmc::{HEADER_BYTES, Header, TOKENIZER};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Size limit of a file. GPT-2's has 375 kB.
const FILE_BYTES: u64 = 1 << 26;

/// The end-of-text token of version 1, which has no field for it.
const EOT_OF_VERSION_1: u32 = 50256;

/// Reads a file. Returns its tokens, and which of them ends a text.
///
/// # Errors
/// If the file cannot be read or has another format.
pub(super) fn read(path: &Path) -> Result<(Vocabulary, u32)> {
    let name = path.display();
    let file = files::read(path, FILE_BYTES)?;
    parse(&file).with_context(|| format!("{name}: not a usable tokenizer"))
}

/// Writes a file, of version 2.
///
/// # Errors
/// If a token is empty or has more than 255 bytes, or the file cannot be written.
pub(super) fn write(path: &Path, vocabulary: &Vocabulary, eot: u32) -> Result<()> {
    let mut header = Header::new(&TOKENIZER, 2);
    header.set(2, i32::try_from(vocabulary.len())?);
    header.set(3, eot.cast_signed());
    let mut body = Vec::new();
    for (id, token) in (0..vocabulary.len() as u32).filter_map(|id| Some((id, vocabulary.token_bytes(id)?))) {
        let len = u8::try_from(token.len()).ok().filter(|&len| len > 0);
        let len = len.with_context(|| {
            format!("{}: token {id} has {} bytes; the format allows 1 to 255", path.display(), token.len())
        })?;
        body.push(len);
        body.extend_from_slice(token);
    }
    files::write(path, |out| {
        header.write(out)?;
        Ok(out.write_all(&body)?)
    })
}

fn parse(file: &[u8]) -> Result<(Vocabulary, u32)> {
    let header = Header::parse(file, &TOKENIZER)?;
    let mut rest = &file[HEADER_BYTES..];
    let vocab = header.i32(2).cast_unsigned();
    let eot = if header.version() == 1 { EOT_OF_VERSION_1 } else { header.i32(3).cast_unsigned() };
    ensure!(eot < vocab, "end-of-text token {eot} is outside the vocabulary of {vocab}");
    let mut vocabulary = Vocabulary::default();
    for id in 0..vocab {
        let token = rest.split_first().and_then(|(&len, tail)| tail.split_at_checked(len.into()));
        let (token, tail) = token.with_context(|| format!("it ends within token {id} of {vocab}"))?;
        ensure!(!token.is_empty(), "token {id} is empty");
        vocabulary.push(token);
        rest = tail;
    }
    ensure!(rest.is_empty(), "{} bytes follow the last token", rest.len());
    Ok((vocabulary, eot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::Tokenizer;
    use std::fs;
    use std::path::PathBuf;
    use tempfile::TempDir;

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
        let (vocabulary, eot) = read(&path).unwrap();
        assert_eq!((vocabulary.len(), eot), (3, 2));
        assert_eq!(vocabulary.decode_bytes(&[1, 0]), b"bca");

        let gpt2 = Tokenizer::gpt2();
        let all: Vec<u8> = (0..50257)
            .flat_map(|id| {
                let token = gpt2.token_bytes(id).unwrap();
                [&[token.len() as u8], token].concat()
            })
            .collect();
        let found = read(&tokenizer_file(&dir, [1, 50257, 0], &all)).unwrap();
        assert!(found == (gpt2.vocabulary().clone(), 50256));
    }

    #[test]
    fn bad_tokenizer_files_are_refused() {
        let dir = TempDir::new().unwrap();
        let refuse = |header, tokens: &[u8]| {
            let path = tokenizer_file(&dir, header, tokens);
            let message = format!("{:#}", read(&path).unwrap_err());
            assert!(message.contains("tokenizer.bin") && !message.contains('\n'), "{message}");
            message
        };
        let shard = dir.path().join("tokenizer.bin");
        fs::write(&shard, [1, 0, 0, 0].repeat(256)).unwrap();
        let error = read(&shard).unwrap_err();
        assert!(format!("{error:#}").contains("expected a tokenizer (magic 20240328), found magic 1"));
        assert!(refuse([3, 1, 0], b"\x01a").contains("version 3"));
        assert!(refuse([2, 1, 1], b"\x01a").contains("end-of-text token 1"));
        assert!(refuse([1, 1, 0], b"\x01a").contains("end-of-text token 50256"));
        assert!(refuse([2, u32::MAX, 0], b"\x01a").contains("within token 1"));
        assert!(refuse([2, 2, 0], b"\x01a\x05abc").contains("within token 1 of 2"));
        assert!(refuse([2, 2, 0], b"\x01a\x00").contains("token 1 is empty"));
        assert!(refuse([2, 1, 0], b"\x01abc").contains("2 bytes follow"));
        fs::write(dir.path().join("tokenizer.bin"), b"short").unwrap();
        let error = read(&dir.path().join("tokenizer.bin")).unwrap_err();
        assert!(format!("{error:#}").contains("found 5 bytes"));
        assert!(read(&dir.path().join("none")).is_err());
    }
}
