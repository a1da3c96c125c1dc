//! Reads inputs ahead of their use, on threads of their own: several files, or several row groups
//! of a parquet file, at the same time, delivered in order.

use super::parquet::{ParquetFile, is_parquet};
use super::queue::{Reader, Writer, queue};
use super::{Format, Notes, Piece, Source};
use crate::files;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of text that are handed over at a time.
const BATCH_BYTES: usize = if cfg!(test) { 1 << 14 } else { 1 << 20 };

/// Bytes of text that wait to be used, of all threads together.
const AHEAD_BYTES: usize = 1 << 25;

/// Most threads that read: decompression is ten times as fast as tokenization.
const MOST_THREADS: usize = 8;

/// A part of the inputs that one thread reads.
enum Unit {
    Whole(Source),
    RowGroup(Arc<ParquetFile>, usize),
}

/// The sources that are left to read, and the place to announce them.
struct Units {
    sources: VecDeque<Source>,
    /// Row groups of the file that is open.
    groups: VecDeque<Unit>,
    announce: SyncSender<Reader>,
    format: Format,
    /// Most bytes that wait in a queue.
    budget: usize,
}

/// Sources that are being read.
pub(in crate::data) struct ReadAhead {
    units: Receiver<Reader>,
    current: Option<Reader>,
    /// Findings in the units that have been used.
    pub notes: Notes,
}

impl ReadAhead {
    /// Starts to read, with as many threads as the pool of this thread has. `done` counts the bytes
    /// read.
    ///
    /// # Errors
    /// If a parquet file is not usable, or no thread can be started.
    pub fn start(sources: Vec<Source>, format: &Format, done: &Arc<AtomicU64>) -> Result<Self> {
        let threads = rayon::current_num_threads().min(MOST_THREADS);
        // Units that are being read, and finished ones.
        let (announce, units) = sync_channel(threads);
        let budget = AHEAD_BYTES / (2 * threads);
        let (sources, format) = (sources.into(), format.clone());
        let left = Units { sources, groups: VecDeque::new(), announce, format, budget };
        let left = Arc::new(Mutex::new(Some(left)));
        for _ in 0..threads {
            let (left, done) = (Arc::clone(&left), Arc::clone(done));
            let thread = std::thread::Builder::new().name("reader".to_owned());
            thread.spawn(move || read_units(&left, &done)).context("cannot start a thread that reads")?;
        }
        Ok(ReadAhead { units, current: None, notes: Notes::default() })
    }

    /// Returns the next pieces, in the order of the sources; `None` at the end.
    ///
    /// # Errors
    /// One line, if a source cannot be read, is not text, or changes while it is read.
    pub fn next(&mut self) -> Result<Option<Vec<Piece>>> {
        loop {
            let Some(reader) = &self.current else {
                let Ok(next) = self.units.recv() else { return Ok(None) };
                self.current = Some(next);
                continue;
            };
            if let Some(batch) = reader.next(&mut self.notes)? {
                return Ok(Some(batch));
            }
            self.current = None;
        }
    }
}

/// Reads unit by unit until none is left, or nobody waits for them.
fn read_units(left: &Mutex<Option<Units>>, done: &Arc<AtomicU64>) {
    loop {
        let (unit, writer, format) = {
            let mut guard = left.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(units) = &mut *guard else { return };
            let Some(unit) = units.next() else {
                *guard = None;
                return;
            };
            let (writer, reader) = queue(units.budget);
            // Waits while enough units are under way. The order of announcements is that of units.
            if units.announce.send(reader).is_err() {
                *guard = None;
                return;
            }
            (unit, writer, units.format.clone())
        };
        let result = unit.and_then(|unit| unit.read(&format, done, &writer));
        writer.end(result);
    }
}

impl Units {
    /// Takes the next unit. An error takes the place of a file.
    fn next(&mut self) -> Option<Result<Unit>> {
        loop {
            if let Some(unit) = self.groups.pop_front() {
                return Some(Ok(unit));
            }
            let source = self.sources.pop_front()?;
            let opened = source.open_parquet(&self.format);
            match opened {
                Ok(None) => return Some(Ok(Unit::Whole(source))),
                Ok(Some(file)) => {
                    let file = Arc::new(file);
                    let groups = 0..file.row_groups();
                    self.groups = groups.map(|group| Unit::RowGroup(Arc::clone(&file), group)).collect();
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Source {
    /// Checks what can be checked without reading the text: that a parquet file has the column. A
    /// file that is not here yet is not looked at.
    ///
    /// # Errors
    /// Those of [`ParquetFile::open`].
    pub(in crate::data) fn check(&self, format: &Format) -> Result<()> {
        if self.remote.is_some() { Ok(()) } else { self.open_parquet(format).map(drop) }
    }

    /// Opens the file if it is a parquet file, once it is here.
    ///
    /// # Errors
    /// Those of [`ParquetFile::open`].
    fn open_parquet(&self, format: &Format) -> Result<Option<ParquetFile>> {
        if self.path.as_os_str() == "-" {
            return Ok(None);
        }
        if let Some(remote) = &self.remote {
            remote.wait(&self.path)?;
        }
        let mut head = Vec::new();
        let (file, _) = files::open(&self.path)?;
        let read = file.take(4).read_to_end(&mut head);
        read.with_context(|| format!("{}: cannot read", self.path.display()))?;
        is_parquet(&head).then(|| ParquetFile::open(&self.path, format)).transpose()
    }
}

impl Unit {
    fn read(&self, format: &Format, done: &Arc<AtomicU64>, writer: &Writer) -> Result<Notes> {
        let mut notes = Notes::default();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut add = |piece: Piece| {
            bytes += piece.text.len();
            batch.push(piece);
            if bytes >= BATCH_BYTES {
                bytes = 0;
                writer.push(std::mem::take(&mut batch))?;
            }
            Ok(())
        };
        match self {
            Unit::Whole(source) => source.read(format, &mut notes, done, &mut add)?,
            Unit::RowGroup(file, group) => {
                file.read(*group, format, &mut notes, &mut add)?;
                done.fetch_add(file.share(*group), Relaxed);
            }
        }
        if !batch.is_empty() {
            writer.push(batch)?;
        }
        Ok(notes)
    }
}
