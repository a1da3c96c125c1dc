//! After a fatal error, weights that are whole are not lost: rank 0 writes the checkpoint of the
//! last good step before the run ends.

use super::Trainer;
use super::guards::Guards;
use crate::checkpoint;
use crate::data::loader::Bookmark;
use crate::sharding::Partition;
use std::path::Path;

/// The state that a checkpoint would hold if the run failed now.
pub enum Progress {
    /// All of it is that before this step.
    Before(usize),
    /// Weights are those before this step; data and guards were as in `Undo`.
    Within(usize, Undo),
    /// Some weights are updated and others are not, or the loss is not finite.
    Lost,
}

/// The place in the data and the guards at the start of a step.
pub struct Undo {
    pub place: Bookmark,
    pub guards: Guards,
}

/// Says which checkpoint is the newest in the directory of a run, if it has one.
pub fn newest(dir: &Path) -> String {
    match checkpoint::steps(dir).unwrap_or_default().last() {
        Some(step) => format!("the newest checkpoint is that of step {step}"),
        None => "there is no checkpoint".to_owned(),
    }
}

impl Trainer {
    /// Takes note that `step` begins.
    pub(super) fn begin_progress(&mut self, step: usize) {
        let undo = Undo { place: self.data.train.bookmark(), guards: self.guards.clone() };
        self.progress = Progress::Within(step, undo);
    }

    /// Writes the checkpoint of the last good step after a fatal error, and says so, or why it
    /// cannot.
    pub(super) fn rescue(&mut self) {
        let (step, undo) = match std::mem::replace(&mut self.progress, Progress::Lost) {
            Progress::Before(step) => (step, None),
            Progress::Within(step, undo) => (step, Some(undo)),
            Progress::Lost => return,
        };
        let Some(dir) = self.output_dir().map(Path::to_owned) else { return };
        if step == self.first_step() || self.saved_step == Some(step) {
            return;
        }
        if let Some(Undo { place, guards }) = undo {
            self.data.train.go_to(&place);
            self.guards = guards;
        }
        let saved = newest(&dir);
        if self.replica.optimizer.m.partition != Partition::WHOLE {
            log::warn!("step {step} is lost, because each rank holds a part of its state (-z); {saved}");
            return;
        }
        match self.checkpoint(step, false, true) {
            Ok(()) => log::warn!(
                "wrote the checkpoint of step {step} to {}; fix the error below, then resume with -y 1",
                dir.display()
            ),
            Err(error) => log::warn!("cannot write the checkpoint of step {step}; {saved}: {error:#}"),
        }
    }
}
