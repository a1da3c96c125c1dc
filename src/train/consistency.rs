//! Checks before the first step that all ranks are about to do the same work. They would not notice
//! later: sums over different models and different steps have the same lengths.

use super::Trainer;
use crate::cli::flags::trainer::TrainArgs;
use crate::data::loader::DataLoader;
use crate::eval::tasks::Questions;
use anyhow::{Result, ensure};

/// The hash of a setting as two numbers that fit an f32 exactly, so that they survive a sum in
/// which those of all other ranks are zero.
type Fingerprint = [f32; 2];

fn fingerprint(text: &str) -> Fingerprint {
    let crc = crc32fast::hash(text.as_bytes());
    [crc >> 16, crc & 0xffff].map(|half| half as f32)
}

/// `on` or `off`.
fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl Trainer {
    /// The settings that must be the same on all ranks: the name of each, and its value here.
    fn settings(&self, args: &TrainArgs) -> Vec<(&'static str, String)> {
        let size = |data: &DataLoader| {
            let (tokens, shards, weights) = (data.num_tokens(), data.num_shards(), data.weights());
            let mixed = if weights.is_empty() { String::new() } else { format!(", mixed by {weights:?}") };
            let packed = match data.packed_documents() {
                Some(documents) => format!(", {documents} documents packed"),
                None => String::new(),
            };
            format!("{tokens} tokens in {shards} shard(s){mixed}{packed}")
        };
        let unread = || "not read".to_owned();
        let TrainArgs { batch, optim, eval, files, processes, gpu, .. } = args;
        vec![
            ("the step that -o resumes from", self.resumed_step.unwrap_or(0).to_string()),
            ("the shape of the model", self.replica.model.weights.config.to_string()),
            ("the tokenizer of -i", self.data.tokenizer.id.to_string()),
            ("--seed", args.model.seed.to_string()),
            ("--dropout and its parts", self.replica.model.acts.dropout.to_string()),
            ("-b, -t, -d, --batch-ramp", {
                format!("{}, {}, {}", batch.batch_size, batch.sequence_length, self.data.batches)
            }),
            ("--shuffle", self.data.shuffle.to_string()),
            ("the data of -i", size(&self.data.train)),
            ("the data of -j", self.data.val.as_ref().map_or_else(unread, size)),
            ("questions of --hellaswag-data", {
                self.data
                    .hellaswag
                    .as_ref()
                    .map_or_else(unread, |questions| questions.examples.len().to_string())
            }),
            ("--task, --task-every", {
                let task = |q: &Questions| format!("{} of {}, ", q.examples.len(), q.task.name());
                let tasks: String = self.data.tasks.iter().map(task).collect();
                format!("{tasks}{}", self.tasks_every)
            }),
            ("-x, -l and the schedule", self.schedule.to_string()),
            ("--grad-clip and AdamW's hyper-parameters", self.replica.optimizer.hyper().to_string()),
            ("--freeze", self.replica.model.weights.frozen.to_string()),
            ("--optimizer and its settings", self.replica.optimizer.options().to_string()),
            ("--skip-update-lossz, --skip-update-gradz", {
                format!("{}, {}", optim.skip_update_lossz, optim.skip_update_gradz)
            }),
            ("-a", switch(batch.overfit_single_batch).to_owned()),
            ("-v, -m, --early-stop", {
                format!("{}, {}, {}", eval.val_loss_every, eval.val_max_steps, eval.early_stop)
            }),
            ("-s, -g", format!("{}, {}", eval.sample_every, eval.sample_len)),
            ("-n, -o", {
                let dir = if files.output_dir.is_some() { "a directory" } else { "none" };
                format!("{}, {dir}", files.checkpoint_every)
            }),
            ("-z, --sum-every-micro-step", {
                format!("{}, {}", processes.zero_stage as usize, switch(processes.sum_every_micro_step))
            }),
            ("--check-numerics, --rollbacks", {
                format!("{}, {}", switch(args.device.check_numerics), files.rollbacks)
            }),
            ("--dtype, -w", {
                format!("{}, {}", self.replica.dev.operand_dtype(), switch(gpu.use_master_weights))
            }),
        ]
    }

    /// Compares the settings of this rank with those of rank 0.
    ///
    /// # Errors
    /// One line that names the first setting that differs, and its value on this rank.
    pub(super) fn check_consistency(&mut self, args: &TrainArgs) -> Result<()> {
        let process = self.replica.zero.peers.process.clone();
        for (name, here) in self.settings(args) {
            let own = fingerprint(&format!("{name} {here}"));
            let mut rank0 = if process.is_rank0() { own } else { [0.0; 2] };
            self.replica.sum_over_ranks(&mut rank0)?;
            ensure!(
                rank0 == own,
                "rank {}: {name}: expected what rank 0 has, found {here}; start all ranks with the same \
                 flags and data, and -o on a disk that all machines share",
                process.rank
            );
        }
        Ok(())
    }
}
