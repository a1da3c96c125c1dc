//! The shards that a flag names: a pattern, or several with weights.

use crate::files;
use anyhow::{Context, Result, anyhow, ensure};
use std::path::{Path, PathBuf};

/// The shards of a pattern.
#[derive(Debug)]
pub(super) struct Source {
    /// `None` for a single pattern without a weight.
    pub weight: Option<f64>,
    pub paths: Vec<PathBuf>,
}

/// Reads `PATTERN`, or `PATTERN=WEIGHT,PATTERN=WEIGHT`.
///
/// # Errors
/// One line, if no file matches a pattern, some patterns have weights and others do not, or a
/// weight is no positive number.
pub(super) fn sources(text: &str, flag: &str) -> Result<Vec<Source>> {
    let split: Vec<(&str, Option<&str>)> = text
        .split(',')
        .map(|part| part.rsplit_once('=').map_or((part, None), |(pattern, weight)| (pattern, Some(weight))))
        .collect();
    // A comma or an equals sign may be part of a name.
    if split.iter().all(|(_, weight)| weight.is_none()) || Path::new(text).exists() {
        return Ok(vec![Source { weight: None, paths: matching_shards(text, flag)? }]);
    }
    let source = |(pattern, weight): (&str, Option<&str>)| {
        let weight = weight.with_context(|| {
            format!("{flag} {pattern}: has no weight, but another pattern has; give each one: {pattern}=0.5")
        })?;
        let number = weight.parse::<f64>().ok().filter(|weight| weight.is_finite() && *weight > 0.0);
        let number = number.with_context(|| {
            format!("{flag} {pattern}={weight}: expected a weight above 0 after =, found {weight:?}")
        })?;
        Ok(Source { weight: Some(number), paths: matching_shards(pattern, flag)? })
    };
    split.into_iter().map(source).collect()
}

/// Returns the shards that match, sorted by name.
fn matching_shards(pattern: &str, flag: &str) -> Result<Vec<PathBuf>> {
    let paths = files::matching(pattern).map_err(|e| anyhow!("{flag} {e:#}"))?;
    ensure!(
        !paths.is_empty(),
        "{flag} {pattern}: no file matches; give token shards, such as `warpsmith data` makes (and quote the pattern)"
    );
    Ok(paths)
}
