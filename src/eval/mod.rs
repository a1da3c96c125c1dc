//! Model quality: loss on held-out text ([`validation`]), multiple-choice accuracy ([`hellaswag`]).

pub mod hellaswag;
pub mod validation;

#[cfg(test)]
pub(crate) mod testing;
