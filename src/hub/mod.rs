//! Datasets and models from the Hugging Face hub, and a few files from GitHub: `warpsmith get`.
//!
//! Names, places and the token are those of the hub's own tools: [`hf_hub`] says where a file of a
//! repository lies in the cache, so Python's `huggingface_hub` finds what was fetched here and the
//! reverse. Transfers are our own. Theirs append whatever a server sends to a partial file, and
//! compare neither length nor digest afterwards.
//!
//! A file is fetched as `NAME.incomplete`, resumed from there after any kill, and gets its name
//! when its length and its digest are those that the hub states. A lock per file, which is also
//! that of `huggingface_hub`, lets several processes fetch the same repository.

mod catalog;
mod digest;
mod download;
mod failure;
mod http;
mod listing;
mod place;
mod settings;
mod show;
mod source;
mod store;
mod transfer;

pub use catalog::{CATALOG, Entry};
pub use download::{Download, Local};
pub use listing::Listing;
pub use place::{How, place};
pub use settings::Settings;
pub use show::{Show, model};
pub use source::{RepoKind, Source, is_model_file, is_model_name};

use anyhow::{Context, Result, bail};
use failure::Kind;
use http::Http;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Store;

/// How files are fetched.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Files fetched at the same time.
    pub jobs: usize,
    /// Attempts after the first, without a byte of progress between them.
    pub retries: u32,
    /// Whether nothing is said about waiting.
    pub quiet: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { jobs: 4, retries: 5, quiet: false }
    }
}

/// The hub, its cache, and the way to it.
#[derive(Clone, Debug)]
pub struct Hub {
    http: Arc<Http>,
    store: Store,
    settings: Settings,
    options: Options,
}

impl Hub {
    /// Prepares to fetch. Nothing is sent or created yet.
    pub fn new(settings: Settings, options: Options) -> Self {
        let store = Store::new(&settings);
        Hub { http: Arc::new(Http::new(&settings, options)), store, settings, options }
    }

    /// Prepares to fetch as the environment says.
    ///
    /// # Errors
    /// Those of [`Settings::find`].
    pub fn from_env(options: Options) -> Result<Self> {
        Ok(Self::new(Settings::find(&|name| std::env::var(name).ok())?, options))
    }

    /// Lists the files of `source`, and asks the hub for the length and the digest of those that
    /// are not in the cache. A hub that cannot be reached does no harm if the cache has all of
    /// them.
    ///
    /// # Errors
    /// One line that says what the hub answered, or what to fetch by hand and where to put it.
    pub fn list(&self, source: &Source) -> Result<Listing> {
        if self.settings.offline {
            let why = "HF_HUB_OFFLINE is set";
            return self.store.cached(source)?.with_context(|| source.by_hand(why, &self.settings));
        }
        match listing::find(&self.http, &self.store, source, self.options.jobs) {
            Ok(listing) => Ok(listing),
            Err(failure) if failure.kind == Kind::Unreachable => {
                let why = &failure.text;
                let Some(listing) = self.store.cached(source)? else {
                    bail!(source.by_hand(why, &self.settings));
                };
                log::warn!("{why}; using {} as it is in the cache", source.name);
                Ok(listing)
            }
            Err(failure) => Err(source.explain(failure, self.settings.token.is_some())),
        }
    }

    /// Starts to fetch what is missing, several files at a time and the first ones first.
    ///
    /// # Errors
    /// If the disk is too small, a directory cannot be created, or a thread cannot be started.
    pub fn download(&self, listing: Listing) -> Result<Download> {
        Download::start(Arc::clone(&self.http), listing, self.options)
    }
}

/// Reads the hub's answer on a repository, as tests do with any bytes. Returns the number of files.
///
/// # Errors
/// One line, if it is not such an answer.
#[cfg(feature = "testing")]
pub fn files_in_answer(bytes: &[u8]) -> Result<usize> {
    let info = serde_json::from_slice(bytes).context("the input")?;
    let files = listing::read_info("the input", &info).map(|(_, names)| names.len());
    files.map_err(|failure| anyhow::anyhow!(failure.text))
}

/// Returns the path of HellaSwag's questions: `path`, or if that is `default` and nothing is there,
/// where `warpsmith get hellaswag` has stored them.
pub fn hellaswag_at(path: &Path, default: &str) -> PathBuf {
    let is_default = path == Path::new(default) && !path.exists();
    is_default.then(stored_hellaswag).flatten().unwrap_or_else(|| path.to_owned())
}

fn stored_hellaswag() -> Option<PathBuf> {
    let hub = Hub::from_env(Options::default()).ok()?;
    let source = Source::parse("hellaswag", RepoKind::Dataset).ok()?;
    let mut listing = hub.store.cached(&source).ok()??;
    Some(listing.files.pop()?.place)
}
