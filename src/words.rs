//! The grammar of messages.

use std::fmt::Display;

/// Returns `1 shard`, `2 shards`: a number and what it counts. `noun` takes a plain `s`.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        assert_eq!([0u64, 1, 2].map(|n| count(n, "shard")), ["0 shards", "1 shard", "2 shards"]);
        assert_eq!(count(1usize, "example"), "1 example");
    }
}
