//! The trackers of a run.

use crate::cli::flags::trainer::TrackingFlags;
use crate::track::{Account, Follower, Mlflow, Sink, TensorBoard};
use anyhow::Result;
use std::path::Path;

/// Starts the trackers that the flags name, for the run in `dir`.
///
/// # Errors
/// If another process follows the run for one of them.
pub fn start(flags: &TrackingFlags, dir: &Path) -> Result<Vec<Follower>> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if flags.tensorboard {
        sinks.push(Box::new(TensorBoard::open(dir)?));
    }
    if let Some(url) = &flags.mlflow {
        sinks.push(Box::new(Mlflow::open(dir, url, Account::from_env(&|name| std::env::var(name).ok()))?));
    }
    sinks.into_iter().map(|sink| Follower::start(dir, sink)).collect()
}
