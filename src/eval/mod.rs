//! How good a model is: loss on held-out text ([`validation`]) and multiple-choice accuracy ([`hellaswag`]).

pub mod hellaswag;
pub mod validation;

#[cfg(test)]
pub(crate) mod testing;
