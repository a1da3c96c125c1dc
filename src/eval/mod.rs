//! Model quality: loss on held-out shards ([`validation`]) and on any [`text`], accuracy on
//! [`tasks`], and how close text that a model writes comes to references ([`generated`]).

pub mod generated;
mod rows;
pub mod tasks;
pub mod text;
pub mod validation;

/// Whether Python's `str.isspace` holds, whose set has four separators more than Unicode's.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
pub(crate) mod testing;
