//! Warnings and details go to standard error; standard output is for a program's results.
//!
//! `WARPSMITH_LOG`, or else `RUST_LOG`, sets the level: `warn` (the default), `info` (the device,
//! connections, checkpoints written and deleted, the kernel chosen for each matmul and why), `off`,
//! or any filter of env_logger.

use crate::parallel::environment::Process;
use anyhow::{Result, ensure};
use log::{Level, LevelFilter};
use std::env;
use std::io::Write;
use std::sync::OnceLock;

/// Prefix of every line when there are several processes.
static RANK: OnceLock<String> = OnceLock::new();

/// Starts the logger. Programs call this first.
///
/// # Errors
/// One line, if a variable holds no valid filter.
pub fn start() -> Result<()> {
    let set = |name: &'static str| Some((name, env::var(name).ok().filter(|value| !value.is_empty())?));
    let (name, filter) =
        ["WARPSMITH_LOG", "RUST_LOG"].into_iter().find_map(set).unwrap_or(("", "warn".into()));
    check(name, &filter)?;
    let mut logger = env_logger::Builder::new();
    logger.parse_filters(&filter);
    logger.format(|out, record| {
        let rank = RANK.get().map_or("", String::as_str);
        writeln!(out, "{}", line(rank, record.level(), &record.args().to_string()))
    });
    logger.init();
    Ok(())
}

/// Refuses words that are not levels: env_logger would take one for the name of a module, and hide
/// all warnings.
fn check(name: &str, filter: &str) -> Result<()> {
    for part in filter.split('/').next().unwrap_or_default().split(',').map(str::trim) {
        let (module, level) = part.rsplit_once('=').map_or(("", part), |(module, level)| (module, level));
        let is_module = module.is_empty() && part.contains("::");
        ensure!(
            is_module || part.is_empty() || level.parse::<LevelFilter>().is_ok(),
            "{name}={filter}: expected off, error, warn, info, debug or trace, or MODULE=LEVEL, found {part}"
        );
    }
    Ok(())
}

/// Prefixes all further lines with the rank.
pub fn name_rank(process: &Process) {
    if process.world_size > 1 {
        RANK.get_or_init(|| format!("rank {}: ", process.rank));
    }
}

/// `rank 3: warning: …`, on one line.
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

    #[test]
    fn a_filter_that_would_hide_warnings_by_a_typo_is_refused() {
        for good in [
            "warn",
            "info",
            "off",
            "INFO",
            "warn,warpsmith::device=debug",
            "warpsmith=trace",
            "info/GELU",
            "a::b",
        ] {
            assert!(check("RUST_LOG", good).is_ok(), "{good}");
        }
        for bad in ["inof", "warn,dbug", "warpsmith=inof"] {
            let error = check("WARPSMITH_LOG", bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("WARPSMITH_LOG={bad}: expected off, error, warn")), "{error}");
        }
    }
}
