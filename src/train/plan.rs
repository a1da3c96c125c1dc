//! A run before it starts, for `warpsmith plan`: its memory, its steps, its tokens.

use super::fit;
use super::lora;
use super::memory::RankMemory;
use super::setup::Start;
use super::tokenizer::RunTokenizer;
use crate::cli::flags::trainer::{DEFAULT_MODEL, MicroBatch, TrainArgs};
use crate::ops::Ops;
use crate::parallel::environment::Process;
use crate::replica::ReplicaPlan;
use anyhow::{Result, ensure};
use std::path::Path;

/// A run before it starts.
pub struct RunPlan {
    /// The flags, with the batch that `-b auto` would choose.
    pub args: TrainArgs,
    pub replica: ReplicaPlan,
    /// The memory of rank 0.
    pub memory: RankMemory,
    /// The memory of each other rank, if there are any.
    pub others: Option<RankMemory>,
    /// The largest micro-batch that fits; `None` if not even one sequence does, or where the memory
    /// of the device is not known.
    pub largest_batch: Option<usize>,
    /// Optimizer steps; `None` if the data would say, and is not there.
    pub steps: Option<usize>,
    /// The tokens of these steps.
    pub tokens: Option<u64>,
    /// Assumptions, a line each.
    pub notes: Vec<String>,
}

/// Plans the run of `args`, of which each rank may take `room` bytes. Data that is there is looked
/// at; data that is not may still be written.
///
/// # Errors
/// As starting the run, apart from missing data.
pub fn plan(args: &TrainArgs, dev: &dyn Ops, room: Option<u64>) -> Result<RunPlan> {
    ensure!(
        args.files.resume || args.model.source != DEFAULT_MODEL || Path::new(DEFAULT_MODEL).exists(),
        "-e/--model: missing; give a shape such as d12, or a model"
    );
    let mut notes = Vec::new();
    let (mut tokenizer, there) = match RunTokenizer::of_shards(args) {
        Ok(tokenizer) => (tokenizer, true),
        Err(why) => {
            notes.push(format!("planned for GPT-2's vocabulary, as there is no data: {why:#}"));
            (RunTokenizer::assumed(), false)
        }
    };
    let start = lora::attach(Start::find(args, tokenizer.id.vocab_size as usize)?, args)?;
    if there {
        tokenizer.find(&start, args)?;
    }
    let args = fit::choose_batch(args, &start, &tokenizer, dev, room)?.into_owned();
    let (replica, epoch_tokens) = if there {
        let data = start.open_data(&args, tokenizer)?;
        let replica = start.plan(&args, &data.tokenizer, data.longest_question(), dev)?;
        (replica, Some(data.train.epoch_tokens()))
    } else {
        let question = if args.asks_questions() { start.config().maxT } else { 0 };
        (start.plan(&args, &tokenizer, question, dev)?, None)
    };
    let batches = start.batches(&args)?;
    let known =
        epoch_tokens.is_some() || args.schedule.train_tokens.is_some() || args.batch.num_iterations >= 0;
    let steps = known.then(|| args.train_steps(epoch_tokens.unwrap_or(0), &batches)).transpose()?;
    if steps.is_none() {
        notes.push("without data, -x or --train-tokens the number of steps is not known".to_owned());
    }
    let as_rank = |rank| TrainArgs { process: Process { rank, ..args.process.clone() }, ..args.clone() };
    let memory = |rank| RankMemory::new(&as_rank(rank), &replica, dev, room);
    Ok(RunPlan {
        memory: memory(0),
        others: (args.process.world_size > 1).then(|| memory(1)),
        largest_batch: room.map(|room| largest(&args, &replica, dev, room)).transpose()?.flatten(),
        tokens: steps.map(|steps| batches.tokens_before(steps)),
        steps,
        notes,
        replica,
        args,
    })
}

/// The largest micro-batch that fits, which is the chosen one of `-b auto`.
fn largest(args: &TrainArgs, plan: &ReplicaPlan, dev: &dyn Ops, room: u64) -> Result<Option<usize>> {
    match args.batch.micro_batch {
        MicroBatch::Auto => Ok(Some(args.batch.batch_size)),
        MicroBatch::Of(_) => fit::largest_batch(args, plan, dev, room),
    }
}
