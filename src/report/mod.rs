//! Output of a run: the console, `main.log` as llm.c writes it, `log.txt` as build-nanogpt does,
//! `metrics.jsonl` for programs, which may be read while it grows, and plots of the latter;
//! `settings.json`, the flags of the run.

pub mod cformat;
pub mod chrome;
pub mod console;
pub mod jsonl;
pub mod log_file;
pub mod log_txt;
pub mod main_log;
pub mod plot;
pub mod progress;
pub mod settings;
pub mod tail;
pub mod throughput;

use clap::ValueEnum;
use std::fmt::Display;
use std::io::Write;

/// The logs in the directory of a run.
pub const LOGS: [&str; 2] = [main_log::NAME, jsonl::NAME];

/// The log that a run in build-nanogpt's style writes as well.
pub const NANOGPT_LOG: &str = log_txt::NAME;

/// The programs whose console a run's looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogStyle {
    /// llm.c.
    #[default]
    Llmc,
    /// build-nanogpt.
    Nanogpt,
}

/// Writes a line to standard error. If that is closed, there is nowhere to write, and the work goes
/// on.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
