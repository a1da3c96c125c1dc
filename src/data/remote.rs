//! Inputs of [`prepare`](super::prepare) that are fetched while they are read: `hub:NAME` and
//! `hf://…`. Who fetches them is not known here.

use crate::data::documents::Source;
use anyhow::{Context, Result};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Beginnings of inputs that are fetched.
const PREFIXES: [&str; 2] = ["hub:", "hf://"];

/// Fetches inputs.
pub trait Remote: Debug + Send + Sync {
    /// Lists the files of an input, each with its place and its bytes, and starts to fetch them in
    /// this order.
    ///
    /// # Errors
    /// If there is no such input, or it cannot be fetched.
    fn files(&self, input: &str) -> Result<Vec<(PathBuf, u64)>>;

    /// Waits until the file at this place is whole.
    ///
    /// # Errors
    /// If it cannot be fetched.
    fn wait(&self, place: &Path) -> Result<()>;
}

/// Whether an input is fetched. A file whose name has this form is a file.
pub fn is_remote(input: &Path) -> bool {
    input.to_str().is_some_and(|text| PREFIXES.iter().any(|prefix| text.starts_with(prefix)))
        && !input.exists()
}

/// The files of an input that is fetched.
pub(super) fn sources(input: &Path, remote: Option<&Arc<dyn Remote>>) -> Result<Vec<Source>> {
    let text = input.to_string_lossy();
    let remote = remote.with_context(|| format!("{text}: not a file, and nothing fetches it here"))?;
    let source = |(path, bytes)| Source { path, bytes, remote: Some(Arc::clone(remote)) };
    Ok(remote.files(&text)?.into_iter().map(source).collect())
}
