//! Texts of evaluation sets, which training text must not contain.

use super::words::{hashed_words, runs, words};
use crate::data::documents::read_whole;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Words of a run that counts as contamination, as for GPT-3.
pub(super) const RUN_WORDS: usize = 13;

/// Most bytes of an evaluation set: it is held in memory.
const MOST_BYTES: u64 = 1 << 28;

/// All runs of 13 words of evaluation sets, 10 to 21 bytes each.
#[derive(Default)]
pub(super) struct EvaluationSets {
    runs: HashSet<u64>,
    /// Texts of fewer words, which cannot be recognized.
    pub short: u64,
    pub texts: u64,
}

impl EvaluationSets {
    /// Reads files of JSON or text. Every string of a JSON object is a text, so that questions,
    /// contexts and endings count, whatever their names.
    ///
    /// # Errors
    /// One line, if a file cannot be read, is not JSON or text, or no file has 13 words in a row.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut sets = Self::default();
        for path in paths {
            let before = sets.runs.len();
            sets.add_file(path).with_context(|| format!("--decontaminate {}", path.display()))?;
            ensure!(
                sets.runs.len() > before,
                "--decontaminate {}: no text in it has {RUN_WORDS} words in a row that are new",
                path.display()
            );
        }
        Ok(sets)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let bytes = read_whole(path, MOST_BYTES)?;
        match bytes.trim_ascii_start().first() {
            Some(b'{' | b'[') => {
                for value in serde_json::Deserializer::from_slice(&bytes).into_iter() {
                    self.add_value(&value.context("expected JSON")?);
                }
            }
            _ => match std::str::from_utf8(&bytes) {
                Ok(text) => self.add_text(text),
                Err(e) => bail!("byte {} is not UTF-8; give JSON lines or text", e.valid_up_to()),
            },
        }
        Ok(())
    }

    fn add_value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.add_text(text),
            Value::Array(values) => values.iter().for_each(|value| self.add_value(value)),
            Value::Object(fields) => fields.values().for_each(|value| self.add_value(value)),
            _ => {}
        }
    }

    fn add_text(&mut self, text: &str) {
        let words = hashed_words(text);
        self.texts += 1;
        if words.len() < RUN_WORDS {
            self.short += 1;
        } else {
            self.runs.extend(runs(&words, RUN_WORDS));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns the first run of a text that an evaluation set has, too.
    pub fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        let hashed = hashed_words(text);
        if hashed.len() < RUN_WORDS {
            return None;
        }
        let at = runs(&hashed, RUN_WORDS).position(|run| self.runs.contains(&run))?;
        let mut places = words(text).skip(at);
        let (start, _) = places.next()?;
        let (last, word) = places.nth(RUN_WORDS - 2)?;
        Some(&text[start..last + word.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const QUESTION: &str = "{\"ctx\": \"A man is on a roof, he starts pulling up roofing on it with both hands\", \
                            \"label\": 1, \"endings\": [\"He is\", \"One two three four five six seven eight nine \
                            ten eleven twelve thirteen fourteen\"]}\n";

    #[test]
    fn runs_of_thirteen_words_are_found_in_any_string() {
        let dir = tempfile::tempdir().unwrap();
        let (json, text) = (dir.path().join("a.jsonl"), dir.path().join("b.txt"));
        fs::write(&json, QUESTION.repeat(2)).unwrap();
        fs::write(&text, "plain words that go on and on until there are at last thirteen").unwrap();
        let sets = EvaluationSets::open(&[json, text]).unwrap();
        assert_eq!((sets.texts, sets.short), (7, 2));
        let found =
            sets.find("So: two THREE four, five six seven eight nine ten eleven twelve thirteen fourteen!");
        assert_eq!(
            found,
            Some("two THREE four, five six seven eight nine ten eleven twelve thirteen fourteen")
        );
        assert!(sets.find("plain words that go on; and on until there are... at last thirteen").is_some());
        assert_eq!(sets.find("two three four five six seven eight nine ten eleven twelve thirteen"), None);
        // Texts do not run on into each other.
        assert_eq!(sets.find("it with both hands He is One two three four five six seven eight"), None);
    }

    #[test]
    fn unusable_sets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let refuse = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", EvaluationSets::open(&[path.clone()]).err().unwrap());
            assert!(error.contains("a.jsonl") && !error.contains('\n'), "{error}");
            error
        };
        assert!(refuse(b"").contains("13 words in a row"));
        assert!(refuse(b"{\"a\": ").contains("expected JSON"));
        assert!(refuse(b"words \xff").contains("byte 6 is not UTF-8"));
        assert!(EvaluationSets::open(&["/nonexistent".into()]).is_err());
    }
}
