//! HellaSwag (Zellers et al. 2019): which of four endings continues a text. Random guessing gets 25 %, GPT-2 124M
//! 29.55 % (`acc_norm`).
//!
//! Scored in "completion style": an ending is as likely as the model's loss over its tokens, given the context, is
//! low. [`files`] reads and writes the examples, [`score`] scores them.

mod files;
mod score;

pub use score::{Evaluation, HellaSwagScore, Item, evaluate};

use std::path::PathBuf;

/// Endings of each example.
pub const ENDINGS: usize = 4;

/// A text and four ways for it to go on, as GPT-2 tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Not empty: the first token of an ending is predicted from it.
    pub ctx: Vec<u16>,
    /// Not empty; each begins with the space that parts it from the context.
    pub endings: [Vec<u16>; ENDINGS],
    /// Which ending is the right one.
    pub label: usize,
}

impl Example {
    /// Tokens of the context with the longest of its endings.
    pub fn longest(&self) -> usize {
        self.ctx.len() + self.endings.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug)]
pub struct HellaSwag {
    /// Where they come from, for messages.
    pub path: PathBuf,
    pub examples: Vec<Example>,
}

impl HellaSwag {
    /// Tokens of the longest row. A model whose buffers hold this many rows, or `maxT` if that is less, can
    /// evaluate all examples; one that holds several times as many does it faster.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(Example::longest).max().unwrap_or(0)
    }
}
