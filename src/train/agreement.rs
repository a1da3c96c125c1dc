//! Before the first step: whether all ranks are about to do the same. They would not notice later, as sums of different models and
//! steps have the same lengths.

use super::Run;
use anyhow::{Result, ensure};

/// Numbers that fit an f32 exactly, of which one rank's alone are not zero in a sum.
type Digits = [f32; 2];

fn digits(text: &str) -> Digits {
    let crc = crc32fast::hash(text.as_bytes());
    [crc >> 16, crc & 0xffff].map(|half| half as f32)
}

impl Run {
    /// What all ranks must have alike: what it is called, and what this rank has.
    fn terms(&self) -> Vec<(&'static str, String)> {
        let a = &self.args;
        let data = &self.train_loader;
        let val = self.val_loader.as_ref().map(|data| (data.num_tokens(), data.num_shards()));
        let questions = self.hellaswag.as_ref().map(|questions| questions.examples.len());
        vec![
            ("the step that -o goes on from", self.first_step.to_string()),
            ("the shape of the model", format!("{:?}", self.model.weights.config)),
            ("--seed", a.model.seed.to_string()),
            (
                "-b, -t, -d",
                format!("{:?}", (a.batch.batch_size, a.batch.sequence_length, a.total_batch_tokens())),
            ),
            ("tokens and shards of -i", format!("{:?}", (data.num_tokens(), data.num_shards()))),
            ("tokens and shards of -j", format!("{val:?}")),
            ("questions of --hellaswag-data", format!("{questions:?}")),
            ("-x, -l and the schedule", format!("{:?}", self.schedule)),
            ("--grad-clip and what AdamW is told", format!("{:?}", self.optimizer.hyper())),
            ("--skip-update-lossz, --skip-update-gradz", {
                format!("{:?}", (a.optim.skip_update_lossz, a.optim.skip_update_gradz))
            }),
            ("-a", a.batch.overfit_single_batch.to_string()),
            ("-v, -m", format!("{:?}", (a.eval.val_loss_every, a.eval.val_max_steps))),
            ("-s, -g", format!("{:?}", (a.eval.sample_every, a.eval.sample_len))),
            ("-n, -o", format!("{:?}", (a.files.checkpoint_every, a.files.output_dir.is_some()))),
            (
                "-z, --sum-every-micro-step",
                format!("{:?}", (a.processes.zero_stage, a.processes.sum_every_micro_step)),
            ),
            ("--dtype, -w", format!("{:?}", (self.dev.operand_dtype(), a.gpu.use_master_weights))),
        ]
    }

    /// Compares the terms of all ranks with the master's.
    ///
    /// # Errors
    /// One line that says which of them differ, and what they are here.
    pub(super) fn agree(&mut self) -> Result<()> {
        let process = self.zero.peers.process.clone();
        for (what, here) in self.terms() {
            let own = digits(&format!("{what} {here}"));
            let mut masters = if process.is_rank0() { own } else { [0.0; 2] };
            self.zero.peers.sum(self.dev.as_mut(), &self.model, &mut masters)?;
            ensure!(
                masters == own,
                "rank {}: {what}: expected what rank 0 has, found {here}; start all ranks with the same flags and data, and -o on a disk \
                 that all machines share",
                process.rank
            );
        }
        Ok(())
    }
}
