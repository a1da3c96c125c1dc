//! The flags of `warpsmith track`.

use crate::cli::values;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct TrackArgs {
    /// Directory of a run, with its metrics.jsonl
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Write event files for TensorBoard into DIR/tensorboard
    #[arg(long, value_name = "0|1", value_parser = values::switch, action = clap::ArgAction::Set,
          num_args = 0..=1, default_value = "0", default_missing_value = "1")]
    pub tensorboard: bool,
    /// Send metrics, settings, samples and plots to an MLflow server
    #[arg(long, value_name = "URL", value_parser = values::http_url)]
    pub mlflow: Option<String>,
}
