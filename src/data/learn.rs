//! Learns a tokenizer from the documents of a corpus: `warpsmith tokenizer train`.

use crate::data::documents::{Format, ReadAhead, find_sources};
use crate::data::tokenizer::train::{WordCounts, train};
use crate::data::tokenizer::{Cuts, Tokenizer};
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes of text whose words are counted at a time, in parallel.
const BATCH_BYTES: usize = 1 << 23;

/// Options of [`learn`].
#[derive(Clone, Debug)]
pub struct LearnOptions {
    /// As [`PrepareOptions::inputs`](super::prepare::PrepareOptions::inputs).
    pub inputs: Vec<PathBuf>,
    pub vocab_size: usize,
    /// Column of a parquet file, or field of a JSON object, that holds the text, if the user named
    /// one.
    pub text_column: Option<String>,
    /// Whether JSON objects that are not usable are left out.
    pub skip_bad_lines: bool,
}

/// The text that a tokenizer was learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnReport {
    pub documents: u64,
    /// Bytes of the inputs, compressed if they are.
    pub bytes: u64,
    pub words: u64,
}

/// Learns a tokenizer. `progress` is called with the bytes read so far and the total (0 if
/// unknown).
///
/// Memory is that of the distinct words, see [`WordCounts`], and of a few MiB of text.
///
/// # Errors
/// If an input cannot be read or is not text, or has too little text for the vocabulary.
pub fn learn(options: &LearnOptions, progress: &dyn Fn(u64, u64)) -> Result<(Tokenizer, LearnReport)> {
    let sources = find_sources(&options.inputs, &|_| false)?;
    let total = sources.iter().map(|source| source.bytes).sum();
    let format = Format {
        text_column: options.text_column.clone(),
        skip_bad_lines: options.skip_bad_lines,
        cuts: Cuts::SpaceOrLine,
        ..Format::default()
    };
    let done = Arc::default();
    let mut pieces = ReadAhead::start(sources, &format, &done)?;
    let (mut words, mut documents) = (WordCounts::default(), 0);
    let (mut batch, mut batch_bytes) = (Vec::new(), 0);
    while let Some(read) = pieces.next()? {
        for piece in read {
            documents += u64::from(piece.starts_document);
            batch_bytes += piece.text.len();
            batch.push(piece.text);
            if batch_bytes >= BATCH_BYTES {
                words.add(&batch);
                batch.clear();
                batch_bytes = 0;
                progress(done.load(Relaxed), total);
            }
        }
    }
    words.add(&batch);
    progress(done.load(Relaxed), total);
    pieces.notes.warn_of_skipped();
    let report = LearnReport { documents, bytes: done.load(Relaxed), words: words.len() as u64 };
    Ok((train(words, options.vocab_size)?, report))
}
