//! Inputs of `warpsmith data` that come from the hub, and are tokenized as they arrive.

use crate::data::remote::Remote;
use crate::hub::{Download, Hub, Options, RepoKind, Show, Source};
use crate::report::progress::saying;
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// Files of the hub that are on their way.
pub struct Arrivals {
    hub: Hub,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    whole: HashSet<PathBuf>,
    /// The error that ends all of it.
    failed: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Arrivals {
    /// Prepares to fetch as the environment says.
    ///
    /// # Errors
    /// If a variable cannot be used.
    pub fn new() -> Result<Self> {
        Ok(Arrivals { hub: Hub::from_env(Options::default())?, shared: Arc::default() })
    }
}

/// Says nothing of the hub's token.
impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Arrivals")
    }
}

/// Reads the name of an input.
pub fn source_of(input: &str) -> Result<Source> {
    Source::parse(input.strip_prefix("hub:").unwrap_or(input), RepoKind::Dataset)
}

impl Remote for Arrivals {
    fn files(&self, input: &str) -> Result<Vec<(PathBuf, u64)>> {
        let source = source_of(input)?;
        ensure!(!source.is_model(), "{input}: expected a data set, found a model");
        let listing = saying("asking the hub", false, || self.hub.list(&source))?;
        let (files, is_here) = (listing.places()?, listing.missing() == 0);
        if is_here {
            self.shared.change(|state| state.whole.extend(files.iter().map(|(place, _)| place.clone())));
        } else {
            let show = Show::new(&listing.name, false);
            let (download, shared) = (self.hub.download(listing)?, Arc::clone(&self.shared));
            let thread = Builder::new().name("arrivals".to_owned());
            thread
                .spawn(move || receive(download, &shared, show))
                .context("cannot start a thread for a download")?;
        }
        Ok(files)
    }

    fn wait(&self, place: &Path) -> Result<()> {
        let is_waiting = |state: &mut State| !state.whole.contains(place) && state.failed.is_none();
        let state = self.shared.changed.wait_while(self.shared.lock(), is_waiting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(error) if !state.whole.contains(place) => Err(anyhow!("{error}")),
            _ => Ok(()),
        }
    }
}

/// Receives files. Progress is shown until the first one is whole: then that of tokenization is.
fn receive(mut download: Download, shared: &Shared, show: Show) {
    let mut show = Some(show);
    while let Some(file) = download.next(&mut |done, total| {
        if let Some(show) = &mut show {
            show.set(done, total);
        }
    }) {
        show.take().into_iter().for_each(Show::clear);
        match file {
            Ok(file) => shared.change(|state| state.whole.extend([file.path])),
            Err(error) => shared.change(|state| state.failed = Some(format!("{error:#}"))),
        }
    }
}
