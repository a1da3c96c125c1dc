//! `settings.json`: the name of a run that stays when it resumes, and the settings of the process
//! that trains it, or did last.

use super::jsonl::now;
use crate::files;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

pub const NAME: &str = "settings.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// Sixteen hexadecimal digits, drawn when the run begins, by which trackers know it.
    pub run: String,
    /// The time when the run began, in seconds since 1970.
    pub started: f64,
    /// The program, and its version.
    #[serde(default)]
    pub program: String,
    /// The start-up tables: names and values, in order.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
}

impl RunSettings {
    /// Reads those of a run, or returns nothing if it has none.
    ///
    /// # Errors
    /// If the file cannot be read or is something else.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        if !path.exists() {
            return Ok(None);
        }
        let text = files::read_text(&path, files::TEXT_BYTES)?;
        let found = serde_json::from_str(&text);
        found.with_context(|| format!("{}: expected the settings of a run", path.display())).map(Some)
    }

    /// Reads those of a run. Those of an early version get a name first.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn read_or_name(dir: &Path) -> Result<Self> {
        match Self::read(dir)? {
            Some(found) => Ok(found),
            None => Self::write(dir, false, String::new(), Vec::new()),
        }
    }

    /// Writes the settings of a process. A run that goes on keeps its name and its start; a file
    /// that cannot be understood is replaced.
    ///
    /// # Errors
    /// If there is no randomness, or the file cannot be written.
    pub fn write(
        dir: &Path,
        goes_on: bool,
        program: String,
        settings: Vec<(String, String)>,
    ) -> Result<Self> {
        let before = Self::read(dir).ok().flatten().filter(|_| goes_on);
        let (run, started) = match before {
            Some(RunSettings { run, started, .. }) => (run, started),
            None => (draw_name()?, now()),
        };
        let new = RunSettings { run, started, program, settings };
        let text = serde_json::to_string_pretty(&new)? + "\n";
        files::write(&dir.join(NAME), |out| Ok(out.write_all(text.as_bytes())?))?;
        Ok(new)
    }
}

fn draw_name() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("cannot draw a name for the run")?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RunSettings::read(dir.path()).unwrap(), None);
        let row = |value: &str| vec![("dtype".to_owned(), value.to_owned())];
        let first = RunSettings::write(dir.path(), true, "train_gpt2".to_owned(), row("f32")).unwrap();
        assert_eq!(first.run.len(), 16);
        assert_eq!(RunSettings::read_or_name(dir.path()).unwrap(), first);
        let second = RunSettings::write(dir.path(), true, "train_gpt2".to_owned(), row("bf16")).unwrap();
        assert_eq!(second, RunSettings { settings: row("bf16"), ..first });
        let other = RunSettings::write(dir.path(), false, "train_gpt2".to_owned(), row("f32")).unwrap();
        assert_ne!(other.run, second.run, "another run in the same place");
        std::fs::write(dir.path().join(NAME), "{}").unwrap();
        let error = format!("{:#}", RunSettings::read(dir.path()).unwrap_err());
        assert!(error.contains("settings.json: expected the settings of a run"), "{error}");
    }
}
