//! Leaves documents out of a corpus: duplicates, texts of evaluation sets, documents that are too
//! short, too long, or in other scripts.
//!
//! What a document is judged by depends on it alone and is computed in parallel; duplicates are
//! then decided in the order of the documents. So the number of threads changes nothing.

mod dedup;
mod evaluation;
mod scripts;
pub(super) mod words;

use crate::words::count;
use anyhow::{Result, ensure};
pub use dedup::Dedup;
use dedup::{Fingerprint, Seen};
use evaluation::{EvaluationSets, RUN_WORDS};
use rayon::prelude::*;
pub use scripts::MIN_SHARE;
use scripts::Scripts;
use std::borrow::Cow;
use std::path::PathBuf;

/// Bytes of a document by which it is judged. The rest of a longer one shares its fate.
pub(super) const JUDGED_BYTES: usize = if cfg!(test) { 1 << 18 } else { 1 << 24 };

/// Most characters that the limits of length can name: any longer document is longer than its
/// judged bytes can tell.
const MOST_CHARS: usize = JUDGED_BYTES / 4;

/// Examples that are kept of each reason.
const EXAMPLES: usize = 3;

/// Characters of text in an example.
const EXAMPLE_CHARS: usize = 60;

/// The documents to leave out. By default, none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterOptions {
    pub dedup: Option<Dedup>,
    /// Evaluation sets: a document that has 13 words in a row from one is left out.
    pub decontaminate: Vec<PathBuf>,
    /// Characters that a document must have, and may have.
    pub min_chars: Option<usize>,
    pub max_chars: Option<usize>,
    /// Unicode's names of the scripts to which [`MIN_SHARE`] of a document's letters must belong;
    /// empty for any.
    pub scripts: Vec<String>,
}

impl FilterOptions {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The reasons to leave a document out, in the order in which they are tried.
#[derive(Clone, Copy)]
enum Reason {
    TooShort,
    TooLong,
    Scripts,
    Contaminated,
    Duplicate,
}

/// The documents that were left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The reason, with its limit.
    pub reason: String,
    pub documents: u64,
    /// Bytes of text, as far as they were judged.
    pub bytes: u64,
    /// The first few, one line each.
    pub examples: Vec<String>,
}

/// A document as it is judged.
enum Judged {
    Kept(Option<Fingerprint>),
    Removed(Reason, String),
}

/// Decides which documents stay.
pub(super) struct Filter {
    options: FilterOptions,
    scripts: Option<Scripts>,
    evaluation: EvaluationSets,
    seen: Seen,
    /// The documents left out, by reason.
    removed: [Removed; 5],
}

impl Filter {
    /// Prepares to judge documents.
    ///
    /// # Errors
    /// One line, if an evaluation set cannot be read, a script is unknown, or a limit is out of
    /// range.
    pub fn new(options: &FilterOptions) -> Result<Self> {
        let FilterOptions { min_chars, max_chars, scripts, decontaminate, dedup } = options;
        for (flag, limit) in [("--min-chars", min_chars), ("--max-chars", max_chars)] {
            if let Some(limit) = limit {
                ensure!(*limit <= MOST_CHARS, "{flag} {limit}: expected at most {MOST_CHARS}");
            }
        }
        let min = min_chars.unwrap_or(0);
        let max = max_chars.unwrap_or(MOST_CHARS);
        ensure!(min <= max, "--min-chars {min}: expected at most --max-chars {max}");
        let names = scripts.join(", ");
        let reasons = [
            format!("fewer than {min} characters"),
            format!("more than {max} characters"),
            format!("less than {:.0} % of letters in {names}", MIN_SHARE * 100.0),
            format!("{RUN_WORDS} words in a row from an evaluation set"),
            match dedup {
                Some(Dedup::Minhash) => "nearly the text of an earlier document".to_owned(),
                _ => "the text of an earlier document".to_owned(),
            },
        ];
        Ok(Filter {
            options: options.clone(),
            scripts: (!scripts.is_empty()).then(|| Scripts::new(scripts)).transpose()?,
            evaluation: EvaluationSets::open(decontaminate)?,
            seen: Seen::default(),
            removed: reasons.map(|reason| Removed { reason, ..Removed::default() }),
        })
    }

    /// Says which documents stay.
    pub fn keep(&mut self, documents: &[Cow<str>]) -> Vec<bool> {
        let judged: Vec<Judged> = documents.par_iter().map(|text| self.judge(text)).collect();
        let decide = |(text, judged): (&Cow<str>, Judged)| {
            let (reason, note) = match judged {
                Judged::Removed(reason, note) => (reason, note),
                Judged::Kept(Some(fingerprint)) if self.seen.has(&fingerprint) => {
                    (Reason::Duplicate, String::new())
                }
                Judged::Kept(_) => return true,
            };
            let removed = &mut self.removed[reason as usize];
            if removed.examples.len() < EXAMPLES {
                removed.examples.push(example(text, &note));
            }
            removed.documents += 1;
            removed.bytes += text.len() as u64;
            false
        };
        documents.iter().zip(judged).map(decide).collect()
    }

    /// Judges a document by itself.
    fn judge(&self, text: &str) -> Judged {
        let FilterOptions { min_chars, max_chars, dedup, .. } = self.options;
        if min_chars.is_some() || max_chars.is_some() {
            let chars = text.chars().count();
            let note = || count(chars as u64, "character");
            if chars < min_chars.unwrap_or(0) {
                return Judged::Removed(Reason::TooShort, note());
            }
            if chars > max_chars.unwrap_or(usize::MAX) {
                return Judged::Removed(Reason::TooLong, note());
            }
        }
        if let Some(scripts) = &self.scripts {
            let share = scripts.share(text);
            if share < MIN_SHARE {
                return Judged::Removed(Reason::Scripts, format!("{:.0} %", share * 100.0));
            }
        }
        if !self.evaluation.is_empty()
            && let Some(run) = self.evaluation.find(text)
        {
            return Judged::Removed(Reason::Contaminated, format!("has \"{}\"", one_line(run)));
        }
        Judged::Kept(dedup.map(|dedup| Fingerprint::of(text, dedup)))
    }

    /// Texts of evaluation sets, and those that are too short to be recognized.
    pub fn evaluation_texts(&self) -> (u64, u64) {
        (self.evaluation.texts, self.evaluation.short)
    }

    /// Returns what was left out, and why.
    pub fn finish(self) -> Vec<Removed> {
        self.removed.into_iter().filter(|removed| removed.documents > 0).collect()
    }
}

fn example(text: &str, note: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
    format!("\"{}\"{note}", one_line(text))
}

/// The start of a text on one line.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().take(EXAMPLE_CHARS).collect();
    let line = words.join(" ").replace(char::is_control, "");
    match line.char_indices().nth(EXAMPLE_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn filtered(options: FilterOptions, documents: &[&str]) -> (Vec<bool>, Vec<Removed>) {
        let mut filter = Filter::new(&options).unwrap();
        let documents: Vec<Cow<str>> = documents.iter().map(|&text| Cow::from(text)).collect();
        (filter.keep(&documents), filter.finish())
    }

    #[test]
    fn each_reason_is_counted_with_examples() {
        let dir = tempfile::tempdir().unwrap();
        let set = dir.path().join("set.txt");
        fs::write(&set, "a b c d e f g h i j k l m").unwrap();
        let options = FilterOptions {
            dedup: Some(Dedup::Exact),
            decontaminate: vec![set],
            min_chars: Some(4),
            max_chars: Some(50),
            scripts: vec!["latin".to_owned()],
        };
        let long = "long ".repeat(20);
        let documents = [
            "fine",
            "abc",
            &long,
            "где они",
            "Is: a b c d e f g h i j k l m n",
            "FINE ",
            "good\ntext",
            "fine\n",
        ];
        let (kept, removed) = filtered(options, &documents);
        assert_eq!(kept, [true, false, false, false, false, false, true, false]);
        let lines: Vec<String> = removed
            .iter()
            .map(|r| format!("{} {} {}: {}", r.documents, r.bytes, r.reason, r.examples.join(" | ")))
            .collect();
        let (start, rest) = (&long[..60], " (100 characters)");
        assert_eq!(
            lines,
            [
                "1 3 fewer than 4 characters: \"abc\" (3 characters)".to_owned(),
                format!("1 100 more than 50 characters: \"{start}…\"{rest}"),
                "1 13 less than 80 % of letters in latin: \"где они\" (0 %)".to_owned(),
                "1 31 13 words in a row from an evaluation set: \"Is: a b c d e f g h i j k l m n\" (has \"a b c d e \
                 f g h i j k l m\")"
                    .to_owned(),
                "2 10 the text of an earlier document: \"FINE\" | \"fine\"".to_owned(),
            ]
        );
    }

    #[test]
    fn nothing_is_left_out_by_default() {
        assert!(FilterOptions::default().is_empty());
        let (kept, removed) = filtered(FilterOptions::default(), &["a", "a", ""]);
        assert_eq!((kept, removed.len()), (vec![true; 3], 0));
    }

    #[test]
    fn threads_and_batches_change_nothing() {
        let text = |i: u64| format!("text {} and more words of {}", words::mix(i) % 90, i % 7);
        let documents: Vec<Cow<str>> = (0..300).map(|i| Cow::from(text(i))).collect();
        let options = FilterOptions { dedup: Some(Dedup::Minhash), ..FilterOptions::default() };
        let run = |threads: usize, batch: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut filter = Filter::new(&options).unwrap();
            let keep = |batch: &[Cow<str>]| pool.install(|| filter.keep(batch));
            let kept: Vec<bool> = documents.chunks(batch).flat_map(keep).collect();
            (kept, filter.finish())
        };
        let whole = run(1, 300);
        assert!(whole.1[0].documents > 50 && whole.0.contains(&true));
        assert!(run(4, 300) == whole && run(3, 7) == whole);
    }

    #[test]
    fn limits_out_of_range_are_refused() {
        let refuse = |min_chars, max_chars| {
            let options = FilterOptions { min_chars, max_chars, ..FilterOptions::default() };
            Filter::new(&options).err().unwrap().to_string()
        };
        assert!(refuse(Some(9), Some(8)).contains("--min-chars 9: expected at most --max-chars 8"));
        assert!(refuse(None, Some(MOST_CHARS + 1)).contains("--max-chars"));
    }
}
