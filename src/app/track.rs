//! `warpsmith track`: a run that has been trained, passed on to trackers.

use crate::cli::flags::warpsmith::TrackArgs;
use crate::track::{Account, Mlflow, TensorBoard, follow_to_end};
use anyhow::{Context, Result, ensure};

/// Passes on what has not arrived yet.
pub fn track(args: &TrackArgs) -> Result<()> {
    let dir = args.dir.as_path();
    ensure!(dir.is_dir(), "{}: expected the directory of a run, found none", dir.display());
    if args.tensorboard {
        follow_to_end(dir, Box::new(TensorBoard::open(dir)?)).context("--tensorboard")?;
    }
    if let Some(url) = &args.mlflow {
        let account = Account::from_env(&|name| std::env::var(name).ok());
        follow_to_end(dir, Box::new(Mlflow::open(dir, url, account)?)).context("--mlflow")?;
    }
    Ok(())
}
