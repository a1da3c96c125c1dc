//! Trackers: a run shown by programs of others, TensorBoard and MLflow.
//!
//! A tracker follows `metrics.jsonl`, the one log of a run, in a thread of its own, and reads what
//! is on the disk. So training never waits for it, and nothing is lost while a server is away: the
//! log is the buffer. Each [`Sink`] finds out from its own side, the event files or the server, how
//! far it got, so whatever is killed in between, each line arrives once. `warpsmith track` runs the
//! same code after the fact.

mod follower;
mod line;
mod mlflow;
mod tensorboard;

pub use follower::{Follower, follow_to_end};
pub use line::{Line, Sample};
pub use mlflow::{Account, Mlflow};
pub use tensorboard::{TensorBoard, events};

use anyhow::Result;

/// A program that shows runs.
pub trait Sink: Send {
    /// The flag that asks for it, with its value.
    fn flag(&self) -> String;

    /// Finds out what has arrived already. Called before the first line and after each error; the
    /// lines that follow are those of the log from its start on.
    ///
    /// # Errors
    /// If the other side cannot be reached, or refuses.
    fn begin(&mut self) -> Result<()>;

    /// Takes lines of the log in order, and leaves out those that have arrived. `from_start` says
    /// that the log starts over: it was cut back because the run resumed.
    ///
    /// # Errors
    /// If the lines, or some of them, could not be passed on.
    fn take(&mut self, lines: &[Line], from_start: bool) -> Result<()>;

    /// Ends with the log as it is now.
    ///
    /// # Errors
    /// If the end could not be passed on.
    fn end(&mut self) -> Result<()>;
}
