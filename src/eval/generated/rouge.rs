//! ROUGE (Lin 2004) as rouge-score computes it: F1 over words and pairs of words, and over the
//! longest common subsequence, of words of small ASCII letters and digits without stemming.

use super::ngrams;

/// F1 scores from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    pub rouge1: f64,
    pub rouge2: f64,
    pub rouge_l: f64,
}

/// Returns the scores of a prediction; of several references the best counts, for each score.
pub fn rouge(prediction: &str, references: &[String]) -> Rouge {
    let predicted = tokenize(prediction);
    references.iter().map(|reference| score(&predicted, &tokenize(reference))).fold(
        Rouge::default(),
        |best, next| Rouge {
            rouge1: best.rouge1.max(next.rouge1),
            rouge2: best.rouge2.max(next.rouge2),
            rouge_l: best.rouge_l.max(next.rouge_l),
        },
    )
}

fn score(predicted: &[String], reference: &[String]) -> Rouge {
    let shared = |n: usize| {
        let (ours, theirs) = (ngrams(predicted, n), ngrams(reference, n));
        let common = theirs.iter().map(|(ngram, count)| ours.get(ngram).copied().unwrap_or(0).min(*count));
        f1(common.sum(), ours.values().sum(), theirs.values().sum())
    };
    let longest = common_subsequence(predicted, reference);
    Rouge { rouge1: shared(1), rouge2: shared(2), rouge_l: f1(longest, predicted.len(), reference.len()) }
}

/// The harmonic mean of precision and recall.
fn f1(common: usize, predicted: usize, reference: usize) -> f64 {
    let [precision, recall] = [predicted, reference].map(|all| common as f64 / all.max(1) as f64);
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

/// The length of the longest common subsequence, by dynamic programming over one row.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

fn tokenize(text: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let small = text.to_lowercase();
    small.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(Into::into).collect()
}
