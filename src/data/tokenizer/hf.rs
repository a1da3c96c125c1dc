//! Hugging Face's `tokenizer.json`: byte-level BPE is encoded by [`Bpe`], which gives the same
//! tokens by construction, and everything else by the `tokenizers` crate.

use super::bpe::Bpe;
use super::foreign::Foreign;
use super::split::Pattern;
use super::{Engine, VOCAB_MAX, Vocabulary, byte_of_char};
use crate::files;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Size limit of a file. Those of vocabularies of 256,000 tokens have 35 MB.
const FILE_BYTES: u64 = 1 << 28;

/// End-of-text tokens, in the order in which they are looked for if `tokenizer_config.json` does
/// not name one.
const EOT_TOKENS: [&str; 6] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]"];

/// The content of a file.
pub struct Parts {
    pub text: String,
    pub vocabulary: Vocabulary,
    pub eot: u32,
    pub specials: Vec<(String, u32)>,
    pub engine: Engine,
    /// The part of the digest that is neither vocabulary nor merges.
    pub rules: String,
    pub merges: Vec<[u32; 3]>,
}

/// Reads a `tokenizer.json`, and the `tokenizer_config.json` beside it if there is one.
///
/// # Errors
/// If a file cannot be read, is not JSON, or has no usable tokenizer.
pub fn read(path: &Path) -> Result<Parts> {
    let text = files::read(path, FILE_BYTES)?;
    let config = path.with_file_name("tokenizer_config.json");
    let named = match config.exists() {
        true => {
            eos_token(&files::read(&config, FILE_BYTES)?).with_context(|| config.display().to_string())?
        }
        false => None,
    };
    parse(text, named).with_context(|| format!("{}: not a usable tokenizer", path.display()))
}

/// The end-of-text token that a `tokenizer_config.json` names.
fn eos_token(text: &[u8]) -> Result<Option<String>> {
    let json: Value = serde_json::from_slice(text).context("not JSON")?;
    let token = &json["eos_token"];
    Ok(token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned))
}

/// Parses the text of a file; `named` is its end-of-text token, if that is known.
pub fn parse(text: Vec<u8>, named: Option<String>) -> Result<Parts> {
    let text = String::from_utf8(text).ok().context("not UTF-8 text")?;
    let json: Value = serde_json::from_str(&text).context("not JSON")?;
    ensure!(
        json["model"].is_object(),
        "expected the tokenizer.json of the tokenizers library, with a \"model\", found other JSON"
    );
    if let Some(parts) = byte_level(&json, &text, named.as_deref())? {
        return Ok(parts);
    }
    let foreign = Foreign::parse(&text)?;
    let ids = dense(foreign.vocabulary())?;
    let specials = added_tokens(&json, true)?;
    let eot = end_of_text(named.as_deref(), &specials, &|text| foreign.id(text))?;
    let vocabulary = foreign.bytes_of(&ids);
    let (merges, rules) = (Vec::new(), json.to_string());
    let engine = Engine::Foreign(Box::new(foreign));
    Ok(Parts { vocabulary, eot, specials, engine, rules, merges, text })
}

/// Orders tokens by id.
///
/// # Errors
/// If there are gaps between ids, or too many.
fn dense(vocabulary: HashMap<String, u32>) -> Result<Vec<String>> {
    let len = vocabulary.values().max().map_or(0, |&id| u64::from(id) + 1);
    ensure!(len > 0, "expected a vocabulary, found none");
    ensure!(len <= u64::from(VOCAB_MAX), "expected ids below {VOCAB_MAX}, found {}", len - 1);
    let mut tokens = vec![None; len as usize];
    for (token, id) in vocabulary {
        tokens[id as usize] = Some(token);
    }
    let gap = tokens.iter().position(Option::is_none);
    if let Some(id) = gap {
        bail!("no token has id {id}, though ids go up to {}; expected ids without gaps", len - 1);
    }
    Ok(tokens.into_iter().flatten().collect())
}

/// Returns the tokens that are found in text before it is cut into words, and their ids: those that
/// are special, or all others.
fn added_tokens(json: &Value, special: bool) -> Result<Vec<(String, u32)>> {
    let tokens = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let tokens = tokens.iter().filter(|token| token["special"].as_bool().unwrap_or(false) == special);
    let parsed = tokens.map(|token| {
        let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let content = token["content"].as_str().filter(|content| !content.is_empty());
        content.map(str::to_owned).zip(id).context("an added token has no content or id")
    });
    parsed.collect()
}

/// Finds the end-of-text token.
fn end_of_text(
    named: Option<&str>,
    specials: &[(String, u32)],
    id: &dyn Fn(&str) -> Option<u32>,
) -> Result<u32> {
    if let Some(named) = named {
        return id(named).with_context(|| {
            format!("tokenizer_config.json names {named} as eos_token, which is not in the vocabulary")
        });
    }
    if let Some(id) = EOT_TOKENS.iter().find_map(|token| id(token)) {
        return Ok(id);
    }
    match specials {
        [(_, id)] => Ok(*id),
        _ => bail!(
            "no end-of-text token: expected one of {}; or name it as eos_token in a tokenizer_config.json beside it",
            EOT_TOKENS.join(", ")
        ),
    }
}

/// Takes a file for byte-level BPE, if it is nothing but that: the bytes of words of a known
/// pattern, merged. Returns `None` for any other.
fn byte_level(json: &Value, text: &str, named: Option<&str>) -> Result<Option<Parts>> {
    let model = &json["model"];
    let is_empty = |value: &Value| value.is_null() || value.as_str().is_some_and(str::is_empty);
    let unset = |value: &Value| value.is_null() || value.as_bool() == Some(false);
    let plain = model["type"].as_str().is_none_or(|kind| kind == "BPE")
        && json["normalizer"].is_null()
        && is_empty(&model["continuing_subword_prefix"])
        && is_empty(&model["end_of_word_suffix"])
        && (model["dropout"].is_null() || model["dropout"].as_f64() == Some(0.0))
        && unset(&model["byte_fallback"])
        && added_tokens(json, false)?.is_empty();
    let (Some(pattern), Some(vocab), true) = (pattern_of(json), model["vocab"].as_object(), plain) else {
        return Ok(None);
    };
    let specials = added_tokens(json, true)?;
    let mut ids = HashMap::new();
    for (token, id) in vocab {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.insert(token.clone(), id.with_context(|| format!("the id of {token:?} is not a number"))?);
    }
    let mut words = HashMap::new();
    for (token, &id) in &ids {
        match bytes_of_token(token) {
            Some(bytes) => words.insert(bytes, id),
            None if specials.iter().any(|special| special.0 == *token) => continue,
            None => return Ok(None),
        };
    }
    let mut bytes = [0; 256];
    for (byte, token) in (0..=255u8).zip(&mut bytes) {
        let Some(&id) = words.get(&[byte][..]) else { return Ok(None) };
        *token = id;
    }
    let merges = merges_of(model, &ids)?;
    let whole = model["ignore_merges"].as_bool() == Some(true);
    ids.extend(specials.iter().cloned());
    let eot = end_of_text(named, &specials, &|token| ids.get(token).copied())?;
    let mut vocabulary = Vocabulary::default();
    for token in dense(ids)? {
        let special = specials.iter().any(|special| special.0 == token);
        let bytes = if special { None } else { bytes_of_token(&token) };
        vocabulary.push(&bytes.unwrap_or_else(|| token.into_bytes()));
    }
    let mut bpe = Bpe::new(pattern, bytes, &merges);
    if whole {
        bpe = bpe.with_whole_words(words.iter().map(|(bytes, &id)| (id, &bytes[..])));
    }
    let rules = pattern.name() + if whole { ", whole words" } else { "" };
    let (text, engine) = (text.to_owned(), Engine::Bytes(Box::new(bpe)));
    Ok(Some(Parts { vocabulary, eot, specials, engine, rules, merges, text }))
}

/// The pattern of the words, if it is a known one and nothing else happens to them.
fn pattern_of(json: &Value) -> Option<Pattern> {
    let steps = &json["pre_tokenizer"];
    let is_byte_level = |step: &Value, use_regex: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"].as_bool() == Some(false)
            && step["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    if is_byte_level(steps, true) {
        return Some(Pattern::Gpt2);
    }
    let [split, bytes] = steps["pretokenizers"].as_array()?.as_slice() else { return None };
    let isolated = split["type"] == "Split"
        && split["behavior"] == "Isolated"
        && split["invert"].as_bool().is_none_or(|invert| !invert);
    let regex = split["pattern"]["Regex"].as_str().filter(|_| isolated && is_byte_level(bytes, false))?;
    Pattern::of_regex(regex)
}

/// The bytes that the characters of a token stand for.
pub fn bytes_of_token(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of_char).collect()
}

/// Reads the merges: pairs of tokens, as two texts or as one with a space between.
fn merges_of(model: &Value, ids: &HashMap<String, u32>) -> Result<Vec<[u32; 3]>> {
    let merges = model["merges"].as_array().context("expected \"merges\" in the model, found none")?;
    let parse = |(rank, merge): (usize, &Value)| {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            Value::Array(pair) => match &pair[..] {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let (left, right) = pair.with_context(|| format!("merge {rank} is not a pair of tokens"))?;
        let id = |token: &str| {
            ids.get(token)
                .copied()
                .with_context(|| format!("merge {rank}: {token:?} is not in the vocabulary"))
        };
        Ok([id(left)?, id(right)?, id(&format!("{left}{right}"))?])
    };
    merges.iter().enumerate().map(parse).collect()
}
