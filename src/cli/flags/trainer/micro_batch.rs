//! The number of sequences in a micro-batch, or that it is to be found.

use crate::cli::values;
use std::str::FromStr;

/// The value of `-b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MicroBatch {
    /// As many sequences as fit into memory.
    Auto,
    Of(usize),
}

impl FromStr for MicroBatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(MicroBatch::Auto),
            _ => values::count(text)
                .map(MicroBatch::Of)
                .map_err(|error| error.replacen("expected ", "expected auto or ", 1)),
        }
    }
}
