//! Turns pieces of text into passages of tokens.

use super::PrepareOptions;
use super::draw::Passage;
use crate::data::documents::Piece;
use crate::data::tokenizer::Tokenizer;
use rayon::prelude::*;

/// Bytes of text encoded at a time, in parallel.
pub(super) const BATCH_BYTES: usize = if cfg!(test) { 1 << 18 } else { 1 << 23 };

/// Collects pieces and encodes many in parallel.
pub(super) struct Encoder {
    batch: Vec<Piece>,
    batch_bytes: usize,
    tokenizer: Tokenizer,
    allow_special: bool,
    /// Pieces that have been encoded.
    passages: u64,
    pub documents: u64,
    /// Occurrences of `<|endoftext|>` that became ordinary tokens.
    pub marks: u64,
}

impl Encoder {
    pub fn new(options: &PrepareOptions) -> Self {
        Encoder {
            batch: Vec::new(),
            batch_bytes: 0,
            tokenizer: options.tokenizer.clone(),
            allow_special: options.allow_special,
            passages: 0,
            documents: 0,
            marks: 0,
        }
    }

    /// Adds a piece. Returns the passages of many, when there are many.
    pub fn add(&mut self, piece: Piece) -> Option<Vec<Passage>> {
        self.batch_bytes += piece.text.len();
        self.documents += u64::from(piece.starts_document);
        self.batch.push(piece);
        (self.batch_bytes >= BATCH_BYTES).then(|| self.flush())
    }

    /// Returns the passages of all pieces that have been added since the last time.
    pub fn flush(&mut self) -> Vec<Passage> {
        let encode = if self.allow_special { Tokenizer::encode } else { Tokenizer::encode_ordinary };
        let tokenizer = &self.tokenizer;
        let first = self.passages;
        let passage = |(index, piece): (usize, &Piece)| {
            let mut tokens = encode(tokenizer, &piece.text);
            if piece.starts_document {
                tokens.insert(0, tokenizer.eot());
            }
            Passage { index: first + index as u64, starts_document: piece.starts_document, tokens }
        };
        let passages: Vec<Passage> = self.batch.par_iter().enumerate().map(passage).collect();
        if !self.allow_special {
            // Pieces are never cut within a mark, as it has no white space.
            let marks = |piece: &Piece| piece.text.matches(tokenizer.eot_text()).count() as u64;
            self.marks += self.batch.par_iter().map(marks).sum::<u64>();
        }
        self.passages += passages.len() as u64;
        self.batch.clear();
        self.batch_bytes = 0;
        passages
    }
}
