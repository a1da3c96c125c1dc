//! The text of a run: batches to train on, batches to validate on, and the questions of tasks.

use super::tokenizer::RunTokenizer;
use crate::cli::flags::trainer::{DEFAULT_HELLASWAG, PRESET_DATA, Shuffle, TrainArgs};
use crate::data::loader::{DataLoader, LoaderOptions, LoaderState, Packing, Sample};
use crate::data::tokenizer::TokenizerId;
use crate::eval::tasks::{Questions, Task, TaskFile};
use crate::hub;
use crate::model::BatchShape;
use crate::optim::batch::Batches;
use crate::parallel::environment::Process;
use anyhow::{Context, Result, anyhow, ensure};

/// The data of one rank.
pub struct Data {
    pub train: DataLoader,
    pub val: Option<DataLoader>,
    pub hellaswag: Option<Questions>,
    /// The questions of `--task`.
    pub tasks: Vec<Questions>,
    pub tokenizer: RunTokenizer,
    /// The micro-batch of a rank.
    pub shape: BatchShape,
    /// Tokens of all ranks in each optimizer step.
    pub batches: Batches,
    num_processes: usize,
    /// The flag that names the training data.
    pub train_flag: &'static str,
    /// The order of the training data.
    pub shuffle: Shuffle,
    /// Whether every step trains on the first batch.
    overfit: bool,
}

impl Data {
    /// Opens the training data, and the validation data and questions if any flag asks for them.
    /// `resumed` is the order of the run to resume, `batches` how much each step reads.
    ///
    /// # Errors
    /// If a file is missing, unusable or of another tokenizer, or the flags ask for another order
    /// than that of the run to resume.
    pub fn open(
        args: &TrainArgs,
        process: &Process,
        V: usize,
        tokenizer: RunTokenizer,
        resumed: Option<Shuffle>,
        batches: Batches,
    ) -> Result<Self> {
        let shuffle = order(args.batch.shuffle, resumed)?;
        let shape = BatchShape::new(args.batch.batch_size, args.batch.sequence_length);
        let open = |pattern: &str, flag: &str, sample: Sample, shuffle: bool| {
            let loader = DataLoader::open(LoaderOptions {
                pattern,
                flag,
                B: shape.B,
                T: shape.T,
                rank: process.rank,
                num_processes: process.world_size,
                sample,
                shuffle,
                packing: Packing {
                    documents: args.batch.packed_documents,
                    skip_long: args.batch.skip_long_examples,
                },
                V,
            });
            loader.map_err(|error| explain(error, args, pattern))
        };
        let (files, eval, overfit) = (&args.files, &args.eval, args.batch.overfit_single_batch);
        let sample = match shuffle {
            Shuffle::Llmc => Sample::Batch,
            Shuffle::Documents => Sample::Document,
            Shuffle::Sequences | Shuffle::Off => Sample::Sequence,
        };
        let open_val = || open(&files.input_val_bin, "-j", Sample::Batch, false);
        let train = match overfit {
            // Documents cannot be in the order of the files.
            true if sample == Sample::Document => open(&files.input_val_bin, "-j", Sample::Sequence, false)?,
            true => open(&files.input_val_bin, "-j", sample, false)?,
            false => open(&files.input_bin, "-i", sample, shuffle != Shuffle::Off)?,
        };
        let val = (eval.val_loss_every > 0).then(open_val).transpose()?;
        let shared =
            val.as_ref().filter(|_| !overfit && process.is_rank0()).and_then(|v| train.shared_shard(v));
        if let Some(path) = shared {
            log::warn!("-i and -j both match {}: the run validates on text it trains on", path.display());
        }
        let train_flag = args.train_data_flag();
        for (data, flag) in [(Some(&train), train_flag), (val.as_ref(), "-j")] {
            data.map_or(Ok(()), |data| check_tokenizer((data, flag), tokenizer.id, train_flag))?;
        }
        let (hellaswag, tasks) = open_questions(args, &tokenizer)?;
        Ok(Data {
            train,
            val,
            hellaswag,
            tasks,
            tokenizer,
            shape,
            batches,
            num_processes: process.world_size,
            train_flag,
            shuffle,
            overfit,
        })
    }

    /// The questions of all tasks.
    pub fn questions(&self) -> impl Iterator<Item = &Questions> {
        self.hellaswag.iter().chain(&self.tasks)
    }

    /// Micro-batches of this rank in `step`.
    pub fn grad_accum_steps(&self, step: usize) -> usize {
        self.batches.tokens(step) / (self.shape.rows() * self.num_processes)
    }

    /// Tokens of the longest question; 0 if none are asked.
    pub fn longest_question(&self) -> usize {
        self.questions().map(Questions::longest).max().unwrap_or(0)
    }

    /// Rows that count in the next `grad_accum_steps` micro-batches of every rank.
    pub fn counted(&self, grad_accum_steps: usize) -> usize {
        self.train.counted(grad_accum_steps * self.num_processes)
    }

    /// Prepares the training data for the next step.
    pub fn begin_step(&mut self) {
        if self.overfit {
            self.train.reset();
        }
    }

    /// Tokens that are shuffled as one, for a micro-batch of this shape.
    pub fn sample_tokens(&self, BatchShape { B, T, .. }: BatchShape) -> usize {
        if self.shuffle == Shuffle::Llmc { B * T } else { T }
    }

    /// Moves to a position in the training data, which counts samples of `sample_tokens` tokens.
    /// Returns whether the run reads what it would have read: otherwise the length of samples has
    /// changed, and some text of this shard may be read twice or not at all.
    ///
    /// # Errors
    /// If it is not a position in this data.
    pub fn seek(&mut self, position: &LoaderState, sample_tokens: usize) -> Result<bool> {
        let restored = if sample_tokens == self.sample_tokens(self.shape) {
            self.train.restore(position).map(|()| true)
        } else {
            self.train.restore_near(position, sample_tokens)
        };
        restored.with_context(|| format!("{}: not the data of the checkpoint", self.train_flag))
    }
}

/// Opens HellaSwag, if it is asked for, and the tasks of `--task`.
fn open_questions(args: &TrainArgs, tokenizer: &RunTokenizer) -> Result<(Option<Questions>, Vec<Questions>)> {
    let hellaswag = || {
        let tokenizer = tokenizer.needed_for("-h 1/--hellaswag-eval", "-h 0")?;
        let path = hub::hellaswag_at(&args.eval.hellaswag_data, DEFAULT_HELLASWAG);
        Questions::open(Task::HellaSwagLlmc, path, tokenizer)
    };
    let task = |TaskFile { task, path }: &TaskFile| {
        Questions::open(*task, path, tokenizer.needed_for("--task", "no --task")?).context("--task")
    };
    let tasks = args.tasks.files.iter().map(task).collect::<Result<_>>()?;
    Ok((args.eval.hellaswag_eval.then(hellaswag).transpose()?, tasks))
}

/// Checks that the tokens of a flag are of the run's tokenizer, that of `train_flag`.
fn check_tokenizer((data, flag): (&DataLoader, &str), of_run: TokenizerId, train_flag: &str) -> Result<()> {
    let found = data.tokenizer();
    ensure!(
        found.agrees(&of_run),
        "{flag}: tokens of the tokenizer {found}, and those of {train_flag} are of {of_run}; prepare both \
         with one tokenizer"
    );
    Ok(())
}

/// Adds to the error of a preset without data how to make them.
pub(super) fn explain(error: anyhow::Error, args: &TrainArgs, pattern: &str) -> anyhow::Error {
    let known = PRESET_DATA.iter().find(|(dir, ..)| pattern.starts_with(dir));
    let is_missing = glob::glob(pattern).is_ok_and(|mut found| found.next().is_none());
    match known.filter(|_| args.recipe.preset.is_some() && is_missing) {
        Some((dir, name, source)) => {
            anyhow!("{error:#}; fetch and tokenize them: warpsmith data hub:{source} -o {dir} --name {name}")
        }
        None => error,
    }
}

/// The order of the training data: the one that `--shuffle` asks for, else that of the run to
/// resume, else the default.
fn order(asked: Option<Shuffle>, resumed: Option<Shuffle>) -> Result<Shuffle> {
    if let (Some(asked), Some(resumed)) = (asked, resumed) {
        ensure!(
            asked == resumed,
            "--shuffle {asked}: the checkpoint was written with --shuffle {resumed}; use that to resume"
        );
    }
    Ok(resumed.or(asked).unwrap_or_default())
}
