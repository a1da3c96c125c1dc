//! Output of a run: the console, `main.log` as llm.c writes it, `metrics.jsonl` for programs, and
//! plots of the latter.

pub mod cformat;
pub mod chrome;
pub mod console;
pub mod jsonl;
pub mod log_file;
pub mod main_log;
pub mod plot;
pub mod progress;
pub mod throughput;

/// The logs in the directory of a run.
pub const LOGS: [&str; 2] = [main_log::NAME, jsonl::NAME];
