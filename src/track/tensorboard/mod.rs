//! `--tensorboard 1`: event files in `DIR/tensorboard`, which `tensorboard --logdir` shows.
//!
//! Each line of the log is one event, with the step and the time of the line. So the files
//! themselves tell which lines they have, to the bit, and where a run that resumed took another
//! course. From there on a new file counts: it begins with a `SessionLog` that is a `START` at that
//! step, by which TensorBoard drops later steps of the files before (PyTorch's `purge_step`).

pub mod events;
pub mod proto;

use super::{Line, Sink};
use crate::files::lock::{DirLock, host_name};
use crate::report::jsonl;
use anyhow::{Context, Result};
use events::{Place, Writer};
use std::fs;
use std::path::{Path, PathBuf};

const FOLDER: &str = "tensorboard";
const PREFIX: &str = "events.out.tfevents.";

pub struct TensorBoard {
    folder: PathBuf,
    /// The events that count, in order.
    written: Vec<Place>,
    /// How many of them the log has confirmed since its start.
    confirmed: usize,
    /// Lines of the log at the step of the last confirmed event. All of a step are written again if
    /// one of them is.
    at_step: Vec<Line>,
    /// The file that is being written: none until the first line that is new.
    writer: Option<Writer>,
    _lock: DirLock,
}

impl TensorBoard {
    /// Takes the event files of the run in `dir`.
    ///
    /// # Errors
    /// If another process writes them, or the directory cannot be written to.
    pub fn open(dir: &Path) -> Result<Self> {
        let lock = DirLock::take_for(dir, FOLDER)?;
        Ok(TensorBoard {
            folder: dir.join(FOLDER),
            written: Vec::new(),
            confirmed: 0,
            at_step: Vec::new(),
            writer: None,
            _lock: lock,
        })
    }

    /// The event files, oldest first.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let context = || format!("cannot read {}", self.folder.display());
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(context)? {
            let path = entry.with_context(context)?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
                files.push(path);
            }
        }
        // TensorBoard reads them in this order.
        files.sort();
        Ok(files)
    }

    /// A file that TensorBoard reads after all others.
    fn create(&self, start: Option<u64>) -> Result<Writer> {
        let seconds_of = |path: &PathBuf| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok()
        };
        let newest = self.files()?.iter().filter_map(seconds_of).max().unwrap_or(0);
        let time = jsonl::now();
        let seconds = (time as u64).max(newest.saturating_add(1));
        let name = format!("{PREFIX}{seconds:010}.{}.{}", host_name(), std::process::id());
        Writer::create(self.folder.join(name), time, start)
    }

    /// Passes over a line that has its event. Returns whether it has.
    fn confirm(&mut self, line: &Line) -> bool {
        let Some(&(step, time)) = self.written.get(self.confirmed) else { return false };
        if step != line.step || line.time.is_some_and(|of_line| of_line != time) {
            return false;
        }
        self.confirmed += 1;
        self.remember(line);
        true
    }

    fn remember(&mut self, line: &Line) {
        self.at_step.retain(|other| other.step == line.step);
        self.at_step.push(line.clone());
    }

    /// Starts a file that takes over from `line` on. Events from its step on no longer count, so
    /// those of earlier lines at that step are written again.
    fn take_over(&mut self, line: &Line) -> Result<()> {
        // TensorBoard takes the first of all for the start of the run, and drops nothing then.
        let first = self.written.is_empty().then_some(line.step);
        let start = self.written.get(self.confirmed).map(|event| event.0.min(line.step)).or(first);
        let mut writer = self.create(start)?;
        if let Some(start) = start {
            self.written.truncate(self.written.partition_point(|event| event.0 < start));
            let again: Vec<&Line> = self.at_step.iter().filter(|line| line.step >= start).collect();
            writer.lines(&again)?;
            self.written.extend(again.iter().map(|line| place(line)));
        }
        self.confirmed = self.written.len();
        self.writer = Some(writer);
        Ok(())
    }
}

fn place(line: &Line) -> Place {
    (line.step, line.time.unwrap_or_default())
}

impl Sink for TensorBoard {
    fn flag(&self) -> String {
        "--tensorboard 1".to_owned()
    }

    fn begin(&mut self) -> Result<()> {
        // A record that was cut off by an error ends its file.
        self.writer = None;
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let mut written = Vec::new();
        self.files()?.iter().try_for_each(|path| events::read(path, &mut written))?;
        self.written = written;
        Ok(())
    }

    fn take(&mut self, lines: &[Line], from_start: bool) -> Result<()> {
        if from_start {
            self.confirmed = 0;
            self.at_step.clear();
        }
        let known = lines.iter().take_while(|line| self.confirm(line)).count();
        let Some(new) = lines.get(known..).filter(|new| !new.is_empty()) else { return Ok(()) };
        let differs = self.confirmed < self.written.len();
        if differs || self.writer.is_none() {
            self.take_over(&new[0])?;
        }
        if let Some(writer) = &mut self.writer {
            writer.lines(&new.iter().collect::<Vec<_>>())?;
        }
        self.written.extend(new.iter().map(place));
        self.confirmed = self.written.len();
        new.iter().for_each(|line| self.remember(line));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
