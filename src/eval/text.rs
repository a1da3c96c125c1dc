//! Perplexity and bits per byte of any text, as `lm_eval` measures them on long texts: every token
//! counts once, the first one after the end-of-text token.

use super::is_space;
use super::rows::{Row, pack, run};
use crate::data::tokenizer::Tokenizer;
use crate::files;
use crate::model::GPT2;
use crate::model::hooks::NoHooks;
use crate::ops::Ops;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Size limit of a file.
const FILE_BYTES: u64 = 1 << 32;

/// A text as tokens, after the end-of-text token.
#[derive(Clone, Debug)]
pub struct Document {
    tokens: Vec<u32>,
    bytes: usize,
    /// Pieces between runs of white space, as `lm_eval` counts them.
    words: usize,
}

/// The documents of a file: the whole of it, or each `text` of a `.jsonl` file.
#[derive(Clone, Debug)]
pub struct Text {
    pub path: PathBuf,
    documents: Vec<Document>,
}

/// The loss of a text, and what it can be divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TextScore {
    /// Sum over all tokens.
    pub nats: f64,
    pub tokens: usize,
    pub bytes: usize,
    pub words: usize,
}

impl TextScore {
    /// Returns the measures and their names in results. Those per word and per byte can be compared
    /// between tokenizers.
    pub fn measures(&self) -> [(&'static str, f64); 4] {
        let per = |count: usize| self.nats / count as f64;
        [
            ("perplexity", per(self.tokens).exp()),
            ("bits_per_byte", per(self.bytes) / std::f64::consts::LN_2),
            ("byte_perplexity", per(self.bytes).exp()),
            ("word_perplexity", per(self.words).exp()),
        ]
    }
}

impl Text {
    /// Reads a file.
    ///
    /// # Errors
    /// One line that names the file, and the line at fault.
    pub fn open(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let text = files::read_text(path, FILE_BYTES)?;
        let is_json = path.extension().is_some_and(|end| end == "jsonl");
        let texts = if is_json { json_texts(&text) } else { Ok(vec![text]) };
        let texts = texts.map_err(|e| anyhow!("{}: {e:#}", path.display()))?;
        let documents: Vec<_> =
            texts.iter().filter(|text| !text.is_empty()).map(|text| Document::new(text, tokenizer)).collect();
        ensure!(!documents.is_empty(), "{}: no text", path.display());
        Ok(Text { path: path.to_owned(), documents })
    }

    /// Scores the text in windows of at most `T` tokens. Each window after the first predicts
    /// `stride` tokens, and reads as many before them as it has room for; `progress` gets the
    /// number of windows done and their total.
    ///
    /// # Errors
    /// If a token is outside the model's vocabulary, or a loss is not finite.
    ///
    /// # Panics
    /// Unless 1 <= `stride` <= `T`, which is at most the rows and positions of the model.
    pub fn score(
        &self,
        model: &GPT2,
        dev: &mut dyn Ops,
        (T, stride): (usize, usize),
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<TextScore> {
        let V = model.weights.config.V;
        let mut score = TextScore::default();
        for document in &self.documents {
            let outside = document.tokens.iter().find(|&&token| token as usize >= V);
            if let Some(token) = outside {
                anyhow::bail!("{}: token {token}, but the model knows {V} tokens", self.path.display());
            }
            score.tokens += document.tokens.len() - 1;
            score.bytes += document.bytes;
            score.words += document.words;
        }
        let all: Vec<Row> = self.documents.iter().flat_map(|d| windows(&d.tokens, T, stride)).collect();
        let mut done = 0;
        while done < all.len() {
            let shape = pack(&all[done..], model.acts.rows);
            let losses = run(model, dev, &mut NoHooks, shape, &all[done..])?;
            let rows = all[done..].iter().zip(losses.chunks_exact(shape.T));
            score.nats += rows.map(|(row, losses)| row.sum_loss(losses)).sum::<f64>();
            done += shape.B;
            progress(done, all.len());
        }
        ensure!(
            score.nats.is_finite(),
            "{}: the model's loss is {}, not finite; it has diverged or is damaged",
            self.path.display(),
            score.nats
        );
        Ok(score)
    }
}

impl Document {
    fn new(text: &str, tokenizer: &Tokenizer) -> Self {
        let tokens = [vec![tokenizer.eot()], tokenizer.encode(text)].concat();
        let words = text.split(is_space).filter(|word| !word.is_empty()).count();
        // White space at an end separates an empty piece.
        let ends = usize::from(text.starts_with(is_space)) + usize::from(text.ends_with(is_space));
        Document { tokens, bytes: text.len(), words: (words + ends).max(1) }
    }
}

/// Cuts a text into windows: the first predicts `T` tokens, each later one the next `stride`, all
/// of them from at most `T` inputs.
fn windows(tokens: &[u32], T: usize, stride: usize) -> impl Iterator<Item = Row<'_>> {
    let len = tokens.len() - 1;
    let mut predicted = 0;
    std::iter::from_fn(move || {
        let count = if predicted == 0 { T } else { stride }.min(len - predicted);
        let end = predicted + count;
        predicted = end;
        let (ctx, scored) = tokens[..=end].split_at(end + 1 - count);
        (count > 0).then(|| Row::new(ctx, scored, T))
    })
}

fn json_texts(text: &str) -> Result<Vec<String>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, line)| {
        let value: Value = serde_json::from_str(line).with_context(|| format!("line {}", i + 1))?;
        let text = value["text"].as_str();
        Ok(text
            .with_context(|| format!("line {}: text is {}; expected a text", i + 1, value["text"]))?
            .into())
    };
    lines.map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs and scored tokens of each window.
    fn cut(tokens: &[u32], T: usize, stride: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let shown = |row: Row| ([row.ctx, row.tokens].concat()[..row.T()].to_vec(), row.tokens.to_vec());
        windows(tokens, T, stride).map(shown).collect()
    }

    /// The windows of `lm_eval.utils.get_rolling_token_windows` for five tokens after 0.
    #[test]
    fn windows_are_those_of_lm_eval() {
        let tokens = [0, 1, 2, 3, 4, 5];
        let last = (vec![3, 4], vec![5]);
        assert_eq!(cut(&tokens, 2, 2), [(vec![0, 1], vec![1, 2]), (vec![2, 3], vec![3, 4]), last.clone()]);
        assert_eq!(
            cut(&tokens, 2, 1),
            [(vec![0, 1], vec![1, 2]), (vec![1, 2], vec![3]), (vec![2, 3], vec![4]), last]
        );
        assert_eq!(cut(&tokens, 9, 4), [(vec![0, 1, 2, 3, 4], vec![1, 2, 3, 4, 5])]);
    }

    #[test]
    fn words_are_counted_as_in_python() {
        let words = |text: &str| Document::new(text, &Tokenizer::gpt2()).words;
        // len(re.split(r"\s+", text))
        assert_eq!([" a b\u{1c}c\n", "a", "\n", "a  b"].map(words), [5, 1, 2, 2]);
    }

    #[test]
    fn bad_files_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Text::open(&path, &Tokenizer::gpt2())
        };
        assert_eq!(open("a.jsonl", "{\"text\": \"a b\"}\n\n{\"text\": \"\"}").unwrap().documents.len(), 1);
        let error = |name, text| format!("{:#}", open(name, text).unwrap_err());
        assert!(error("b.jsonl", "{\"text\": 1}").ends_with("b.jsonl: line 1: text is 1; expected a text"));
        assert!(error("c.txt", "").ends_with("c.txt: no text"));
    }
}
