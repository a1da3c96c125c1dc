//! Byte-pair encoding of words: the pair of tokens whose merge has the lowest rank is merged, the
//! leftmost first, until none is left.

use super::split::Pattern;
use anyhow::{Context, Result};
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Tokens of a word beyond which a heap finds the next merge.
const SHORT: usize = 48;

/// An encoder of words.
pub struct Bpe {
    pattern: Pattern,
    /// The token of each byte.
    bytes: [u32; 256],
    /// For each pair that merges, its rank and the token that it becomes.
    merges: FxHashMap<(u32, u32), (u32, u32)>,
    /// Tokens that a word becomes at once, whatever the merges.
    whole: FxHashMap<Box<[u8]>, u32>,
    /// Tells the words of one encoder from those of another in a thread's cache.
    serial: u64,
}

impl Bpe {
    /// Makes an encoder of the tokens of all bytes, and of merges in the order of their ranks, each
    /// of two tokens into a third. Of a pair that is listed twice, the last counts.
    pub fn new(pattern: Pattern, bytes: [u32; 256], merges: &[[u32; 3]]) -> Bpe {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let mut ranks = FxHashMap::with_capacity_and_hasher(merges.len(), FxBuildHasher);
        for (rank, &[left, right, merged]) in (0..).zip(merges) {
            ranks.insert((left, right), (rank, merged));
        }
        let serial = SERIAL.fetch_add(1, Relaxed);
        Bpe { pattern, bytes, merges: ranks, whole: FxHashMap::default(), serial }
    }

    /// Makes words that are tokens of `vocabulary` that token, whatever the merges.
    pub fn with_whole_words<'a>(mut self, vocabulary: impl Iterator<Item = (u32, &'a [u8])>) -> Bpe {
        self.whole = vocabulary.map(|(token, bytes)| (bytes.into(), token)).collect();
        self
    }

    /// Derives the merges from a vocabulary in which each token is made of two that come before it,
    /// as GPT-2's: token by token, what the merges so far make of its bytes.
    ///
    /// # Errors
    /// If the vocabulary lacks a byte, or a token is not made of two others.
    pub fn from_ranks<'a>(
        pattern: Pattern,
        tokens: impl Iterator<Item = (u32, &'a [u8])> + Clone,
    ) -> Result<(Bpe, Vec<[u32; 3]>)> {
        let mut bytes = [None; 256];
        for (id, token) in tokens.clone() {
            if let &[byte] = token {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        let mut all = [0; 256];
        for (byte, token) in bytes.into_iter().enumerate() {
            all[byte] = token.with_context(|| format!("no token is the byte {byte}"))?;
        }
        let mut bpe = Bpe::new(pattern, all, &[]);
        let mut merges = Vec::new();
        for (id, token) in tokens.filter(|(_, token)| token.len() > 1) {
            let mut parts = Vec::new();
            bpe.merge(token, &mut parts);
            let &[left, right] = &parts[..] else {
                anyhow::bail!("token {id} is made of {} earlier tokens, expected 2", parts.len());
            };
            bpe.merges.insert((left, right), (merges.len() as u32, id));
            merges.push([left, right, id]);
        }
        Ok((bpe, merges))
    }

    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Whether a word that is a token becomes that token whatever the merges.
    pub fn has_whole_words(&self) -> bool {
        !self.whole.is_empty()
    }

    /// Encodes text without special tokens.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        CACHE.with_borrow_mut(|cache| {
            cache.belong_to(self.serial);
            for word in self.pattern.words(text) {
                cache.encode(self, word.as_bytes(), &mut tokens);
            }
        });
        tokens
    }

    /// Appends the tokens of a word.
    fn merge(&self, word: &[u8], out: &mut Vec<u32>) {
        if let Some(&token) = self.whole.get(word) {
            out.push(token);
            return;
        }
        let start = out.len();
        out.extend(word.iter().map(|&byte| self.bytes[usize::from(byte)]));
        if word.len() > SHORT {
            let merged = self.merge_long(&out[start..]);
            out.truncate(start);
            out.extend(merged);
            return;
        }
        let mut len = word.len();
        while let Some((at, token)) = self.lowest(&out[start..start + len]) {
            out[start + at] = token;
            out.copy_within(start + at + 2..start + len, start + at + 1);
            len -= 1;
        }
        out.truncate(start + len);
    }

    /// The place of the leftmost pair of the lowest rank, and what it becomes.
    fn lowest(&self, tokens: &[u32]) -> Option<(usize, u32)> {
        let ranked = tokens.windows(2).enumerate().filter_map(|(at, pair)| {
            let &(rank, token) = self.merges.get(&(pair[0], pair[1]))?;
            Some((rank, at, token))
        });
        ranked.min().map(|(_, at, token)| (at, token))
    }

    /// Merges a long word in n log n steps: tokens are a linked list, and a heap holds the pairs.
    fn merge_long(&self, word: &[u32]) -> Vec<u32> {
        const GONE: u32 = u32::MAX;
        let mut tokens = word.to_vec();
        let (mut next, mut before): (Vec<usize>, Vec<usize>) =
            (0..word.len()).map(|i| (i + 1, i.wrapping_sub(1))).unzip();
        let mut heap = BinaryHeap::new();
        let pair = |tokens: &[u32], left: usize, right: usize| {
            let &(rank, merged) = self.merges.get(&(tokens[left], *tokens.get(right)?))?;
            Some(Reverse((rank, left, merged)))
        };
        heap.extend((0..word.len()).filter_map(|i| pair(&tokens, i, i + 1)));
        while let Some(Reverse((rank, left, merged))) = heap.pop() {
            let right = next[left];
            // The pair may have changed since.
            if tokens[left] == GONE || pair(&tokens, left, right) != Some(Reverse((rank, left, merged))) {
                continue;
            }
            tokens[left] = merged;
            tokens[right] = GONE;
            next[left] = next[right];
            if let Some(link) = before.get_mut(next[left]) {
                *link = left;
            }
            heap.extend(pair(&tokens, left, next[left]));
            if before[left] < word.len() {
                heap.extend(pair(&tokens, before[left], left));
            }
        }
        tokens.retain(|&token| token != GONE);
        tokens
    }
}

/// Words that a thread keeps; a power of two.
const SLOTS: usize = 1 << 14;
/// Longest word that is kept, in bytes, and the most tokens of it.
const WORD_BYTES: usize = 23;
const WORD_TOKENS: usize = 5;

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache { serial: 0, slots: Vec::new() }) };
}

/// Words that a thread has seen, each in the slot that its hash selects: most of a text is made of
/// few words.
struct Cache {
    serial: u64,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Length of the word, 0 if the slot is free, and its bytes.
    len: u8,
    word: [u8; WORD_BYTES],
    count: u32,
    tokens: [u32; WORD_TOKENS],
}

impl Cache {
    fn belong_to(&mut self, serial: u64) {
        if self.serial != serial {
            self.slots.clear();
            self.slots.resize(SLOTS, Slot::default());
            self.serial = serial;
        }
    }

    #[inline]
    fn encode(&mut self, bpe: &Bpe, word: &[u8], out: &mut Vec<u32>) {
        if word.len() > WORD_BYTES {
            return bpe.merge(word, out);
        }
        let mut key = [0; WORD_BYTES];
        key[..word.len()].copy_from_slice(word);
        let hash = FxBuildHasher.hash_one(word);
        let slot = &mut self.slots[hash as usize % SLOTS];
        if usize::from(slot.len) == word.len() && slot.word == key {
            out.extend_from_slice(&slot.tokens[..slot.count as usize]);
            return;
        }
        let start = out.len();
        bpe.merge(word, out);
        let tokens = &out[start..];
        if tokens.len() <= WORD_TOKENS {
            (slot.len, slot.word, slot.count) = (word.len() as u8, key, tokens.len() as u32);
            slot.tokens[..tokens.len()].copy_from_slice(tokens);
        }
    }
}
