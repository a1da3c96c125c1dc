//! The rows of a batch sorted by token, so that the backward pass of the embedding adds all rows of
//! a token in one place.

/// Returns the indices of `tokens`: those of one token adjacent, in ascending order, and the most
/// frequent token first, so that it is not also the last to finish. This costs a sort: the thread
/// that reads batches ahead does it.
pub fn rows_by_token(tokens: &[i32]) -> Vec<i32> {
    let mut by_token: Vec<i32> = (0..tokens.len() as i32).collect();
    by_token.sort_by_key(|&row| tokens[row as usize]);
    let mut buckets: Vec<&[i32]> =
        by_token.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]).collect();
    buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.len()));
    buckets.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_are_adjacent_and_the_most_frequent_is_first() {
        assert_eq!(rows_by_token(&[5, 3, 9, 3, 5, 3]), [1, 3, 5, 0, 4, 2]);
    }
}
