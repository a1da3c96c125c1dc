//! HellaSwag (Zellers et al. 2019): which of four endings continues a text. Random guessing scores
//! 25 %, GPT-2 124M 29.55 % (`acc_norm`).
//!
//! Scoring is "completion style": the model chooses the ending whose tokens have the lowest loss
//! given the context. [`files`] reads and writes the examples, [`score`] scores them.

mod files;
mod score;

pub use score::{Evaluation, HellaSwagScore, Item, evaluate};

use std::path::PathBuf;

/// Endings per example.
pub const ENDINGS: usize = 4;

/// A context and four endings, as GPT-2 tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Not empty: the first token of an ending is predicted from it.
    pub ctx: Vec<u16>,
    /// Not empty; each begins with the space that separates it from the context.
    pub endings: [Vec<u16>; ENDINGS],
    /// The index of the right ending.
    pub label: usize,
}

impl Example {
    /// The number of tokens in the context and its longest ending.
    pub fn longest(&self) -> usize {
        self.ctx.len() + self.endings.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug)]
pub struct HellaSwag {
    /// The file, for messages.
    pub path: PathBuf,
    pub examples: Vec<Example>,
}

impl HellaSwag {
    /// The number of tokens in the longest row. A model whose buffers hold this many rows, or
    /// `maxT` if that is less, can evaluate all examples; larger buffers are faster.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(Example::longest).max().unwrap_or(0)
    }
}
