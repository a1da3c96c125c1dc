//! `warpsmith sample`: continuations of a prompt by one model, or by two side by side.

use crate::app::model::{Loaded, load, open_decoder};
use crate::app::print;
use crate::cli::flags::warpsmith::{SampleArgs, SamplerArgs};
use crate::data::tokenizer::{TextStream, Tokenizer};
use crate::model::decode::Decoder;
use crate::model::hooks::NoHooks;
use crate::ops::Ops;
use crate::sample::{Continuation, Sampler, SamplerOptions, generate};
use anyhow::{Context, Result};
use std::cell::Cell;
use std::path::Path;

/// Characters of a column, of which two and what divides them fit 80.
const COLUMN: usize = 38;

pub fn sample(args: &SampleArgs) -> Result<()> {
    if let [first, second] = args.compare.as_slice() {
        return compare([first, second], args);
    }
    let model = args.model.as_deref().context("-e/--model: missing")?;
    samples(model, args, &mut |index| print(heading(index, args)), &mut |text| print(text))
}

/// The line above a sample, if there are several.
fn heading(index: usize, args: &SampleArgs) -> String {
    match args.count {
        1 => String::new(),
        count => format!("--- sample {} of {count}\n", index + 1),
    }
}

/// Draws all samples of a model. `begin` is called before each one, and `write` with its text,
/// piece by piece.
fn samples(
    model: &Path,
    args: &SampleArgs,
    begin: &mut dyn FnMut(usize) -> Result<()>,
    write: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let (file, tokenizer) = load(model, args.adapter.as_deref(), &args.numbers)?;
    let tokenizer = tokenizer.known()?;
    let Loaded { mut dev, model: mut decoder } = open_decoder(&args.numbers, file)?;
    let prompt = tokenizer.encode(args.prompt.as_deref().unwrap_or_default());
    if prompt.len() > decoder.context() {
        let (tokens, context) = (prompt.len(), decoder.context());
        log::warn!("the prompt has {tokens} tokens; the model reads only the last {context}");
    }
    for index in 0..args.count {
        begin(index)?;
        let mut sampler = Sampler::new(options(&args.sampler, index as u64))?;
        write_sample(dev.as_mut(), &mut decoder, &mut sampler, tokenizer, &prompt, args, write)?;
    }
    Ok(())
}

/// The options of a sampler, the one with number `index` of several.
pub(super) fn options(args: &SamplerArgs, index: u64) -> SamplerOptions {
    SamplerOptions {
        temperature: args.temperature,
        top_k: (args.top_k > 0).then_some(args.top_k),
        top_p: (args.top_p < 1.0).then_some(args.top_p),
        seed: args.seed.wrapping_add(index),
    }
}

/// Passes on the text of one sample, token by token.
fn write_sample(
    dev: &mut dyn Ops,
    decoder: &mut Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    args: &SampleArgs,
    write: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let mut stream = TextStream::new();
    // Written with the first token, so that an error is not printed after it.
    let mut prompt_text = args.prompt.as_deref().unwrap_or_default();
    let (eot, max_new) = (tokenizer.eot(), args.max_tokens);
    let what = Continuation { prompt, eot, max_new, kv_cache: !args.no_kv_cache };
    generate(dev, &mut NoHooks, decoder, sampler, what, &mut |token| {
        write(std::mem::take(&mut prompt_text))?;
        write(&stream.push(tokenizer.token_bytes(token).unwrap_or_default()))
    })?;
    write(&format!("{prompt_text}{}\n", stream.finish()))
}

/// Draws the same samples of two models, one after the other, and prints them side by side.
fn compare(models: [&Path; 2], args: &SampleArgs) -> Result<()> {
    let [mut first, mut second] = [vec![String::new(); args.count], vec![String::new(); args.count]];
    for (model, texts) in models.into_iter().zip([&mut first, &mut second]) {
        let place = Cell::new(0);
        let begin = &mut |index| {
            place.set(index);
            Ok(())
        };
        samples(model, args, begin, &mut |text| {
            texts[place.get()] += text;
            Ok(())
        })?;
    }
    let names = models.map(|model| model.display().to_string());
    print(columns(&names[0], &names[1]))?;
    print(format_args!("{0}\u{2500}\u{253c}\u{2500}{0}\n", "\u{2500}".repeat(COLUMN)))?;
    for (index, (first, second)) in first.iter().zip(&second).enumerate() {
        print(heading(index, args))?;
        print(columns(first.trim_end(), second.trim_end()))?;
    }
    Ok(())
}

/// Two texts side by side.
fn columns(first: &str, second: &str) -> String {
    let (first, second) = (wrapped(first), wrapped(second));
    let line = |index: usize| {
        let [left, right] = [&first, &second].map(|lines| lines.get(index).map_or("", String::as_str));
        let room = " ".repeat(COLUMN - left.chars().count());
        format!("{left}{room} \u{2502} {right}").trim_end().to_owned() + "\n"
    };
    (0..first.len().max(second.len())).map(line).collect()
}

/// Lines of at most [`COLUMN`] characters, broken between words where that is possible.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    // Control characters other than newlines would move what follows.
    let clean = |line: &str| line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    for line in text.split('\n').map(clean) {
        let mut rest: Vec<char> = line.trim_end().chars().collect();
        while rest.len() > COLUMN {
            let space = rest[..=COLUMN].iter().rposition(|c| *c == ' ').filter(|&at| at > 0);
            let later = rest.split_off(space.unwrap_or(COLUMN));
            lines.push(rest.iter().collect());
            rest = later.into_iter().skip(usize::from(space.is_some())).collect();
        }
        lines.push(rest.iter().collect());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_side_by_side() {
        let long = "a".repeat(COLUMN + 2);
        let first = format!("one two\n\n{long} b");
        let text = columns(&first, "The pumpkin was round and orange, and it had a smile.");
        let expected = [
            "one two                                │ The pumpkin was round and orange, and",
            "                                       │ it had a smile.",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa │",
            "aa b                                   │",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert_eq!(columns("a\tb\r", ""), format!("a b{} │\n", " ".repeat(COLUMN - 3)));
    }
}
