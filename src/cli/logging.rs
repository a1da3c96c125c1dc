//! Warnings and details on standard error. Standard output is for what a program prints.
//!
//! `WARPSMITH_LOG`, or else `RUST_LOG`, says how much: `warn` (the default), `info` (which kernel computes each product, and why), `off`, or
//! what env_logger understands.

use crate::parallel::environment::Process;
use std::env;
use std::io::Write;
use std::sync::OnceLock;

/// What goes before a line, where there are several processes.
static RANK: OnceLock<String> = OnceLock::new();

/// Begins to show what is logged. The first thing that a program does.
pub fn start() {
    let filter = ["WARPSMITH_LOG", "RUST_LOG"].into_iter().find_map(|name| env::var(name).ok());
    let mut logger = env_logger::Builder::new();
    logger.parse_filters(filter.as_deref().unwrap_or("warn"));
    logger.format(|line, record| {
        let rank = RANK.get().map_or("", String::as_str);
        let level = match record.level() {
            log::Level::Warn => "warning".to_owned(),
            level => level.as_str().to_ascii_lowercase(),
        };
        writeln!(line, "{rank}{level}: {}", super::one_line(&record.args().to_string()))
    });
    logger.init();
}

/// From now on lines say whose they are.
pub fn name_rank(process: &Process) {
    if process.world_size > 1 {
        RANK.get_or_init(|| format!("rank {}: ", process.rank));
    }
}
