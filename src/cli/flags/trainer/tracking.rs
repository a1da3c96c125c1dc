//! Flags of trackers.

use crate::cli::values;
use clap::{ArgAction, Args};

/// Programs that show the run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tracking")]
pub struct TrackingFlags {
    /// Write event files for TensorBoard into the folder tensorboard of -o
    #[arg(id = "tensorboard", long = "tensorboard", value_name = "0|1", value_parser = values::switch,
          action = ArgAction::Set, default_value = "0")]
    pub tensorboard: bool,
    /// Send metrics, settings, samples and plots to an MLflow server; while it is away, training
    /// goes on, and they are sent later. MLFLOW_EXPERIMENT_NAME and the account are taken from the
    /// environment
    #[arg(id = "mlflow", long = "mlflow", value_name = "URL", value_parser = values::http_url)]
    pub mlflow: Option<String>,
}
