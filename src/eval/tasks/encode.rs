//! A context and a continuation as tokens, split where `lm_eval` splits them.

use crate::data::tokenizer::Tokenizer;
use crate::eval::is_space;
use anyhow::{Result, ensure};

/// Encodes a continuation after a context; returns the tokens of both.
///
/// Both are encoded as one text, and the continuation gets the tokens after as many as the context
/// has alone. White space that ends the context belongs to the continuation, because GPT-2's tokens
/// begin with their space. Nothing before the continuation stands for the end-of-text token.
///
/// # Errors
/// If no token is left for the continuation or its context.
pub fn pair(tokenizer: &Tokenizer, ctx: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let (ctx, tokens) = if ctx.is_empty() {
        let mut tokens = tokenizer.encode(continuation);
        match tokens.first() == Some(&tokenizer.eot()) {
            true => (vec![tokens.remove(0)], tokens),
            false => (vec![tokenizer.eot()], tokens),
        }
    } else {
        let stem = ctx.trim_end_matches(is_space);
        let whole = tokenizer.encode(&[ctx, continuation].concat());
        let ctx = tokenizer.encode(stem);
        let tokens = whole.get(ctx.len()..).unwrap_or_default().to_vec();
        (ctx, tokens)
    };
    ensure!(!ctx.is_empty(), "a context is all white space");
    ensure!(!tokens.is_empty(), "the choice {continuation:?} has no tokens");
    Ok((ctx, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ctx: &str, continuation: &str) -> (Vec<u32>, Vec<u32>) {
        pair(&Tokenizer::gpt2(), ctx, continuation).unwrap()
    }

    /// The numbers are tiktoken's.
    #[test]
    fn a_pair_is_split_where_the_context_alone_ends() {
        assert_eq!(ids("The cat", " sat"), (vec![464, 3797], vec![3332]));
        // The space moves to the continuation.
        assert_eq!(ids("The cat ", "sat"), (vec![464, 3797], vec![3332]));
        assert_eq!(ids("The cat\u{1c}", "sat").0, [464, 3797]);
        assert_eq!(ids("", " sat"), (vec![50256], vec![3332]));
        assert_eq!(ids("", "<|endoftext|> sat"), (vec![50256], vec![3332]));
        assert_eq!(ids("The<|endoftext|>", " sat"), (vec![464, 50256], vec![3332]));
    }

    /// "mat" is one token, and so is "m"; nothing is left for "at".
    #[test]
    fn a_choice_without_tokens_is_an_error() {
        let error = |ctx, text| pair(&Tokenizer::gpt2(), ctx, text).unwrap_err().to_string();
        assert_eq!(error("The m", "at"), "the choice \"at\" has no tokens");
        assert_eq!(error("", ""), "the choice \"\" has no tokens");
        assert_eq!(error(" \n", "at"), "a context is all white space");
    }
}
