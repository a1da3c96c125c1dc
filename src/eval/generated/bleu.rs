//! BLEU (Papineni et al. 2002) of a corpus, as sacrebleu computes it by default: words as in
//! mteval-v13a, n-grams of up to four words, exponential smoothing.

use super::ngrams;
use crate::eval::is_space;
use std::collections::HashMap;

const ORDERS: usize = 4;

/// Counts of a corpus.
#[derive(Default)]
struct Counts {
    /// N-grams of predictions that are in a reference, by length.
    correct: [usize; ORDERS],
    /// N-grams of predictions.
    total: [usize; ORDERS],
    predicted_words: usize,
    reference_words: usize,
}

/// Returns the BLEU of predictions and their references, from 0 to 100.
pub fn bleu<'a>(pairs: impl Iterator<Item = (&'a str, &'a [String])>) -> f64 {
    let mut counts = Counts::default();
    for (prediction, references) in pairs {
        counts.add(prediction, references);
    }
    counts.bleu()
}

impl Counts {
    fn add(&mut self, prediction: &str, references: &[String]) {
        let words = tokenize(prediction);
        let references: Vec<_> = references.iter().map(|reference| tokenize(reference)).collect();
        // The closest length counts, of two the shorter.
        let lengths = references.iter().map(Vec::len);
        let closest = lengths.min_by_key(|&length| (length.abs_diff(words.len()), length));
        self.predicted_words += words.len();
        self.reference_words += closest.unwrap_or(0);
        for n in 1..=ORDERS {
            let mut allowed: HashMap<&[String], usize> = HashMap::new();
            for reference in &references {
                for (ngram, count) in ngrams(reference, n) {
                    let most = allowed.entry(ngram).or_default();
                    *most = count.max(*most);
                }
            }
            for (ngram, count) in ngrams(&words, n) {
                self.total[n - 1] += count;
                self.correct[n - 1] += count.min(allowed.get(ngram).copied().unwrap_or(0));
            }
        }
    }

    fn bleu(&self) -> f64 {
        // A corpus without n-grams of some length has no precision for it, and scores 0.
        if self.correct == [0; ORDERS] || self.total.contains(&0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let log_precision = |(&correct, &total): (&usize, &usize)| {
            let correct = match correct {
                0 => {
                    smoothing *= 2.0;
                    1.0 / smoothing
                }
                correct => correct as f64,
            };
            (100.0 * correct / total as f64).ln()
        };
        let logs: f64 = self.correct.iter().zip(&self.total).map(log_precision).sum();
        let (reference, predicted) = (self.reference_words as f64, self.predicted_words as f64);
        let brevity = if predicted < reference { (1.0 - reference / predicted).exp() } else { 1.0 };
        brevity * (logs / ORDERS as f64).exp()
    }
}

/// Splits a text into words as mteval-v13a does: punctuation stands apart, except within numbers.
fn tokenize(text: &str) -> Vec<String> {
    let mut text =
        text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, character);
    }
    let mut spaced = String::new();
    for c in format!(" {text} ").chars() {
        match c {
            '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/' => spaced.extend([' ', c, ' ']),
            _ => spaced.push(c),
        }
    }
    let (digit, stop) = (|c: char| c.is_ascii_digit(), |c: char| c == '.' || c == ',');
    let spaced = between(&spaced, |a, b| !digit(a) && stop(b), |a, b| [a, ' ', b, ' '].to_vec());
    let spaced = between(&spaced, |a, b| stop(a) && !digit(b), |a, b| [' ', a, ' ', b].to_vec());
    let spaced = between(&spaced, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' '].to_vec());
    spaced.split(is_space).filter(|word| !word.is_empty()).map(Into::into).collect()
}

/// Replaces pairs of neighbors, from the left and without overlap.
fn between(
    text: &str,
    is_pair: impl Fn(char, char) -> bool,
    put: impl Fn(char, char) -> Vec<char>,
) -> String {
    let (mut out, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        match chars.next_if(|&next| is_pair(c, next)) {
            Some(next) => out.extend(put(c, next)),
            None => out.push(c),
        }
    }
    out
}
