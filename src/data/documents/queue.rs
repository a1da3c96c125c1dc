//! A queue of pieces between the thread that reads a part of the inputs and the one that uses it.

use super::{Notes, Piece};
use anyhow::{Result, anyhow, bail};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    batches: VecDeque<Vec<Piece>>,
    /// Bytes of text in them.
    bytes: usize,
    /// The last word of the writer.
    end: Option<Result<Notes>>,
    /// Whether nobody reads any more.
    abandoned: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_ready` and changes the state.
    fn when<T>(&self, is_ready: impl Fn(&State) -> bool, change: impl FnOnce(&mut State) -> T) -> T {
        let waited = self.changed.wait_while(self.lock(), |state| !is_ready(state));
        let result = change(&mut waited.unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }
}

/// Makes a queue that holds at most about `budget` bytes of text.
pub(super) fn queue(budget: usize) -> (Writer, Reader) {
    let shared = Arc::new(Shared::default());
    (Writer { shared: Arc::clone(&shared), budget }, Reader { shared })
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    budget: usize,
}

impl Writer {
    /// Adds pieces, when there is room.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn push(&self, batch: Vec<Piece>) -> Result<()> {
        let bytes: usize = batch.iter().map(|piece| piece.text.len()).sum();
        // One batch always fits, however large.
        let has_room = |s: &State| s.abandoned || s.batches.is_empty() || s.bytes + bytes <= self.budget;
        self.shared.when(has_room, |state| {
            if state.abandoned {
                bail!("reading was stopped");
            }
            state.bytes += bytes;
            state.batches.push_back(batch);
            Ok(())
        })
    }

    /// Ends the queue with findings, or with the reason why it ends early.
    pub fn end(self, result: Result<Notes>) {
        self.shared.when(|_| true, |state| state.end = Some(result));
    }
}

impl Drop for Writer {
    /// A thread that panics does not leave its reader waiting.
    fn drop(&mut self) {
        self.shared.when(
            |_| true,
            |state| {
                state.end.get_or_insert_with(|| Err(anyhow!("a thread that reads the input has panicked")));
            },
        );
    }
}

pub(super) struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    /// Returns the next pieces, when there are some. At the end it returns `None` and adds the
    /// findings to `notes`; it must not be called again.
    ///
    /// # Errors
    /// That of the writer.
    pub fn next(&self, notes: &mut Notes) -> Result<Option<Vec<Piece>>> {
        let is_ready = |s: &State| !s.batches.is_empty() || s.end.is_some();
        self.shared.when(is_ready, |state| {
            if let Some(batch) = state.batches.pop_front() {
                state.bytes -= batch.iter().map(|piece| piece.text.len()).sum::<usize>();
                return Ok(Some(batch));
            }
            notes.append(state.end.take().expect("the queue has ended")?);
            Ok(None)
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.when(
            |_| true,
            |state| {
                state.abandoned = true;
                state.batches.clear();
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn batch(len: usize) -> Vec<Piece> {
        vec![Piece { starts_document: true, text: "a".repeat(len) }]
    }

    #[test]
    fn a_writer_waits_for_room_and_a_reader_for_pieces() {
        let (writer, reader) = queue(100);
        let wrote = std::thread::spawn(move || {
            for len in [60, 40, 1000, 1] {
                writer.push(batch(len)).unwrap();
            }
            writer.end(Ok(Notes { texts: 7, ..Notes::default() }));
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(reader.shared.lock().bytes <= 100 && !wrote.is_finished());
        let mut notes = Notes::default();
        for len in [60, 40, 1000, 1] {
            assert_eq!(reader.next(&mut notes).unwrap(), Some(batch(len)));
        }
        assert_eq!(reader.next(&mut notes).unwrap(), None);
        assert_eq!(notes.texts, 7);
        wrote.join().unwrap();
    }

    #[test]
    fn neither_end_waits_for_one_that_is_gone() {
        let (writer, reader) = queue(10);
        writer.push(batch(10)).unwrap();
        let blocked = std::thread::spawn(move || writer.push(batch(10)).is_err());
        drop(reader);
        assert!(blocked.join().unwrap());
        let (writer, reader) = queue(10);
        drop(writer);
        let error = reader.next(&mut Notes::default()).unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
        let (writer, reader) = queue(10);
        writer.push(batch(1)).unwrap();
        writer.end(Err(anyhow!("bad")));
        assert_eq!(reader.next(&mut Notes::default()).unwrap(), Some(batch(1)));
        assert_eq!(reader.next(&mut Notes::default()).unwrap_err().to_string(), "bad");
    }
}
