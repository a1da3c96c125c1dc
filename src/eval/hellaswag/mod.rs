//! HellaSwag (Zellers et al. 2019): which of four endings continues a text. Random guessing scores
//! 25 %, GPT-2 124M 29.55 % (`acc_norm`).
//!
//! Scoring is "completion style": the model chooses the ending whose tokens have the lowest loss
//! given the context. [`files`] reads and writes the examples, [`score`] scores them.

mod files;
mod score;

pub use score::{Evaluation, HellaSwagScore, Item, evaluate};

use crate::config::ModelConfig;
use crate::data::tokenizer::TokenizerId;
use crate::words::count;
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// Endings per example.
pub const ENDINGS: usize = 4;

/// A context and four endings, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Not empty: the first token of an ending is predicted from it.
    pub ctx: Vec<u32>,
    /// Not empty; each begins with the space that separates it from the context.
    pub endings: [Vec<u32>; ENDINGS],
    /// The index of the right ending.
    pub label: usize,
}

impl Example {
    /// The number of tokens in the context and its longest ending.
    pub fn longest(&self) -> usize {
        self.ctx.len() + self.endings.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Whether a model of `maxT` positions can score every ending. The context may lose its start,
    /// but at least one token of it has to remain.
    fn fits(&self, maxT: usize) -> bool {
        self.endings.iter().all(|ending| ending.len() <= maxT)
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug)]
pub struct HellaSwag {
    /// The file, for messages.
    pub path: PathBuf,
    /// The tokenizer of the examples.
    pub tokenizer: TokenizerId,
    pub examples: Vec<Example>,
}

impl HellaSwag {
    /// The number of tokens in the longest row. A model whose buffers hold this many rows, or
    /// `maxT` if that is less, can evaluate all examples; larger buffers are faster.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(Example::longest).max().unwrap_or(0)
    }

    /// Checks that a model can score the examples, so that no evaluation fails later. Returns a
    /// warning if some are left out, because an ending alone is longer than the model's context.
    ///
    /// # Errors
    /// One line, if a token is outside the model's vocabulary, or no example is left.
    pub fn check(&self, config: &ModelConfig) -> Result<Option<String>> {
        let &ModelConfig { V, maxT, .. } = config;
        for (i, example) in self.examples.iter().enumerate() {
            let mut tokens = example.ctx.iter().chain(example.endings.iter().flatten());
            if let Some(token) = tokens.find(|&&token| token as usize >= V) {
                let what = format!("example {i} has token {token}, but the model knows {V} tokens");
                anyhow::bail!("{}: {what}", self.path.display());
            }
        }
        let left_out = self.examples.iter().filter(|example| !example.fits(maxT)).count();
        ensure!(
            left_out < self.examples.len(),
            "{}: every example has an ending longer than the model's context of {maxT} tokens",
            self.path.display()
        );
        let (examples, all) = (count(left_out, "example"), self.examples.len());
        let why = format!("as an ending is longer than the model's context of {maxT} tokens");
        Ok((left_out > 0).then(|| format!("{}: leaves out {examples} of {all}, {why}", self.path.display())))
    }
}
