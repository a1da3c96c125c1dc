//! llm.c's tokenized `.bin` of HellaSwag.
//!
//! A header (field 2: number of examples; field 3: size in bytes of the longest; fields 4 to 7: the
//! tokenizer, zeros stand for GPT-2's), then for each example a run of uint16: 65535, its size in
//! bytes, its index, the label, the number of endings, and context and endings, each preceded by
//! its length. All are little-endian.

use super::{Choice, Example};
use crate::data::tokenizer::{Tokenizer, TokenizerId};
use crate::llmc::{EVALUATION, HEADER_BYTES, Header};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::sync::Arc;

/// First of the header fields that hold a [`TokenizerId`].
const TOKENIZER: usize = 4;

/// Marks the start of an example. It cannot be a token: vocabularies that are written are smaller.
const START: u16 = u16::MAX;

/// Reads the examples, whose tokens have to be those of `tokenizer`.
pub fn parse(bytes: &[u8], tokenizer: &Tokenizer) -> Result<Vec<Example>> {
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
    ensure!(endings >= 2, "has {endings} endings; expected at least 2");
    ensure!(label < endings, "label is {label}; expected 0 to {}", endings - 1);
    let mut rest = rest;
    let ctx: Arc<[u32]> = take_tokens(&mut rest).context("context")?.into();
    let choice = |i| {
        let tokens = take_tokens(&mut rest).with_context(|| format!("ending {i}"))?;
        Ok(Choice { ctx: ctx.clone(), length: tokens.len(), tokens })
    };
    let choices = (0..endings).map(choice).collect::<Result<_>>()?;
    ensure!(rest.is_empty(), "{} bytes follow the last ending", rest.len() * 2);
    Ok(Example { choices, gold: usize::from(label) })
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

/// Writes the examples.
pub fn write(examples: &[Example], tokenizer: TokenizerId) -> Result<Vec<u8>> {
    ensure!(
        tokenizer.vocab_size <= u32::from(START),
        "the format has no room for a vocabulary of {} tokens, expected at most {START}",
        tokenizer.vocab_size
    );
    ensure!(examples.len() <= 0xffff, "{} examples; the format has room for 65535", examples.len());
    let mut body: Vec<u16> = Vec::new();
    let mut longest = 0;
    for (index, example) in examples.iter().enumerate() {
        let ctx = &example.choices[0].ctx;
        assert!(example.choices.iter().all(|choice| choice.ctx == *ctx), "one context for all endings");
        let endings = || example.choices.iter().map(|choice| &choice.tokens[..]);
        let words: usize = 6 + ctx.len() + endings().map(|tokens| 1 + tokens.len()).sum::<usize>();
        let size = u16::try_from(words * 2).map_err(|_| {
            anyhow!("example {index} would take {} bytes; the format has room for 65535", words * 2)
        })?;
        longest = longest.max(size);
        body.extend([START, size, index as u16, example.gold as u16, example.choices.len() as u16]);
        for tokens in std::iter::once(&ctx[..]).chain(endings()) {
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
    use crate::eval::tasks::{Questions, Task};

    fn open(bytes: impl AsRef<[u8]>) -> Result<Questions> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Questions::open(Task::HellaSwagLlmc, file.path(), &Tokenizer::gpt2())
    }

    fn message(bytes: impl AsRef<[u8]>) -> String {
        let message = open(bytes).unwrap_err().to_string();
        assert!(message.starts_with('/') && !message.contains('\n'), "{message}");
        message
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
        let endings = [vec![20], vec![21, 22, 23], vec![24], vec![25, 26]];
        let choice = |tokens: Vec<u32>| Choice { ctx: [10, 11].into(), length: tokens.len(), tokens };
        assert_eq!(data.examples[0], Example { choices: endings.map(choice).into(), gold: 3 });
        assert_eq!((data.examples.len(), data.examples[1].gold, data.longest()), (2, 0, 5));
        let file = tempfile::NamedTempFile::new().unwrap();
        data.write_bin(file.path()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), bin());
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
            (516, 1, "example 0: has 1 endings"),
            (516, 3, "example 0: label is 3"),
            (516, 5, "example 0: ending 4: is missing"),
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
        let mut large = example.clone();
        large.choices.iter_mut().for_each(|choice| choice.ctx = vec![1; 40_000].into());
        let error = |examples: &[Example]| write(examples, TokenizerId::GPT2).unwrap_err().to_string();
        assert!(error(&[large]).contains("example 0 would take"));
        assert!(error(&vec![example; 65_536]).contains("65536 examples"));
    }
}
