//! Fetching with progress on standard error.

use super::{Hub, Listing, Local, Options, Source};
use crate::report::progress::{Progress, saying};
use crate::report::say;
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// A download's progress, from its first byte on.
pub struct Show {
    name: String,
    quiet: bool,
    progress: Option<Progress>,
}

impl Show {
    pub fn new(name: &str, quiet: bool) -> Self {
        Show { name: name.to_owned(), quiet, progress: None }
    }

    /// Sets the bytes fetched, and their total.
    pub fn set(&mut self, done: u64, total: u64) {
        if !self.quiet {
            let new = || Progress::new(format!("fetching {}", self.name), total, "bytes");
            self.progress.get_or_insert_with(new).set(done);
        }
    }

    /// Ends without a summary.
    pub fn clear(self) {
        if let Some(progress) = self.progress {
            progress.clear();
        }
    }

    /// Replaces the bar by a summary, if any byte was fetched.
    pub fn finish(self) {
        if let Some(progress) = self.progress {
            progress.finish();
        }
    }
}

impl Hub {
    /// Fetches all files of a listing that are missing. Returns all of them.
    ///
    /// # Errors
    /// Those of [`Hub::download`] and [`Download::next`](super::Download::next).
    pub fn fetch(&self, listing: Listing) -> Result<Vec<Local>> {
        let mut show = Show::new(&listing.name, self.options.quiet);
        let mut download = self.download(listing)?;
        let mut files = Vec::new();
        while let Some(file) = download.next(&mut |done, total| show.set(done, total)) {
            files.push(file?);
        }
        show.finish();
        Ok(files)
    }

    /// Returns the folder of a model, such as `gpt2` or `openai-community/gpt2`, after fetching
    /// what is missing of it. A model that is in the cache is not looked for on the hub.
    ///
    /// # Errors
    /// Those of [`Hub::list`] and [`Hub::fetch`]; or the repository has no weights that can be
    /// read.
    pub fn model(&self, name: &str) -> Result<PathBuf> {
        let source = Source::model(name)?;
        let listing = match self.store.cached(&source)? {
            Some(listing) if listing.has_weights() => listing,
            _ => saying("asking the hub", self.options.quiet, || self.list(&source))?,
        };
        listing.check_model(name)?;
        let folder = listing.folder.clone();
        if listing.missing() > 0 && !self.options.quiet {
            say(format_args!("{name}: not in the cache; fetching {} bytes", listing.bytes_left()));
        }
        self.fetch(listing)?;
        Ok(folder)
    }
}

/// Returns the folder of a model of the hub for a process that is the `local_rank`-th of its
/// machine. The first one fetches what is missing; the others wait for it, or take over if it has
/// ended.
///
/// # Errors
/// Those of [`Hub::model`].
pub fn model(name: &str, local_rank: usize) -> Result<PathBuf> {
    let quiet = local_rank > 0;
    let hub = Hub::from_env(Options { quiet, ..Options::default() })?;
    if quiet && hub.store.cached(&Source::model(name)?)?.is_none() {
        // For the first one to take the locks.
        std::thread::sleep(Duration::from_millis(500));
    }
    hub.model(name)
}
