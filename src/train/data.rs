//! The text of a run: batches to train on, batches to validate on, HellaSwag's questions.

use crate::cli::flags::trainer::TrainArgs;
use crate::data::loader::{DataLoader, LoaderOptions, LoaderState};
use crate::eval::hellaswag::HellaSwag;
use crate::model::BatchShape;
use crate::parallel::environment::Process;
use anyhow::{Context, Result};

/// The data of one rank.
pub struct Data {
    pub train: DataLoader,
    pub val: Option<DataLoader>,
    pub hellaswag: Option<HellaSwag>,
    /// The micro-batch of a rank.
    pub shape: BatchShape,
    /// Micro-batches of a rank per optimizer step.
    pub grad_accum_steps: usize,
    /// Tokens of all ranks per optimizer step.
    pub tokens_per_step: usize,
    /// The flag that names the training data.
    pub train_flag: &'static str,
    /// Whether every step trains on the first batch.
    overfit: bool,
}

impl Data {
    /// Opens the training data, and the validation data and questions if any flag asks for them.
    pub fn open(args: &TrainArgs, process: &Process, V: usize) -> Result<Self> {
        let shape = BatchShape { B: args.batch.batch_size, T: args.batch.sequence_length };
        let open = |pattern: &str, flag: &str, shuffle: bool| {
            DataLoader::open(LoaderOptions {
                pattern,
                flag,
                B: shape.B,
                T: shape.T,
                rank: process.rank,
                num_processes: process.world_size,
                shuffle,
                V,
            })
        };
        let (files, eval, overfit) = (&args.files, &args.eval, args.batch.overfit_single_batch);
        Ok(Data {
            train: match overfit {
                true => open(&files.input_val_bin, "-j", false)?,
                false => open(&files.input_bin, "-i", true)?,
            },
            val: (eval.val_loss_every > 0).then(|| open(&files.input_val_bin, "-j", false)).transpose()?,
            hellaswag: eval.hellaswag_eval.then(|| HellaSwag::open(&eval.hellaswag_data)).transpose()?,
            shape,
            grad_accum_steps: args.grad_accum_steps(),
            tokens_per_step: args.total_batch_tokens(),
            train_flag: args.train_data_flag(),
            overfit,
        })
    }

    /// Prepares the training data for the next step.
    pub fn begin_step(&mut self) {
        if self.overfit {
            self.train.reset();
        }
    }

    /// Moves to a position in the training data.
    ///
    /// # Errors
    /// If it is not a position in this data.
    pub fn seek(&mut self, position: &LoaderState) -> Result<()> {
        let restored = self.train.restore(position);
        restored.with_context(|| format!("{}: not the data of the checkpoint", self.train_flag))
    }
}
