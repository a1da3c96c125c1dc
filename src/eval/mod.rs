//! How good a model is.

#[cfg(test)]
pub(crate) mod testing;
