//! Model quality: loss on held-out text ([`validation`]), accuracy on [`tasks`].

pub mod tasks;
pub mod validation;

#[cfg(test)]
pub(crate) mod testing;
