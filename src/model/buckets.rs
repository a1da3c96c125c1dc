//! Rows of a batch grouped by token, so that the backward pass of the embedding adds each token's rows in one place.

/// The groups of a batch on the host; see [`TokenBuckets`](crate::ops::TokenBuckets).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostBuckets {
    /// Numbers of rows, those of one token side by side and ascending.
    pub rows: Vec<i32>,
    /// Where in `rows` each group starts, and its end. The largest group comes first, so that it is not also the last to be
    /// finished.
    pub starts: Vec<i32>,
}

impl HostBuckets {
    pub fn group(tokens: &[i32]) -> Self {
        let mut by_token: Vec<i32> = (0..tokens.len() as i32).collect();
        by_token.sort_by_key(|&row| tokens[row as usize]);
        let mut groups: Vec<&[i32]> =
            by_token.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        let mut buckets = HostBuckets { rows: Vec::with_capacity(tokens.len()), starts: vec![0] };
        for group in groups {
            buckets.rows.extend_from_slice(group);
            buckets.starts.push(buckets.rows.len() as i32);
        }
        buckets
    }

    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_are_side_by_side_and_the_largest_group_is_first() {
        let buckets = HostBuckets::group(&[5, 3, 9, 3, 5, 3]);
        assert_eq!(buckets, HostBuckets { rows: vec![1, 3, 5, 0, 4, 2], starts: vec![0, 3, 5, 6] });
        assert_eq!(buckets.count(), 3);
    }
}
