//! `--rollbacks`: a run that diverges goes on from its newest checkpoint, with the text after the
//! bad step.

use super::rescue::Progress;
use super::{Trainer, resume};
use anyhow::Result;

/// Rollbacks so far, and those that `--rollbacks` allows.
#[derive(Clone, Copy, Debug)]
pub struct Rollbacks {
    pub done: usize,
    pub allowed: usize,
}

impl Trainer {
    /// Goes back to the newest checkpoint after `step` diverged, as `why` says. Returns the step of
    /// that checkpoint, or nothing if no rollback is left, or no checkpoint.
    ///
    /// # Errors
    /// If the checkpoint cannot be read.
    pub(super) fn roll_back(&mut self, step: usize, why: &str) -> Result<Option<usize>> {
        let Rollbacks { done, allowed } = self.rollbacks;
        let Some(dir) = self.files.output_dir.clone().filter(|_| done < allowed) else { return Ok(None) };
        self.stop_clock()?;
        // All ranks read the checkpoint once rank 0 has written it.
        self.finish_checkpoint()?;
        self.replica.finish_params()?;
        self.replica.sum_over_ranks(&mut [0.0])?;
        let rank0 = self.replica.zero.peers.process.is_rank0();
        let Some(saved) = resume::find(&dir, rank0)? else { return Ok(None) };
        let back = saved.state.state.step as usize;
        if back > step {
            return Ok(None);
        }
        let place = self.data.train.bookmark();
        let best = self.best_val_loss;
        self.restore(saved)?;
        // `model_best.bin` stays.
        self.set_best(best);
        self.replica.zero.forget_gathered();
        self.data.train.go_to(&place);
        if rank0 {
            self.report.open(&dir, Some(back))?;
        }
        self.rollbacks.done += 1;
        self.saved_step = Some(back);
        self.progress = Progress::Before(back);
        self.report.console().warning(format_args!(
            "{why}; back to the checkpoint of step {back}, and on with the text after step {} (rollback {} of \
             {allowed})",
            step + 1,
            done + 1
        ));
        Ok(Some(back))
    }
}
