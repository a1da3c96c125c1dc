//! The documents of some inputs that are kept.

use crate::data::documents::{Piece, ReadAhead};
use crate::data::filter::{Filter, JUDGED_BYTES};
use anyhow::Result;
use std::borrow::Cow;
use std::collections::VecDeque;

/// Reads documents and leaves out those that a filter rejects.
pub(super) struct Stream {
    pub ahead: ReadAhead,
    ended: bool,
    /// Pieces of documents that are kept.
    kept: VecDeque<Piece>,
    /// The start of a document that is judged when there is more of it.
    pending: Vec<Piece>,
    pending_bytes: usize,
    /// The fate of a document that goes on after the bytes by which it was judged.
    goes_on: Option<bool>,
}

impl Stream {
    pub fn new(ahead: ReadAhead) -> Self {
        let (kept, pending) = (VecDeque::new(), Vec::new());
        Stream { ahead, ended: false, kept, pending, pending_bytes: 0, goes_on: None }
    }

    /// Returns the next piece of a document that is kept; `None` at the end.
    ///
    /// # Errors
    /// Those of reading the inputs.
    pub fn next(&mut self, filter: Option<&mut Filter>) -> Result<Option<Piece>> {
        self.fill(filter)?;
        Ok(self.kept.pop_front())
    }

    /// Whether the next piece continues the document of the last one.
    ///
    /// # Errors
    /// Those of reading the inputs.
    pub fn continues(&mut self, filter: Option<&mut Filter>) -> Result<bool> {
        self.fill(filter)?;
        Ok(self.kept.front().is_some_and(|piece| !piece.starts_document))
    }

    fn fill(&mut self, mut filter: Option<&mut Filter>) -> Result<()> {
        while self.kept.is_empty() && !self.ended {
            match (self.ahead.next()?, filter.as_deref_mut()) {
                (Some(batch), None) => self.kept.extend(batch),
                (Some(batch), Some(filter)) => self.judge(batch, filter),
                (None, filter) => {
                    self.ended = true;
                    let last = std::mem::take(&mut self.pending);
                    if let Some(filter) = filter.filter(|_| !last.is_empty()) {
                        self.decide(vec![last], filter);
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts documents together, and decides on those that are complete or long enough.
    fn judge(&mut self, batch: Vec<Piece>, filter: &mut Filter) {
        let mut documents = Vec::new();
        for piece in batch {
            if piece.starts_document {
                self.goes_on = None;
                documents.extend(self.take_pending());
            } else if let Some(is_kept) = self.goes_on {
                // Everything before this has been decided.
                self.kept.extend(is_kept.then_some(piece));
                continue;
            }
            self.pending_bytes += piece.text.len();
            self.pending.push(piece);
            if self.pending_bytes >= JUDGED_BYTES {
                documents.extend(self.take_pending());
                self.goes_on = self.decide(std::mem::take(&mut documents), filter);
            }
        }
        self.decide(documents, filter);
    }

    fn take_pending(&mut self) -> Option<Vec<Piece>> {
        self.pending_bytes = 0;
        Some(std::mem::take(&mut self.pending)).filter(|document| !document.is_empty())
    }

    /// Keeps those documents that the filter accepts. Returns the fate of the last one.
    fn decide(&mut self, documents: Vec<Vec<Piece>>, filter: &mut Filter) -> Option<bool> {
        let texts: Vec<Cow<str>> = documents.iter().map(|document| judged_text(document)).collect();
        let keep = filter.keep(&texts);
        for (document, is_kept) in documents.into_iter().zip(&keep) {
            self.kept.extend(document.into_iter().filter(|_| *is_kept));
        }
        keep.last().copied()
    }
}

/// The text by which a document is judged.
fn judged_text(document: &[Piece]) -> Cow<'_, str> {
    match document {
        [piece] => Cow::from(&piece.text[..piece.text.floor_char_boundary(JUDGED_BYTES)]),
        pieces => {
            let mut text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            text.truncate(text.floor_char_boundary(JUDGED_BYTES));
            Cow::from(text)
        }
    }
}
