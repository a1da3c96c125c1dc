//! HellaSwag's two file formats: the authors' JSON lines, and llm.c's tokenized `.bin`.
//!
//! The `.bin` has a header (field 2: number of examples; field 3: size in bytes of the longest;
//! fields 4 to 7: the tokenizer, zeros stand for GPT-2's), then for each example a run of uint16:
//! 65535, its size in bytes, its index, the label, the number of endings, and context and endings,
//! each preceded by its length. All are little-endian.

use super::{ENDINGS, Example, HellaSwag};
use crate::data::tokenizer::{Tokenizer, TokenizerId};
use crate::files;
use crate::llmc::{EVALUATION, HEADER_BYTES, Header};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::path::Path;

/// Size limit of a file. HellaSwag's largest has 48 MB.
const FILE_BYTES: u64 = 1 << 30;

/// First of the header fields that hold a [`TokenizerId`].
const TOKENIZER: usize = 4;

/// The help for a file that cannot be read.
const EXPECTED: &str = "expected HellaSwag's hellaswag_val.jsonl, which `warpsmith get hellaswag` fetches, or \
                        llm.c's .bin of it";

/// Marks the start of an example. It cannot be a token: vocabularies that are written are smaller.
const START: u16 = u16::MAX;

impl HellaSwag {
    /// Reads a file of either format, which its first bytes tell. Text is encoded by `tokenizer`.
    ///
    /// # Errors
    /// One line that names the file, the line or example, and the field at fault; or tokens are
    /// those of another tokenizer.
    pub fn open(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let path = path.as_ref();
        let bytes = files::read(path, FILE_BYTES).map_err(|e| anyhow!("{e:#}; {EXPECTED}"))?;
        let bytes = files::strip_bom(&bytes);
        let is_json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let examples = if is_json { parse_jsonl(bytes, tokenizer) } else { parse_bin(bytes, tokenizer) };
        let examples = examples.map_err(|e| anyhow!("{}: {e:#}", path.display()))?;
        ensure!(!examples.is_empty(), "{}: no examples", path.display());
        Ok(HellaSwag { path: path.to_path_buf(), tokenizer: tokenizer.id(), examples })
    }

    /// Writes llm.c's `.bin`.
    ///
    /// # Errors
    /// If the number of examples, the size of one or a token exceeds 16 bits, or the file cannot be
    /// written.
    pub fn write_bin(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes =
            to_bin(&self.examples, self.tokenizer).map_err(|e| anyhow!("{}: {e:#}", path.display()))?;
        files::write(path, |out| Ok(out.write_all(&bytes)?))
    }
}

fn parse_jsonl(bytes: &[u8], tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let text = std::str::from_utf8(bytes).context("not UTF-8 text")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, line)| parse_json(line, tokenizer).map_err(|e| anyhow!("line {}: {e:#}", i + 1));
    lines.map(parse).collect()
}

fn parse_json(line: &str, tokenizer: &Tokenizer) -> Result<Example> {
    let json: Value = serde_json::from_str(line)?;
    let text = |value: &Value, field: &str| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(anyhow!("{field} is {value}; expected a text")),
    };
    let ctx = text(&json["ctx"], "ctx")?;
    let label = &json["label"];
    // Hugging Face's copy of the data set has the number in quotes.
    let number = label.as_u64().or_else(|| label.as_str()?.parse().ok());
    let Some(label) = number.and_then(|n| usize::try_from(n).ok()).filter(|&n| n < ENDINGS) else {
        bail!("label is {label}; expected 0 to {} (the test split has no labels)", ENDINGS - 1);
    };
    let endings = json["endings"].as_array().map_or(&[][..], Vec::as_slice);
    let Ok(endings) = <&[Value; ENDINGS]>::try_from(endings) else {
        bail!("endings has {} entries; expected {ENDINGS}", endings.len());
    };
    let mut tokens: [Vec<u32>; ENDINGS] = Default::default();
    for (i, ending) in endings.iter().enumerate() {
        tokens[i] = tokenizer.encode_ordinary(&format!(" {}", text(ending, &format!("endings[{i}]"))?));
    }
    Ok(Example { ctx: tokenizer.encode_ordinary(&ctx), endings: tokens, label })
}

fn parse_bin(bytes: &[u8], tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let header = Header::parse(bytes, &EVALUATION).context("neither JSON lines nor llm.c's .bin")?;
    let (found, expected) = (TokenizerId::read(&header, TOKENIZER, TokenizerId::GPT2)?, tokenizer.id());
    ensure!(
        found.agrees(&expected),
        "has tokens of the tokenizer {found}, and the model's is {expected}; give the .jsonl"
    );
    let (body, count, longest) = (&bytes[HEADER_BYTES..], header.i32(2), header.i32(3));
    ensure!((0..=0xffff).contains(&count), "number of examples is {count}; expected at most 65535");
    ensure!(body.len().is_multiple_of(2), "cut short: ends in the middle of a token");
    let words: Vec<u16> = body.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mut rest = words.as_slice();
    let mut examples = Vec::with_capacity(count as usize);
    for index in 0..count as usize {
        let words = take_example(&mut rest, index, longest).with_context(|| format!("example {index}"))?;
        examples.push(parse_example(words).with_context(|| format!("example {index}"))?);
    }
    ensure!(rest.is_empty(), "{} bytes follow the last of {count} examples", rest.len() * 2);
    Ok(examples)
}

/// Splits off the words of the next example, without start mark, size and index.
fn take_example<'a>(rest: &mut &'a [u16], index: usize, longest: i32) -> Result<&'a [u16]> {
    let &[start, size, found, ..] = *rest else {
        bail!("cut short: the file ends here");
    };
    ensure!(start == START, "starts with {start}; expected {START}");
    let size_ok = size.is_multiple_of(2) && size >= 6 && i32::from(size) <= longest;
    ensure!(
        size_ok,
        "size is {size} bytes; expected an even number from 6 to the header's longest, {longest}"
    );
    ensure!(usize::from(found) == index, "index is {found}; expected {index}");
    let Some((example, after)) = rest.split_at_checked(usize::from(size) / 2) else {
        bail!("cut short: has {} of {size} bytes", rest.len() * 2);
    };
    *rest = after;
    Ok(&example[3..])
}

/// Parses label, number of endings, context and endings.
fn parse_example(words: &[u16]) -> Result<Example> {
    let &[label, endings, ref rest @ ..] = words else {
        bail!("too small to have a label");
    };
    ensure!(usize::from(label) < ENDINGS, "label is {label}; expected 0 to {}", ENDINGS - 1);
    ensure!(usize::from(endings) == ENDINGS, "has {endings} endings; expected {ENDINGS}");
    let mut rest = rest;
    let ctx = take_tokens(&mut rest).context("context")?;
    let mut tokens: [Vec<u32>; ENDINGS] = Default::default();
    for (i, ending) in tokens.iter_mut().enumerate() {
        *ending = take_tokens(&mut rest).with_context(|| format!("ending {i}"))?;
    }
    ensure!(rest.is_empty(), "{} bytes follow the last ending", rest.len() * 2);
    Ok(Example { ctx, endings: tokens, label: usize::from(label) })
}

/// Splits off a length and that many tokens.
fn take_tokens(rest: &mut &[u16]) -> Result<Vec<u32>> {
    let Some((&len, after)) = rest.split_first() else {
        bail!("is missing: the example ends before it");
    };
    ensure!(len > 0, "has no tokens");
    let Some((tokens, after)) = after.split_at_checked(usize::from(len)) else {
        bail!("has {} of {len} tokens: the example ends within it", after.len());
    };
    *rest = after;
    Ok(tokens.iter().map(|&token| u32::from(token)).collect())
}

fn to_bin(examples: &[Example], tokenizer: TokenizerId) -> Result<Vec<u8>> {
    ensure!(
        tokenizer.vocab_size <= u32::from(START),
        "the format has no room for a vocabulary of {} tokens, expected at most {START}",
        tokenizer.vocab_size
    );
    ensure!(examples.len() <= 0xffff, "{} examples; the format has room for 65535", examples.len());
    let mut body: Vec<u16> = Vec::new();
    let mut longest = 0;
    for (index, example) in examples.iter().enumerate() {
        let words: usize = 6 + example.ctx.len() + example.endings.iter().map(|e| 1 + e.len()).sum::<usize>();
        let size = u16::try_from(words * 2).map_err(|_| {
            anyhow!("example {index} would take {} bytes; the format has room for 65535", words * 2)
        })?;
        longest = longest.max(size);
        body.extend([START, size, index as u16, example.label as u16, ENDINGS as u16]);
        for tokens in std::iter::once(&example.ctx).chain(&example.endings) {
            // Cannot wrap: the whole example fits 16 bits.
            body.push(tokens.len() as u16);
            body.extend(tokens.iter().map(|&token| token as u16));
        }
    }
    let mut header = Header::new(&EVALUATION, 1);
    header.set(2, examples.len() as i32);
    header.set(3, i32::from(longest));
    tokenizer.write(&mut header, TOKENIZER, TokenizerId::GPT2);
    let mut bytes = Vec::new();
    header.write(&mut bytes)?;
    bytes.extend(body.iter().flat_map(|x| x.to_le_bytes()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second label is in quotes, as in Hugging Face's copy; a blank line ends the file.
    const JSONL: &str = r#"{"ind": 24, "ctx": "A man is sitting on a roof. he", "split": "val", "label": 3, "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing on a roof."]}
{"ctx": "The cat", "label": "1", "endings": ["a", "sat on the mat.", "barks", "is a good dog"]}

"#;

    fn open(bytes: impl AsRef<[u8]>) -> Result<HellaSwag> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        HellaSwag::open(file.path(), &Tokenizer::gpt2())
    }

    fn message(bytes: impl AsRef<[u8]>) -> String {
        let message = open(bytes).unwrap_err().to_string();
        assert!(message.starts_with('/') && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn jsonl_becomes_tokens() {
        let data = open(JSONL).unwrap();
        // Token ids from tiktoken's gpt2 encoding.
        assert_eq!(data.examples[0].ctx, [32, 582, 318, 5586, 319, 257, 9753, 13, 339]);
        assert_eq!(data.examples[0].endings[1], [318, 34759, 1241, 19867, 572, 13]);
        assert_eq!(data.examples[1].ctx, [464, 3797]);
        assert_eq!(data.examples[1].endings[1], [3332, 319, 262, 2603, 13]);
        assert_eq!(data.examples.iter().map(|e| e.label).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(data.examples[1].longest(), 7);
        assert_eq!(data.longest(), data.examples[0].longest());
        let marked = open(["\u{feff}", JSONL].concat()).unwrap();
        assert_eq!(marked.examples, data.examples, "a byte-order mark is skipped");
    }

    #[test]
    fn bad_jsonl_names_line_and_field() {
        let line = JSONL.lines().nth(1).unwrap();
        for (from, to, expected) in [
            ("\"1\"", "4", "line 3: label is 4"),
            ("\"1\"", "\"\"", "label is \"\""),
            ("\"label\": \"1\", ", "", "label is null"),
            ("\"The cat\"", "\"\"", "ctx is \"\""),
            ("\"ctx\"", "\"context\"", "ctx is null"),
            ("\"barks\", ", "", "endings has 3 entries"),
            ("\"barks\"", "7", "endings[2] is 7"),
            ("}", "", "line 3: EOF"),
        ] {
            let text = message(format!("{line}\n\n{}\n", line.replace(from, to)));
            assert!(text.contains(expected), "{text}");
        }
        assert!(message(b"{\xff}").contains("UTF-8"));
        assert!(
            HellaSwag::open("/nowhere/h.jsonl", &Tokenizer::gpt2())
                .unwrap_err()
                .to_string()
                .contains("/nowhere/h.jsonl")
        );
    }

    /// Two examples, spelled out word by word.
    fn bin() -> Vec<u8> {
        let mut header = vec![20240522, 1, 2, 38];
        header.resize(256, 0);
        let body = [
            &[65535u16, 38, 0, 3, 4, 2, 10, 11, 1, 20, 3, 21, 22, 23, 1, 24, 2, 25, 26][..],
            &[65535, 32, 1, 0, 4, 1, 30, 1, 31, 2, 32, 33, 1, 34, 1, 35],
        ];
        let header = header.iter().flat_map(|x: &i32| x.to_le_bytes());
        header.chain(body.concat().iter().flat_map(|x| x.to_le_bytes())).collect()
    }

    #[test]
    fn bin_is_read_and_written_word_for_word() {
        let data = open(bin()).unwrap();
        let first = Example {
            ctx: vec![10, 11],
            endings: [vec![20], vec![21, 22, 23], vec![24], vec![25, 26]],
            label: 3,
        };
        assert_eq!(data.examples[0], first);
        assert_eq!((data.examples.len(), data.examples[1].label, data.longest()), (2, 0, 5));
        let file = tempfile::NamedTempFile::new().unwrap();
        data.write_bin(file.path()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), bin());
    }

    #[test]
    fn jsonl_survives_conversion() {
        let data = open(JSONL).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        data.write_bin(file.path()).unwrap();
        assert_eq!(HellaSwag::open(file.path(), &Tokenizer::gpt2()).unwrap().examples, data.examples);
    }

    #[test]
    fn bad_bin_names_example_and_field() {
        // Index of a 16-bit word, its new value, and text the message must contain.
        for (word, value, expected) in [
            (0, 7, "expected a multiple-choice evaluation set (magic 20240522), found magic"),
            (2, 2, "found version 2"),
            (4, 3, "example 2: cut short"),
            (4, 1, "32 bytes follow the last of 1 examples"),
            (4, 0, "70 bytes follow"),
            (5, 1, "number of examples is 65538"),
            (6, 36, "example 0: size is 38 bytes"),
            (512, 1, "example 0: starts with 1"),
            (513, 37, "example 0: size is 37"),
            (513, 4, "example 0: size is 4"),
            (513, 36, "example 0: ending 3: has 1 of 2 tokens"),
            (514, 1, "example 0: index is 1"),
            (515, 4, "example 0: label is 4"),
            (516, 3, "example 0: has 3 endings"),
            (517, 0, "example 0: context: has no tokens"),
            (517, 60000, "example 0: context: has 13 of 60000 tokens"),
            (528, 1, "example 0: 2 bytes follow"),
            (532, 34, "example 1: cut short: has 32 of 34 bytes"),
            (543, 0, "example 1: ending 2: has no tokens"),
        ] {
            let mut bytes = bin();
            bytes[word * 2..][..2].copy_from_slice(&u16::to_le_bytes(value));
            let text = message(bytes);
            assert!(text.contains(expected), "word {word} = {value}: {text}");
        }
        let bytes = bin();
        assert!(message(&bytes[..bytes.len() - 1]).contains("middle of a token"));
        assert!(message(&bytes[..100]).contains("100 bytes"));
        assert!(message("").contains("an empty file"));
        for len in (HEADER_BYTES..bytes.len()).step_by(2) {
            assert!(open(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_does_not_fit_the_format_is_not_written() {
        let example = open(bin()).unwrap().examples.remove(0);
        let large = Example { ctx: vec![1; 40_000], ..example.clone() };
        assert!(
            to_bin(&[large], TokenizerId::GPT2).unwrap_err().to_string().contains("example 0 would take")
        );
        assert!(
            to_bin(&vec![example; 65_536], TokenizerId::GPT2)
                .unwrap_err()
                .to_string()
                .contains("65536 examples")
        );
    }
}
