//! Whole documents packed into sequences of T rows, each sequence a sample.
//!
//! A document is a run of rows: each an input, and one token on, its target. Documents go by
//! decreasing length, each into the sequence that it leaves the least room in (best fit). So the
//! sequences are the same in every epoch, for any batch and any number of ranks; only their order
//! is drawn anew. The position is an epoch and a sequence in it.

use super::LoaderState;
use super::permutation::Permutation;
use crate::data::filter::words::mix;
use anyhow::{Result, ensure};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Seed of all orders, as in llm.c.
const SEED: u64 = 42;

/// A document, or the part of one that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) struct Document {
    /// Its first token in all shards.
    pub start: u64,
    /// Inputs; the last target is one token on.
    pub rows: u32,
    /// The rows whose target counts.
    pub counted: u32,
}

/// See the [module](self). It takes 24 bytes per document.
#[derive(Debug)]
pub(in crate::data) struct PackedOrder {
    documents: Vec<Document>,
    /// Indices of documents, sequence by sequence.
    members: Vec<u32>,
    /// Index in `members` of each sequence's first document, and the end of the last.
    firsts: Vec<u32>,
    is_shuffled: bool,
}

/// A position in that order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::data) struct PackedPosition {
    epoch: u64,
    sequence: u64,
}

impl PackedOrder {
    /// Packs documents of at most `T` rows. Sequences without a document are added until `multiple`
    /// divides their number.
    pub fn new(documents: Vec<Document>, T: usize, multiple: usize, is_shuffled: bool) -> Self {
        let sequence_of = best_fit(&documents, T);
        let sequences = sequence_of.iter().max().map_or(0, |&last| last as usize + 1);
        let mut firsts = vec![0; sequences + 1];
        for &sequence in &sequence_of {
            firsts[sequence as usize + 1] += 1;
        }
        for sequence in 0..sequences {
            firsts[sequence + 1] += firsts[sequence];
        }
        let mut members: Vec<u32> = (0..documents.len() as u32).collect();
        members.sort_by_key(|&document| sequence_of[document as usize]);
        firsts.resize(sequences.next_multiple_of(multiple) + 1, documents.len() as u32);
        PackedOrder { documents, members, firsts, is_shuffled }
    }

    /// Sequences in an epoch.
    pub fn sequences(&self) -> u64 {
        self.firsts.len() as u64 - 1
    }

    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Moves past the next sequence and returns its index.
    pub fn step(&self, position: &mut PackedPosition) -> usize {
        if position.sequence == self.sequences() {
            *position = PackedPosition { epoch: position.epoch + 1, sequence: 0 };
        }
        let PackedPosition { epoch, sequence } = *position;
        position.sequence += 1;
        let order = Permutation::new(self.sequences(), mix(SEED) ^ epoch);
        (if self.is_shuffled { order.at(sequence) } else { sequence }) as usize
    }

    /// The documents of a sequence, in the order of the shards.
    pub fn members(&self, sequence: usize) -> impl Iterator<Item = Document> + '_ {
        let range = self.firsts[sequence] as usize..self.firsts[sequence + 1] as usize;
        self.members[range].iter().map(|&document| self.documents[document as usize])
    }

    /// The rows of a sequence that count.
    pub fn counted(&self, sequence: usize) -> usize {
        self.members(sequence).map(|document| document.counted as usize).sum()
    }

    /// The state at a position: the epoch stands for llm.c's shard.
    pub fn state(&self, position: PackedPosition) -> LoaderState {
        let PackedPosition { epoch, sequence } = position;
        LoaderState { current_shard_idx: epoch, current_sample_idx: sequence, shuffle: None }
    }

    /// Converts a saved state to a position.
    ///
    /// # Errors
    /// If the state belongs to other data or an order of another kind.
    pub fn check(&self, state: &LoaderState) -> Result<PackedPosition> {
        let (sequence, sequences) = (state.current_sample_idx, self.sequences());
        ensure!(
            state.shuffle.is_none() && sequence <= sequences,
            "the checkpoint comes from a run that read its data in another order, or is at sequence {sequence} of \
             {sequences}; resume with the -i, -t and --shuffle of that run"
        );
        Ok(PackedPosition { epoch: state.current_shard_idx, sequence })
    }
}

/// Returns the sequence of each document. Sequences are numbered by their first document.
fn best_fit(documents: &[Document], T: usize) -> Vec<u32> {
    let mut by_length: Vec<u32> = (0..documents.len() as u32).collect();
    by_length.sort_by_key(|&document| Reverse(documents[document as usize].rows));
    // Sequences by the rows that are left in them.
    let mut open = BTreeMap::<usize, Vec<u32>>::new();
    let (mut found, mut sequences) = (vec![0; documents.len()], 0);
    for document in by_length {
        let rows = documents[document as usize].rows as usize;
        assert!(rows <= T, "a document of {rows} rows in a sequence of {T}");
        let (room, sequence) = match open.range_mut(rows..).next() {
            Some((&room, these)) => {
                let sequence = these.pop().expect("rooms without a sequence are removed");
                if these.is_empty() {
                    open.remove(&room);
                }
                (room, sequence)
            }
            None => {
                sequences += 1;
                (T, sequences - 1)
            }
        };
        if room > rows {
            open.entry(room - rows).or_default().push(sequence);
        }
        found[document as usize] = sequence;
    }
    let (mut numbers, mut numbered) = (vec![u32::MAX; sequences as usize], 0);
    for sequence in &mut found {
        let number = &mut numbers[*sequence as usize];
        if *number == u32::MAX {
            (*number, numbered) = (numbered, numbered + 1);
        }
        *sequence = *number;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(lengths: &[u32], multiple: usize, is_shuffled: bool) -> PackedOrder {
        let mut start = 0;
        let document = |&rows: &u32| {
            start += u64::from(rows) + 1;
            Document { start: start - u64::from(rows) - 1, rows, counted: rows.div_ceil(2) }
        };
        PackedOrder::new(lengths.iter().map(document).collect(), 10, multiple, is_shuffled)
    }

    fn lengths(order: &PackedOrder) -> Vec<Vec<u32>> {
        (0..order.sequences() as usize).map(|s| order.members(s).map(|d| d.rows).collect()).collect()
    }

    #[test]
    fn documents_fill_the_smallest_room_that_holds_them() {
        let packed = order(&[3, 8, 2, 10, 5, 1, 6, 4], 1, false);
        assert_eq!(lengths(&packed), [vec![3, 2, 5], vec![8, 1], vec![10], vec![6, 4]]);
        assert_eq!(packed.counted(0), 2 + 1 + 3);
        let padded = order(&[3, 8], 4, false);
        assert_eq!(lengths(&padded), [vec![3], vec![8], vec![], vec![]]);
        assert_eq!(padded.counted(3), 0);
    }

    #[test]
    fn every_document_is_in_one_sequence_that_it_fits() {
        let mut random = 7u64;
        let all: Vec<u32> = (0..2000)
            .map(|_| {
                random = mix(random);
                1 + (random % 10) as u32
            })
            .collect();
        let packed = order(&all, 1, false);
        let mut seen: Vec<u64> = Vec::new();
        for sequence in 0..packed.sequences() as usize {
            let rows: u32 = packed.members(sequence).map(|d| d.rows).sum();
            assert!((1..=10).contains(&rows));
            seen.extend(packed.members(sequence).map(|d| d.start));
        }
        seen.sort_unstable();
        assert!(seen.iter().eq(packed.documents().iter().map(|d| &d.start)));
        // The bound of best fit by decreasing length (Johnson 1973).
        let least = u64::from(all.iter().sum::<u32>().div_ceil(10));
        assert!(packed.sequences() <= least * 11 / 9 + 4, "{} of {least}", packed.sequences());
    }

    #[test]
    fn an_epoch_reads_each_sequence_once_in_an_order_of_its_own() {
        let packed = order(&[9; 50], 1, true);
        let mut position = PackedPosition::default();
        let epochs: Vec<Vec<usize>> =
            (0..3).map(|_| (0..50).map(|_| packed.step(&mut position)).collect()).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..50));
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        let mut again = packed.check(&packed.state(PackedPosition { epoch: 1, sequence: 50 })).unwrap();
        assert_eq!(packed.step(&mut again), epochs[2][0]);
        let beyond = LoaderState { current_shard_idx: 0, current_sample_idx: 51, shuffle: None };
        assert!(packed.check(&beyond).is_err());
    }
}
