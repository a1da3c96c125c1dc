//! Draws the validation text from all of the input.

use crate::data::filter::words::mix;
use std::collections::BTreeMap;

/// Tokens of a document; of a plain text of more than 64 KiB, tokens of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    /// Place in the input, counted from 0.
    pub index: u64,
    /// Whether the tokens begin with that of the end of text.
    pub starts_document: bool,
    pub tokens: Vec<u32>,
}

/// A draw without replacement: each passage has a random number, which depends on its index and the
/// seed alone, and those with the smallest numbers are held. So one pass over the input is enough,
/// and the result does not depend on threads. The held tokens, 4 bytes each, are few more than
/// wanted.
pub(super) struct Draw {
    wanted: u64,
    seed: u64,
    /// Passages by their random number, and index.
    held: BTreeMap<(u64, u64), Passage>,
    tokens: u64,
}

impl Draw {
    pub fn new(wanted: u64, seed: u64) -> Self {
        Draw { wanted, seed, held: BTreeMap::new(), tokens: 0 }
    }

    pub fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Takes a passage. Returns those that are certain not to be drawn.
    pub fn add(&mut self, passage: Passage) -> Vec<Passage> {
        let key = (mix(mix(self.seed) ^ passage.index), passage.index);
        let is_full = self.tokens >= self.wanted;
        if is_full && self.held.last_key_value().is_some_and(|(last, _)| *last < key) {
            return vec![passage];
        }
        self.tokens += passage.tokens.len() as u64;
        self.held.insert(key, passage);
        let mut left_out = Vec::new();
        while let Some(last) = self.held.last_entry() {
            let others = self.tokens - last.get().tokens.len() as u64;
            if others < self.wanted {
                break;
            }
            self.tokens = others;
            left_out.push(last.remove());
        }
        left_out
    }

    /// Returns the passages drawn, in the order of the input: exactly as many tokens as wanted, if
    /// there are that many. What is cut off the last one that was drawn is returned as well.
    pub fn finish(mut self) -> (Vec<Passage>, Option<Passage>) {
        let excess = self.tokens.saturating_sub(self.wanted) as usize;
        let rest = self.held.last_entry().filter(|_| excess > 0).map(|mut last| {
            let passage = last.get_mut();
            let tokens = passage.tokens.split_off(passage.tokens.len() - excess);
            // It follows no other passage: its start is drawn.
            Passage { tokens, starts_document: false, index: u64::MAX }
        });
        let mut drawn: Vec<Passage> = self.held.into_values().collect();
        drawn.sort_by_key(|passage| passage.index);
        (drawn, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passages(lens: &[usize]) -> Vec<Passage> {
        let passage = |(index, &len): (usize, &usize)| Passage {
            index: index as u64,
            starts_document: true,
            tokens: vec![index as u32; len],
        };
        lens.iter().enumerate().map(passage).collect()
    }

    fn tokens(passages: &[Passage]) -> Vec<u32> {
        passages.iter().flat_map(|p| p.tokens.clone()).collect()
    }

    fn drawn(lens: &[usize], wanted: u64, seed: u64) -> (Vec<u32>, Vec<u32>) {
        let mut draw = Draw::new(wanted, seed);
        let mut train: Vec<Passage> = passages(lens).into_iter().flat_map(|p| draw.add(p)).collect();
        let (val, rest) = draw.finish();
        train.extend(rest);
        (tokens(&val), tokens(&train))
    }

    #[test]
    fn the_wanted_tokens_are_drawn_from_all_of_the_input() {
        let lens: Vec<usize> = (0..1000).map(|i| 1 + i % 13).collect();
        let total: usize = lens.iter().sum();
        let (val, train) = drawn(&lens, 700, 42);
        assert_eq!((val.len(), val.len() + train.len()), (700, total));
        assert!(val.is_sorted() && val.iter().any(|&t| t < 200) && val.iter().any(|&t| t > 800));
        let mut all = [val.clone(), train].concat();
        all.sort_unstable();
        assert_eq!(all, tokens(&passages(&lens)));
        assert_eq!(drawn(&lens, 700, 42).0, val);
        assert_ne!(drawn(&lens, 700, 43).0, val);
    }

    #[test]
    fn a_single_passage_is_cut() {
        assert_eq!(drawn(&[10], 4, 1), (vec![0; 4], vec![0; 6]));
        assert_eq!(drawn(&[3], 4, 1), (vec![0; 3], vec![]));
        assert_eq!(drawn(&[4], 4, 1), (vec![0; 4], vec![]));
        assert_eq!(drawn(&[], 4, 1), (vec![], vec![]));
    }
}
