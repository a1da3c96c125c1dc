//! A check of all tokens in the background, so that one outside the vocabulary stops a run in its
//! first minute instead of when its batch is due.

use super::Reader;
use anyhow::{Context, Result, anyhow};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Tokens read at a time. A dropped check ends after one such block.
const BLOCK_TOKENS: usize = if cfg!(test) { 16 } else { 1 << 19 };

/// A thread that goes through the shards once.
#[derive(Debug)]
pub(super) struct VocabularyCheck {
    found: Arc<OnceLock<String>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl VocabularyCheck {
    /// Starts to check every shard whose index is `rank` modulo `ranks`; the other ranks check the
    /// rest.
    pub fn start(reader: Arc<Reader>, rank: usize, ranks: usize) -> Result<Self> {
        let (found, stop) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::Builder::new().name("vocabulary check".to_owned()).spawn({
            let (found, stop) = (Arc::clone(&found), Arc::clone(&stop));
            move || {
                let shards = (rank..reader.shards.len()).step_by(ranks);
                if let Err(error) = shards.into_iter().try_for_each(|shard| check(&reader, shard, &stop)) {
                    let _ = found.set(format!("{error:#}"));
                }
            }
        });
        let thread = thread.context("cannot start the thread that checks tokens")?;
        Ok(VocabularyCheck { found, stop, thread: Some(thread) })
    }

    /// # Errors
    /// The fault that has been found, once there is one.
    pub fn found(&self) -> Result<()> {
        self.found.get().map_or(Ok(()), |fault| Err(anyhow!(fault.clone())))
    }

    /// A check that finds nothing.
    #[cfg(test)]
    pub fn none() -> Self {
        VocabularyCheck { found: Arc::default(), stop: Arc::default(), thread: None }
    }

    /// Waits for the end of the check.
    #[cfg(test)]
    pub fn wait(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn check(reader: &Reader, shard: usize, stop: &AtomicBool) -> Result<()> {
    let len = reader.shards[shard].len();
    let mut block = vec![0; BLOCK_TOKENS.min(len)];
    for start in (0..len).step_by(BLOCK_TOKENS) {
        if stop.load(Relaxed) {
            break;
        }
        let tokens = BLOCK_TOKENS.min(len - start);
        reader.read_checked(shard, start, &mut block[..tokens])?;
    }
    Ok(())
}

impl Drop for VocabularyCheck {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic in the thread.
            let _ = thread.join();
        }
    }
}
