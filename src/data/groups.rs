//! Rows of a batch grouped by token, so that the backward pass of the embedding adds each token's rows in one place.

/// The groups of a batch, as a device wants them for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenGroups {
    /// Numbers of rows, those of one token side by side and ascending.
    pub rows: Vec<i32>,
    /// Where in `rows` each group starts, and its end. The largest group comes first, so that it is not also the last to be
    /// finished.
    pub starts: Vec<i32>,
}

impl TokenGroups {
    /// Takes the time of a sort: for the thread that reads batches ahead.
    pub fn of(tokens: &[i32]) -> Self {
        let mut by_token: Vec<i32> = (0..tokens.len() as i32).collect();
        by_token.sort_by_key(|&row| tokens[row as usize]);
        let mut groups: Vec<&[i32]> =
            by_token.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        let mut done = TokenGroups { rows: Vec::with_capacity(tokens.len()), starts: vec![0] };
        for group in groups {
            done.rows.extend_from_slice(group);
            done.starts.push(done.rows.len() as i32);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_are_side_by_side_and_the_largest_group_is_first() {
        let groups = TokenGroups::of(&[5, 3, 9, 3, 5, 3]);
        assert_eq!(groups, TokenGroups { rows: vec![1, 3, 5, 0, 4, 2], starts: vec![0, 3, 5, 6] });
    }
}
