//! Removes documents that have been seen before: the same text, or nearly.

use super::words::{hashed_words, mix, runs};
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Words per run whose presence is compared.
const RUN_WORDS: usize = 5;

/// Bands of a signature, and hash functions per band: those of FineWeb. Documents that share a
/// share s of their runs meet with probability 1 - (1 - s^8)^14: 0.21 at 0.6, 0.56 at 0.7, 0.92 at
/// 0.8, 0.9996 at 0.9.
const BANDS: usize = 14;
const ROWS: usize = 8;
const HASHES: usize = BANDS * ROWS;

/// Duplicates that are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// The same text but for case and white space.
    Exact,
    /// Texts that share about 80 % or more of their runs of five words.
    Minhash,
}

/// The trace of a document by which another like it is recognized.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fingerprint {
    Text(u128),
    /// A key per band of the MinHash signature.
    Bands(Box<[u64; BANDS]>),
}

impl Fingerprint {
    pub fn of(text: &str, dedup: Dedup) -> Self {
        match dedup {
            Dedup::Exact => Fingerprint::Text(hash_text(text)),
            Dedup::Minhash => Fingerprint::Bands(Box::new(bands(text))),
        }
    }
}

/// Fingerprints of the documents kept so far: 16 bytes per document (exact) or 14 times 8 (MinHash),
/// in a table with a byte more for each, of which a half to seven eighths is in use.
#[derive(Default)]
pub(super) struct Seen {
    texts: HashSet<u128>,
    bands: HashSet<u64>,
}

impl Seen {
    /// Returns whether a document is like an earlier one; if not, it is remembered.
    pub fn has(&mut self, fingerprint: &Fingerprint) -> bool {
        match fingerprint {
            Fingerprint::Text(hash) => !self.texts.insert(*hash),
            Fingerprint::Bands(keys) => {
                let seen = keys.iter().any(|key| self.bands.contains(key));
                if !seen {
                    self.bands.extend(keys.iter());
                }
                seen
            }
        }
    }
}

/// Hashes a text in lower case, with white space made equal.
fn hash_text(text: &str) -> u128 {
    let mut hasher = Sha256::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        line.clear();
        line.extend(word.chars().flat_map(char::to_lowercase));
        line.push(' ');
        hasher.update(&line);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    u128::from_le_bytes(digest[..16].try_into().expect("16 of 32 bytes"))
}

/// Computes the keys of the MinHash signature: for each hash function the smallest value of any
/// run, hashed together band by band.
fn bands(text: &str) -> [u64; BANDS] {
    let functions: [(u64, u64); HASHES] =
        std::array::from_fn(|i| (mix(2 * i as u64) | 1, mix(2 * i as u64 + 1)));
    let mut least = [u32::MAX; HASHES];
    for run in runs(&hashed_words(text), RUN_WORDS) {
        for (least, (factor, summand)) in least.iter_mut().zip(&functions) {
            let value = (run.wrapping_mul(*factor).wrapping_add(*summand) >> 32) as u32;
            *least = value.min(*least);
        }
    }
    let key = |band: usize| {
        let rows = &least[band * ROWS..(band + 1) * ROWS];
        rows.iter().fold(band as u64, |key, &row| mix(key ^ u64::from(row)))
    };
    std::array::from_fn(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, words: u64) -> Vec<String> {
        (0..words).map(|i| format!("w{}", mix(seed * 1_000_003 + i) % 5000)).collect()
    }

    /// Replaces every `step`th word.
    fn altered(words: &[String], step: usize) -> String {
        let replaced = words.iter().enumerate();
        replaced.map(|(i, w)| if i % step == 0 { format!("x{i} ") } else { format!("{w} ") }).collect()
    }

    #[test]
    fn the_same_text_is_recognized_whatever_its_case_and_spaces() {
        let mut seen = Seen::default();
        let mut has = |text: &str| seen.has(&Fingerprint::of(text, Dedup::Exact));
        assert!(!has("A fine Day.\n"));
        assert!(has("a  fine\tday."));
        assert!(!has("a fine day") && !has("afineday.") && !has("") && has(" "));
    }

    #[test]
    fn texts_meet_by_the_share_of_runs_they_have_in_common() {
        let found = |step: usize| {
            let is_found = |seed: &u64| {
                let (mut seen, words) = (Seen::default(), text(*seed, 400));
                assert!(!seen.has(&Fingerprint::of(&words.join(" "), Dedup::Minhash)));
                seen.has(&Fingerprint::of(&altered(&words, step), Dedup::Minhash))
            };
            (0..40).filter(is_found).count()
        };
        // One word in 50 changes 5 of 50 runs, so 45 of 55 are shared: 0.82. One in 100: 0.9; one
        // in 20: 0.6; one in 8: 0.23.
        let counts = [100, 50, 20, 8].map(found);
        assert!(counts[0] >= 39 && counts[1] >= 33 && counts[2] <= 16 && counts[3] == 0, "{counts:?}");
        let mut seen = Seen::default();
        let mut has = |text: &str| seen.has(&Fingerprint::of(text, Dedup::Minhash));
        assert!(!has("a b") && !has("a c") && has("A, b") && !has("") && has("..."));
    }
}
