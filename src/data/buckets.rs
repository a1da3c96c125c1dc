//! The rows of a batch bucketed by token, so that the backward pass of the embedding adds all rows
//! of a token in one place.

/// The buckets of a batch, as [`ops::TokenBuckets`](crate::ops::TokenBuckets) takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBuckets {
    /// Indices of rows: those of one token adjacent, in ascending order.
    pub rows: Vec<i32>,
    /// Start of each bucket in `rows`, then the end of the last. The largest bucket comes first, so
    /// that it is not also the last to finish.
    pub starts: Vec<i32>,
}

impl TokenBuckets {
    /// Buckets `tokens`, which costs a sort: the thread that reads batches ahead does it.
    pub fn of(tokens: &[i32]) -> Self {
        let mut by_token: Vec<i32> = (0..tokens.len() as i32).collect();
        by_token.sort_by_key(|&row| tokens[row as usize]);
        let mut buckets: Vec<&[i32]> =
            by_token.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]).collect();
        buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.len()));
        let mut done = TokenBuckets { rows: Vec::with_capacity(tokens.len()), starts: vec![0] };
        for bucket in buckets {
            done.rows.extend_from_slice(bucket);
            done.starts.push(done.rows.len() as i32);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_are_adjacent_and_the_largest_bucket_is_first() {
        let buckets = TokenBuckets::of(&[5, 3, 9, 3, 5, 3]);
        assert_eq!(buckets, TokenBuckets { rows: vec![1, 3, 5, 0, 4, 2], starts: vec![0, 3, 5, 6] });
    }
}
