//! The flags of `warpsmith watch`.

use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// Directories of runs, with their metrics.jsonl, or of several runs each
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Port of the page on this machine (0 = any free one); other machines reach it by a tunnel
    /// such as ssh -L
    #[arg(long, value_name = "PORT", default_value = "6007")]
    pub port: u16,
    /// Write the page to a file, with all that is in the logs now, instead of serving it
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
}
