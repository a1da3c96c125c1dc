//! Warnings and details on standard error. Standard output is for what a program prints.
//!
//! `WARPSMITH_LOG`, or else `RUST_LOG`, says how much: `warn` (the default), `info` (which kernel computes each product, and why), `off`, or
//! what env_logger understands.

use crate::parallel::environment::Process;
use log::Level;
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
    logger.format(|out, record| {
        let rank = RANK.get().map_or("", String::as_str);
        writeln!(out, "{}", line(rank, record.level(), &record.args().to_string()))
    });
    logger.init();
}

/// From now on lines say whose they are.
pub fn name_rank(process: &Process) {
    if process.world_size > 1 {
        RANK.get_or_init(|| format!("rank {}: ", process.rank));
    }
}

/// `rank 3: warning: …`, whatever the text holds.
fn line(rank: &str, level: Level, text: &str) -> String {
    let level = match level {
        Level::Warn => "warning".to_owned(),
        level => level.as_str().to_ascii_lowercase(),
    };
    super::one_line(&format!("{rank}{level}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_grave_it_is_and_whose() {
        assert_eq!(line("", Level::Warn, "a kernel\n\tis left out"), "warning: a kernel is left out");
        assert_eq!(line("rank 3: ", Level::Info, "a plan"), "rank 3: info: a plan");
    }
}
