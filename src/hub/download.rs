//! Several files at a time, handed out one by one and in order as they are whole.

use super::Options;
use super::failure::Failure;
use super::http::Http;
use super::listing::{Listing, Planned, ensure_room};
use super::transfer::{self, Watch};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

/// A file that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its name in the repository.
    pub name: String,
    pub path: PathBuf,
}

enum Event {
    /// The change in bytes that are here.
    Moved(i64),
    Done(usize, Result<(), Failure>),
}

/// A download that is under way. Dropped, it stops; what is there is kept, and resumed later.
pub struct Download {
    name: String,
    files: Arc<Vec<Planned>>,
    events: Receiver<Event>,
    /// Files that are whole, before their turn.
    whole: BTreeMap<usize, ()>,
    next: usize,
    done: i64,
    total: u64,
    stop: Arc<AtomicBool>,
}

impl Download {
    pub(super) fn start(http: Arc<Http>, listing: Listing, options: Options) -> Result<Self> {
        ensure_room(&listing)?;
        let (total, missing) = (listing.bytes_left(), listing.missing());
        let Listing { name, files, .. } = listing;
        let (files, stop) = (Arc::new(files), Arc::new(AtomicBool::new(false)));
        let (send, events) = channel();
        let turn = Arc::new(AtomicUsize::new(0));
        for _ in 0..options.jobs.clamp(1, missing.max(1)) {
            let (http, files, stop) = (Arc::clone(&http), Arc::clone(&files), Arc::clone(&stop));
            let (send, turn) = (send.clone(), Arc::clone(&turn));
            let work = move || fetch_in_turn(&http, &files, &stop, &turn, &send);
            Builder::new()
                .name("hub".to_owned())
                .spawn(work)
                .context("cannot start a thread for a download")?;
        }
        Ok(Download { name, files, events, whole: BTreeMap::new(), next: 0, done: 0, total, stop })
    }

    /// Waits for the next file, in the order of their names. `show` is called with the bytes
    /// fetched and their total, without those that were here before. `None` after the last.
    ///
    /// # Errors
    /// One line for the first file that cannot be fetched, whichever it is.
    pub fn next(&mut self, show: &mut dyn FnMut(u64, u64)) -> Option<Result<Local>> {
        let file = self.files.get(self.next)?.clone();
        while self.whole.remove(&self.next).is_none() {
            match self.events.recv() {
                Ok(Event::Moved(bytes)) => {
                    self.done += bytes;
                    show(self.done.max(0) as u64, self.total);
                }
                Ok(Event::Done(index, Ok(()))) => {
                    self.whole.insert(index, ());
                }
                Ok(Event::Done(_, Err(failure))) => return Some(Err(self.end(&failure))),
                Err(_) => return Some(Err(self.end(&Failure::fixed("the download ended early")))),
            }
        }
        self.next += 1;
        Some(Ok(Local { name: file.name, path: file.place }))
    }

    fn end(&mut self, failure: &Failure) -> anyhow::Error {
        self.next = self.files.len();
        self.stop.store(true, Ordering::Relaxed);
        let again = if failure.may_pass() { "; run it again to go on from here" } else { "" };
        anyhow!("{}: {failure}{again}", self.name)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Fetches one file after another until there is none left, or the other end is gone.
fn fetch_in_turn(
    http: &Http,
    files: &[Planned],
    stop: &AtomicBool,
    turn: &AtomicUsize,
    send: &Sender<Event>,
) {
    loop {
        let index = turn.fetch_add(1, Ordering::Relaxed);
        let Some(file) = files.get(index) else { return };
        let moved = |bytes| {
            if bytes != 0 {
                let _ = send.send(Event::Moved(bytes));
            }
        };
        let result = transfer::fetch(http, file, &Watch { stop, moved: &moved });
        let failed = result.is_err();
        if send.send(Event::Done(index, result)).is_err() || failed {
            return;
        }
    }
}
