//! Learns a vocabulary from text: byte-level BPE over GPT-2's words.
//!
//! Words are counted, and then the pair of tokens that occurs most often becomes a token, until the
//! vocabulary is full. Of pairs that occur equally often, the one of the earlier tokens is taken,
//! so that the result depends on the text alone.

use super::split::Pattern;
use super::{BYTE_CHARS, EOT_TEXT, Tokenizer, Vocabulary};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Tokens of the smallest vocabulary: all bytes and the end-of-text token.
pub const SMALLEST: usize = 257;

/// How often a pair has to occur to become a token.
const LEAST: i64 = 2;

/// Longest word that is counted, in bytes: longer ones are not words.
const WORD_BYTES: usize = 256;

/// Most distinct words that are kept.
const MOST_WORDS: usize = if cfg!(test) { 4000 } else { 1 << 23 };

type Pair = (u32, u32);

/// Counts the words of texts.
///
/// Memory is bounded by [`MOST_WORDS`]: about 100 bytes each, so 0.8 GB at most. When there are
/// more, those seen once are forgotten, then those seen twice, and so on, until half are left.
/// Texts are added in an order that the number of threads does not change, so neither does it
/// change what is forgotten.
#[derive(Default)]
pub struct WordCounts(FxHashMap<Box<[u8]>, u64>);

impl WordCounts {
    /// Adds the words of texts, in parallel.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T]) {
        let count = |mut counts: FxHashMap<Box<[u8]>, u64>, text: &T| {
            for word in Pattern::Gpt2.words(text.as_ref()).filter(|word| word.len() <= WORD_BYTES) {
                match counts.get_mut(word.as_bytes()) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(word.as_bytes().into(), 1)),
                }
            }
            counts
        };
        let sum = |a: FxHashMap<Box<[u8]>, u64>, b: FxHashMap<Box<[u8]>, u64>| {
            let (mut large, small) = if a.len() < b.len() { (b, a) } else { (a, b) };
            small.into_iter().for_each(|(word, count)| *large.entry(word).or_default() += count);
            large
        };
        let added = texts.par_iter().fold(FxHashMap::default, count).reduce(FxHashMap::default, sum);
        self.0 = sum(std::mem::take(&mut self.0), added);
        let mut least = 1;
        while self.0.len() > MOST_WORDS {
            self.0.retain(|_, count| *count > least);
            least = if self.0.len() > MOST_WORDS / 2 { least + 1 } else { least };
        }
    }

    /// The number of distinct words.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Learns a vocabulary of `vocab_size` tokens: GPT-2's 256 bytes in its order, merges by rank, and
/// the end-of-text token last.
///
/// # Errors
/// If the size is out of range, or the text has too few pairs that repeat.
pub fn train(words: WordCounts, vocab_size: usize) -> Result<Tokenizer> {
    ensure!(
        (SMALLEST..=super::VOCAB_MAX as usize).contains(&vocab_size),
        "--vocab-size {vocab_size}: expected {SMALLEST} (all bytes and {EOT_TEXT}) to {}",
        super::VOCAB_MAX
    );
    let mut by_char: Vec<u8> = (0..=255).collect();
    by_char.sort_by_key(|&byte| BYTE_CHARS[usize::from(byte)]);
    let mut vocabulary = Vocabulary::default();
    by_char.iter().for_each(|&byte| vocabulary.push(&[byte]));
    Merger::new(words, &by_char).run(&mut vocabulary, vocab_size - 1);
    let found = vocabulary.len() + 1;
    ensure!(
        found == vocab_size,
        "--vocab-size {vocab_size}: the text has pairs that repeat for {found} tokens only; give that, or more text"
    );
    let eot = vocabulary.len() as u32;
    vocabulary.push(EOT_TEXT.as_bytes());
    Tokenizer::from_ranks(super::FILE_NAME.to_owned(), vocabulary, eot)
}

/// The words, as tokens so far, and the pairs in them.
struct Merger {
    words: Vec<(Vec<u32>, i64)>,
    counts: FxHashMap<Pair, i64>,
    /// Words that have, or once had, a pair.
    places: FxHashMap<Pair, Vec<u32>>,
    /// Pairs by count, not all of which are up to date.
    heap: BinaryHeap<(i64, Reverse<Pair>)>,
}

impl Merger {
    fn new(words: WordCounts, order: &[u8]) -> Self {
        let mut token = [0; 256];
        (0..).zip(order).for_each(|(id, &byte)| token[usize::from(byte)] = id);
        let tokens = |word: &[u8]| word.iter().map(|&byte| token[usize::from(byte)]).collect::<Vec<u32>>();
        let words = words.0.into_iter().filter(|(word, _)| word.len() > 1);
        let words: Vec<_> = words.map(|(word, count)| (tokens(&word), count.cast_signed())).collect();
        let (mut counts, mut places) =
            (FxHashMap::default(), FxHashMap::<Pair, Vec<u32>>::with_hasher(FxBuildHasher));
        for (index, (word, count)) in (0..).zip(&words) {
            for pair in pairs(word) {
                *counts.entry(pair).or_default() += count;
                let places = places.entry(pair).or_default();
                if places.last() != Some(&index) {
                    places.push(index);
                }
            }
        }
        let heap = counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
        Merger { words, counts, places, heap }
    }

    /// Adds tokens to the vocabulary until it has `size`, or no pair is left that repeats.
    fn run(mut self, vocabulary: &mut Vocabulary, size: usize) {
        let mut known: std::collections::HashSet<Vec<u8>> = std::collections::HashSet::new();
        while vocabulary.len() < size {
            let Some((count, Reverse(pair))) = self.heap.pop() else { return };
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now != count {
                // A pair that has become rarer is looked at again in its turn.
                if now >= LEAST {
                    self.heap.push((now, Reverse(pair)));
                }
                continue;
            }
            if count < LEAST {
                return;
            }
            let bytes = [pair.0, pair.1].map(|id| vocabulary.token_bytes(id).unwrap_or_default()).concat();
            // A text that is a token already stays one token, made of one pair.
            if known.insert(bytes.clone()) {
                self.merge(pair, vocabulary.len() as u32);
                vocabulary.push(&bytes);
            }
        }
    }

    /// Merges a pair in all words.
    fn merge(&mut self, pair: Pair, token: u32) {
        let mut changed: Vec<Pair> = Vec::new();
        for index in self.places.remove(&pair).unwrap_or_default() {
            let (word, count) = &mut self.words[index as usize];
            if !pairs(word).any(|found| found == pair) {
                continue;
            }
            for old in pairs(word) {
                *self.counts.entry(old).or_default() -= *count;
            }
            replace(word, pair, token);
            for new in pairs(word) {
                *self.counts.entry(new).or_default() += *count;
                if new.0 == token || new.1 == token {
                    let places = self.places.entry(new).or_default();
                    if places.last() != Some(&index) {
                        places.push(index);
                    }
                    changed.push(new);
                }
            }
        }
        self.counts.remove(&pair);
        changed.sort_unstable();
        changed.dedup();
        self.heap.extend(changed.into_iter().map(|pair| (self.counts[&pair], Reverse(pair))));
    }
}

fn pairs(word: &[u32]) -> impl Iterator<Item = Pair> {
    word.windows(2).map(|pair| (pair[0], pair[1]))
}

/// Replaces a pair in a word, from the left.
fn replace(word: &mut Vec<u32>, pair: Pair, token: u32) {
    let (mut read, mut write) = (0, 0);
    while read < word.len() {
        let found = read + 1 < word.len() && (word[read], word[read + 1]) == pair;
        word[write] = if found { token } else { word[read] };
        (read, write) = (read + 1 + usize::from(found), write + 1);
    }
    word.truncate(write);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::stories::story;
    use std::collections::HashMap;
    use tokenizers::Trainer;
    use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};

    fn stories(count: u64) -> Vec<String> {
        (0..count).map(|index| story(7, index)).collect()
    }

    fn counted(texts: &[String]) -> WordCounts {
        let mut words = WordCounts::default();
        texts.chunks(50).for_each(|texts| words.add(texts));
        words
    }

    /// A tokenizer of a few stories.
    pub fn trained(vocab_size: usize) -> Tokenizer {
        train(counted(&stories(100)), vocab_size).unwrap()
    }

    /// The tokens are those of the `tokenizers` crate's trainer, in the same order.
    #[test]
    fn the_vocabulary_is_that_of_the_crate() {
        let texts = stories(100);
        let ours = trained(601);
        let chars = |word: &[u8]| word.iter().map(|&byte| BYTE_CHARS[usize::from(byte)]).collect::<String>();
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(600)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(BYTE_CHARS.iter().copied().collect())
            .build();
        let words = |text: &str| Ok(Pattern::Gpt2.words(text).map(|word| chars(word.as_bytes())).collect());
        trainer.feed(texts.iter(), words).unwrap();
        let mut model = BPE::default();
        trainer.train(&mut model).unwrap();
        let found: HashMap<String, u32> =
            (0..600).map(|id| (chars(ours.token_bytes(id).unwrap()), id)).collect();
        assert_eq!(tokenizers::Model::get_vocab(&model), found);
        assert_eq!((ours.eot(), ours.eot_text(), ours.vocab_size()), (600, EOT_TEXT, 601));
        let text = &texts[3];
        assert_eq!(ours.decode_bytes(&ours.encode_ordinary(text)), text.as_bytes());
        assert!(ours.encode_ordinary(text).len() < Tokenizer::gpt2().encode_ordinary(text).len() * 2);
    }

    #[test]
    fn the_number_of_threads_changes_nothing_even_if_words_are_forgotten() {
        let odd: Vec<String> =
            (0..3000).map(|i| format!("{} w{} x{}", story(3, i), i * 7919, i % 400)).collect();
        let result = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let words = counted(&odd);
                assert!(words.len() <= MOST_WORDS && !words.is_empty());
                train(words, 700).unwrap()
            })
        };
        let (one, three) = (result(1), result(3));
        assert_eq!(one.id(), three.id());
        assert!(one.json() == three.json());
    }

    #[test]
    fn sizes_that_the_text_does_not_give_are_refused() {
        let refuse = |texts: &[&str], size| {
            let mut words = WordCounts::default();
            words.add(texts);
            train(words, size).unwrap_err().to_string()
        };
        assert!(refuse(&["a"], 256).contains("--vocab-size 256: expected 257"));
        assert!(refuse(&["a"], 2_000_000).contains("to 1048576"));
        let error = refuse(&["abc abc abd"], 1000);
        assert!(error.contains("pairs that repeat for 259 tokens only"), "{error}");
        assert_eq!(trained(257).vocab_size(), 257);
    }
}
