//! Text that a model writes, compared with references: BLEU and ROUGE.

mod bleu;
mod rouge;

pub use bleu::bleu;
pub use rouge::{Rouge, rouge};

use crate::files;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Size limit of a file.
const FILE_BYTES: u64 = 1 << 30;

/// A text to continue, and what may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub prompt: String,
    /// At least one.
    pub references: Vec<String>,
}

/// The prompts of a file.
#[derive(Clone, Debug)]
pub struct Prompts {
    pub path: PathBuf,
    pub prompts: Vec<Prompt>,
}

impl Prompts {
    /// Reads JSON lines with `prompt` and `reference`, which is a text or a list of several.
    ///
    /// # Errors
    /// One line that names the file, and the line and field at fault.
    pub fn open(path: &Path) -> Result<Self> {
        let text = files::read_text(path, FILE_BYTES)?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parse = |(i, line)| parse(line).map_err(|e| anyhow!("{}: line {}: {e:#}", path.display(), i + 1));
        let prompts: Vec<_> = lines.map(parse).collect::<Result<_>>()?;
        ensure!(!prompts.is_empty(), "{}: no prompts", path.display());
        Ok(Prompts { path: path.to_owned(), prompts })
    }
}

fn parse(line: &str) -> Result<Prompt> {
    let json: Value = serde_json::from_str(line)?;
    let text = |value: &Value, field: &str| {
        value.as_str().map(str::to_owned).with_context(|| format!("{field} is {value}; expected a text"))
    };
    let references = match &json["reference"] {
        Value::Array(all) => all.iter().map(|one| text(one, "reference")).collect::<Result<Vec<_>>>()?,
        one => vec![text(one, "reference")?],
    };
    ensure!(!references.is_empty(), "reference is []; expected at least one text");
    Ok(Prompt { prompt: text(&json["prompt"], "prompt")?, references })
}

/// Returns how often each run of `n` words occurs.
fn ngrams(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for ngram in words.windows(n) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sacrebleu's and rouge-score's numbers: dev/make_generated_fixture.py.
    #[test]
    fn scores_are_those_of_sacrebleu_and_rouge_score() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/generated.json");
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let texts = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
        let close = |found: f64, expected: &Value, what: &str| {
            let expected = expected.as_f64().unwrap();
            let tolerance = 1e-9 * expected.abs().max(1.0);
            assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
        };
        let corpora = fixture.as_array().unwrap();
        assert!(corpora.len() > 5);
        for corpus in corpora {
            let predictions = texts(&corpus["predictions"]);
            let references: Vec<_> = corpus["references"].as_array().unwrap().iter().map(texts).collect();
            let pairs = || predictions.iter().map(String::as_str).zip(references.iter().map(Vec::as_slice));
            close(bleu(pairs()), &corpus["bleu"], &corpus["predictions"].to_string());
            for ((prediction, references), expected) in pairs().zip(corpus["rouge"].as_array().unwrap()) {
                let Rouge { rouge1, rouge2, rouge_l } = rouge(prediction, references);
                for (i, found) in [rouge1, rouge2, rouge_l].into_iter().enumerate() {
                    close(found, &expected[i], prediction);
                }
            }
        }
    }

    #[test]
    fn bad_prompts_name_line_and_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        let open = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Prompts::open(&path)
        };
        let good =
            "{\"prompt\": \"a\", \"reference\": \"b\"}\n{\"prompt\": \"\", \"reference\": [\"c\", \"d\"]}";
        assert_eq!(open(good).unwrap().prompts[1].references, ["c", "d"]);
        for (text, expected) in [
            ("", "p.jsonl: no prompts"),
            ("{\"prompt\": \"a\"}", "p.jsonl: line 1: reference is null; expected a text"),
            ("\n{\"prompt\": 1, \"reference\": \"b\"}", "p.jsonl: line 2: prompt is 1; expected a text"),
            ("{\"prompt\": \"a\", \"reference\": []}", "reference is []; expected at least one text"),
        ] {
            let error = format!("{:#}", open(text).unwrap_err());
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
