//! What a run tells the world: the console, `main.log` as llm.c writes it, `metrics.jsonl` for machines.

pub mod cformat;
pub mod console;
pub mod jsonl;
mod log_file;
pub mod main_log;
pub mod progress;
pub mod throughput;
