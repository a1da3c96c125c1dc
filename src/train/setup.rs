//! From flags to a [`Trainer`]: open the data, find the initial weights, plan the memory, allocate
//! it once, fill it.

use super::Trainer;
use super::checkpoints::CheckpointWriter;
use super::data::Data;
use super::early_stop::Patience;
use super::fit;
use super::guards::Guards;
use super::hunt::Hunt;
use super::lora;
use super::memory::{MemoryMeter, RankMemory};
use super::profile::{self, Profiler};
use super::report::Report;
use super::rescue::Progress;
use super::resume;
use super::rollback::Rollbacks;
use super::stop::Stop;
use super::tokenizer::RunTokenizer;
use super::tracking;
use crate::checkpoint::{self, ModelFile, RunFile, Saved};
use crate::cli::ModelSource;
use crate::cli::flags::trainer::{
    CudaGraphs, DEFAULT_MODEL, EvalFlags, FileFlags, OptimFlags, Shuffle, TrainArgs,
};
use crate::config::{DropoutRates, ModelConfig};
use crate::data::tokenizer::Tokenizer;
use crate::device::open::DeviceName;
use crate::files::lock::DirLock;
use crate::hub;
use crate::model::ModelOptions;
use crate::numerics::Watch;
use crate::ops::Ops;
use crate::optim::batch::Batches;
use crate::optim::optimizer::HyperParams;
use crate::optim::schedule::Schedule;
use crate::parallel::environment::Process;
use crate::params::ParamLayout;
use crate::params::frozen::Frozen;
use crate::replica::peers::Peers;
use crate::replica::{ReplicaOptions, ReplicaPlan};
use crate::report::progress::saying;
use crate::report::{LOGS, LogStyle, NANOGPT_LOG};
use crate::sharding::{Partition, Sharding, ZeroStage};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The origin of the initial weights.
pub(super) enum Start {
    Random(ModelConfig),
    /// A model, the name of its file for messages, and its tokenizer, if it is known.
    File {
        model: Box<ModelFile>,
        name: String,
        tokenizer: Option<Tokenizer>,
    },
    Resume(Box<Saved>),
}

/// Builds a run, ready for its first step. `-b auto` chooses a batch for `room` bytes on each rank.
///
/// # Errors
/// If data, checkpoint and shape are missing or do not fit each other, memory is short, or ranks
/// are not consistent.
pub fn set_up(args: &TrainArgs, dev: Box<dyn Ops>, peers: Peers, room: Option<u64>) -> Result<Trainer> {
    check_model(args)?;
    let watch = Watch::default();
    let (mut dev, mut profiler) = Profiler::open(args, Box::new(watch.device(dev)))?;
    let quiet = !peers.process.is_rank0();
    let lock = lock(args)?;
    let mut tokenizer = RunTokenizer::of_shards(args)?;
    let start =
        saying("reading the checkpoint", quiet, || Start::find(args, tokenizer.id.vocab_size as usize))?;
    let start = lora::attach(start, args)?;
    tokenizer.find(&start, args)?;
    let args = &*fit::choose_batch(args, &start, &tokenizer, dev.as_ref(), room)?;
    let data = saying("opening the data", quiet, || start.open_data(args, tokenizer))?;
    let plan = start.plan(args, &data.tokenizer, data.longest_question(), dev.as_ref())?;
    let config = plan.config;
    let total_steps = args.train_steps(data.train.epoch_tokens(), &data.batches)?;
    let schedule = args.schedule(total_steps, &data.batches)?;
    check_samples(&args.eval, &data.tokenizer, &config)?;
    check_questions(&data, &config, &peers.process)?;
    start.check_step(schedule.total_steps)?;
    profile::check_steps(&mut profiler, schedule.total_steps, start.resumed_step(), &peers.process)?;
    let mut report = Report::new(schedule.total_steps, quiet, args.files.log_style);
    let memory = RankMemory::new(args, &plan, dev.as_ref(), room);
    announce(&mut report, args, &start, (&data, &schedule), &peers, (&plan, &memory), dev.as_mut())?;
    let first_step = start.resumed_step().unwrap_or(0);
    let settings = resume::settings(args, &schedule, &data, &plan.model)?;
    let mut trainer = Trainer {
        guards: Guards::new(&args.optim, dev.float_dtype()),
        hunt: Hunt { watch, always: args.device.check_numerics, memory: plan.memory.clone() },
        rollbacks: Rollbacks { done: 0, allowed: args.files.rollbacks },
        replica: plan.allocate(dev, peers, args.processes.sum_every_micro_step)?,
        data,
        settings,
        schedule,
        seed: args.model.seed,
        base_model: lora::base_model(&start, args),
        report,
        memory: MemoryMeter::new(&memory),
        stop: Stop::new(
            args.files.output_dir.clone(),
            args.deadline().filter(|_| args.process.is_rank0()),
            checkpoint_time(&config),
        ),
        files: files_of(args),
        eval: args.eval.clone(),
        tasks_every: args.tasks.interval(args.eval.val_loss_every),
        gpu_info_every: args.gpu.gpu_info_every,
        resumed_step: start.resumed_step(),
        saved_step: start.resumed_step(),
        progress: Progress::Before(first_step),
        best_val_loss: None,
        patience: Patience::default(),
        profiler,
        writer: lock.is_some().then(CheckpointWriter::start).transpose()?,
        lock,
        trackers: Vec::new(),
    };
    trainer.name_tensors();
    saying("filling the weights", quiet, || trainer.fill(start, args.model.seed))?;
    trainer.check_consistency(args)?;
    trainer.open_output(args)?;
    // Until here a signal ends the process: there is nothing to save.
    trainer.stop.signals.listen(trainer.replica.zero.peers.process.is_rank0())?;
    Ok(trainer)
}

/// Returns the folder of a model of the hub, after fetching what is missing of it.
fn model_of_hub(name: &str, process: &Process) -> Result<PathBuf> {
    let missing = || format!("-e/--model {name}: no file or folder of that name, so a model of the hub");
    hub::model(name, process.local_rank).with_context(missing)
}

/// Fetches the model of a new run from the hub, if it is one of those. Called before the ranks
/// connect, so that none waits for another's download.
///
/// # Errors
/// If it cannot be fetched.
pub fn fetch_model(args: &TrainArgs) -> Result<()> {
    let Ok(ModelSource::Hub(name)) = args.model_source() else { return Ok(()) };
    let dir = args.files.output_dir.as_deref().filter(|_| args.files.resume);
    let resumes = dir.map(checkpoint::steps).transpose()?.is_some_and(|steps| !steps.is_empty());
    if resumes { Ok(()) } else { model_of_hub(&name, &args.process).map(drop) }
}

/// Says how to begin if no model is given and llm.c's default is missing. A run that resumes needs
/// none.
fn check_model(args: &TrainArgs) -> Result<()> {
    ensure!(
        args.files.resume || args.model.source != DEFAULT_MODEL || Path::new(DEFAULT_MODEL).exists(),
        "-e/--model: llm.c's default, {DEFAULT_MODEL}, is not here; begin with `make train`, or with shards and a \
         shape, such as -i 'data/*_train_*.bin' -j 'data/*_val_*.bin' -e d12"
    );
    Ok(())
}

/// The files of the run: without training there is nothing to save.
fn files_of(args: &TrainArgs) -> FileFlags {
    let mut files = args.files.clone();
    if args.compat.inference_only {
        files.checkpoint_every = 0;
    }
    files
}

/// Locks the output directory, if this process writes to one.
fn lock(args: &TrainArgs) -> Result<Option<DirLock>> {
    let dir = args.files.output_dir.as_deref().filter(|_| args.process.is_rank0());
    dir.map(DirLock::take).transpose().context("-o/--output-dir")
}

impl Trainer {
    /// Opens the files of a run with a directory. The last part of its set-up, as it cuts the logs
    /// of a resumed run back to its checkpoint: an error before loses nothing.
    fn open_output(&mut self, args: &TrainArgs) -> Result<()> {
        if let Some(dir) = self.output_dir().map(ToOwned::to_owned) {
            self.data.tokenizer.write(&dir)?;
            self.report.open(&dir, self.resumed_step)?;
            self.report.write_settings(&dir, args)?;
            self.trackers = tracking::start(&args.tracking, &dir)?;
            self.prune()?;
        }
        self.save_base()
    }

    /// Fills the parameters, and restores all other state of a resumed run.
    fn fill(&mut self, start: Start, seed: u32) -> Result<()> {
        match start {
            Start::Random(_) => {
                self.replica.initialize(seed)?;
                self.replica.initialize_adapters(seed)
            }
            Start::File { model, .. } => self.load(&model.params, seed),
            Start::Resume(saved) => self.restore(*saved),
        }
    }
}

/// Shows the start-up tables, and checks that the device can report on itself if asked to.
fn announce(
    report: &mut Report,
    args: &TrainArgs,
    start: &Start,
    (data, schedule): (&Data, &Schedule),
    peers: &Peers,
    (plan, memory): (&ReplicaPlan, &RankMemory),
    dev: &mut dyn Ops,
) -> Result<()> {
    let libraries: Vec<_> = dev.libraries()?.into_iter().chain(peers.library()).collect();
    report.banner(args, dev, &start.describe(args), &plan.model.weights, (data, schedule));
    report.dropout(plan.model.acts.dropout, start.dropout());
    report.libraries(&libraries);
    report.peers(peers.describe(), describe_stage(args.processes.zero_stage, &peers.process));
    fit::say(report, args, memory);
    report.memory(memory, &plan.memory_needs(dev)?, dev.gpu().as_ref());
    if args.files.output_dir.is_some() && args.files.checkpoint_every == 0 {
        report.console().line("-n 0: no checkpoint is written before the end of the run");
    }
    if args.gpu.gpu_info_every > 0 {
        dev.gpu_state().context("-lg")?;
    }
    let graphs = args.gpu.cuda_graphs != CudaGraphs::Never && args.device.name != DeviceName::Cpu;
    if graphs && args.process.world_size > 1 {
        log::info!("micro-steps in which processes communicate are queued without CUDA graphs");
    }
    Ok(())
}

/// The options of a replica: buffers that hold a micro-batch and a question of so many tokens.
fn replica_options(
    args: &TrainArgs,
    config: &ModelConfig,
    dropout: DropoutRates,
    tokenizer: &RunTokenizer,
    question: usize,
    dev: &dyn Ops,
) -> Result<ReplicaOptions> {
    let (B, T, maxT) = (args.batch.batch_size, args.batch.sequence_length, config.maxT);
    config.check_batch(B, T)?;
    let model = ModelOptions {
        B,
        T,
        min_rows: question.min(maxT),
        recompute: args.device.recompute,
        dropout,
        logits_bytes: dev.logits_bytes(),
        sharding: sharding(args.processes.zero_stage, &args.process),
        frozen: match (config.lora, &args.optim.freeze) {
            (Some(_), _) => Frozen::all_but_adapters(config),
            (None, Some(names)) => Frozen::parse(names, config)?,
            (None, None) => Frozen::default(),
        },
    };
    Ok(ReplicaOptions {
        model,
        hyper: hyper_params(&args.optim),
        optimizer: args.optimizer_options(config)?,
        use_master_weights: args.gpu.use_master_weights,
        decode_context: (args.eval.sample_every > 0)
            .then(|| sample_context(args, tokenizer, maxT))
            .transpose()?,
    })
}

/// Positions of the longest sample, as far as the model has them: the prompt, or the token that
/// stands for none, and the new tokens.
fn sample_context(args: &TrainArgs, tokenizer: &RunTokenizer, maxT: usize) -> Result<usize> {
    let prompt = args.eval.prompt.as_deref().filter(|_| args.eval.sample_every > 0);
    let tokens = match prompt {
        Some(prompt) => tokenizer.needed_for("--prompt", "no --prompt")?.encode(prompt).len(),
        None => 0,
    };
    if tokens > maxT && args.process.is_rank0() {
        log::warn!("--prompt: it has {tokens} tokens; the model reads only the last {maxT}");
    }
    Ok((tokens.max(1) + args.eval.sample_len).min(maxT))
}

/// Refuses samples, which start from the end-of-text token, if the model lacks that token.
fn check_samples(eval: &EvalFlags, tokenizer: &RunTokenizer, config: &ModelConfig) -> Result<()> {
    let (every, eot) = (eval.sample_every, tokenizer.id.eot);
    if every > 0 {
        tokenizer.needed_for(&format!("-s {every}"), "-s 0")?;
    }
    ensure!(
        every == 0 || config.V > eot as usize,
        "-s {every}: samples start from token {eot}, but the model knows {} tokens; use -s 0",
        config.V
    );
    Ok(())
}

/// Refuses questions that the model cannot answer, and says how many are left out.
fn check_questions(data: &Data, config: &ModelConfig, process: &Process) -> Result<()> {
    for questions in data.questions() {
        let warning = questions.check(config)?;
        if let Some(warning) = warning.filter(|_| process.is_rank0()) {
            log::warn!("{warning}");
        }
    }
    Ok(())
}

impl Start {
    /// Finds the start of a run. A new model has a vocabulary of `V` tokens.
    pub fn find(args: &TrainArgs, V: usize) -> Result<Self> {
        let files = &args.files;
        if let Some(dir) = &files.output_dir {
            if files.resume
                && let Some(saved) = resume::find(dir, args.process.is_rank0())?
            {
                check_shape(args, &saved)?;
                return Ok(Start::Resume(Box::new(saved)));
            }
            if !files.resume {
                let nanogpt = files.log_style == LogStyle::Nanogpt;
                let logs: Vec<_> = LOGS.into_iter().chain(nanogpt.then_some(NANOGPT_LOG)).collect();
                checkpoint::ensure_fresh(dir, &logs)?;
            }
        }
        Ok(match args.model_source()? {
            ModelSource::Shape(config) => Start::Random(config.with_vocab(V)),
            ModelSource::File(path) => {
                ensure!(
                    path.exists(),
                    "-e/--model: no file {}; give a model file, its folder, a shape such as d12, or a model of the \
                     hub such as gpt2",
                    path.display()
                );
                Self::file(&path)?
            }
            ModelSource::Hub(name) => Self::file(&model_of_hub(&name, &args.process)?)?,
        })
    }

    /// The tokenizer of the model, if it has one of its own.
    pub fn tokenizer(&self, args: &TrainArgs) -> Result<Option<Tokenizer>> {
        match self {
            Start::Random(_) => Ok(None),
            Start::File { tokenizer, .. } => Ok(tokenizer.clone()),
            Start::Resume(_) => args.files.output_dir.as_deref().map_or(Ok(None), Tokenizer::find_in),
        }
    }

    fn file(path: &Path) -> Result<Self> {
        let found = checkpoint::find_model(path).context("-e/--model")?;
        let (model, tokenizer) = (found.read().context("-e/--model")?, found.tokenizer()?);
        Ok(Start::File { model: Box::new(model), name: found.to_string(), tokenizer })
    }

    pub fn config(&self) -> ModelConfig {
        match self {
            Start::Random(config) => *config,
            Start::File { model, .. } => model.config,
            Start::Resume(saved) => saved.config,
        }
    }

    /// The dropout that the model comes with: that of the run so far, or of its `config.json`.
    fn dropout(&self) -> DropoutRates {
        match self {
            Start::Random(_) => DropoutRates::NONE,
            Start::File { model, .. } => model.dropout,
            Start::Resume(saved) => saved.run.as_ref().map_or(DropoutRates::NONE, RunFile::dropout),
        }
    }

    /// Opens the data of the run.
    ///
    /// # Errors
    /// As [`Data::open`].
    pub fn open_data(&self, args: &TrainArgs, tokenizer: RunTokenizer) -> Result<Data> {
        let (V, order, batches) = (self.config().V, self.order()?, self.batches(args)?);
        Data::open(args, &args.process, V, tokenizer, order, batches)
    }

    /// Plans the memory of a rank, whose longest question has so many tokens.
    ///
    /// # Errors
    /// If the device cannot run the model, or flags do not fit it.
    pub fn plan(
        &self,
        args: &TrainArgs,
        tokenizer: &RunTokenizer,
        question: usize,
        dev: &dyn Ops,
    ) -> Result<ReplicaPlan> {
        let (config, dropout) = (self.config(), args.dropout.rates(self.dropout()));
        let options = replica_options(args, &config, dropout, tokenizer, question, dev)?;
        ReplicaPlan::new(config, options, dev)
    }

    fn resumed_step(&self) -> Option<usize> {
        match self {
            Start::Resume(saved) => Some(saved.state.state.step as usize),
            _ => None,
        }
    }

    /// The order of the training data in the run to resume.
    pub fn order(&self) -> Result<Option<Shuffle>> {
        match self {
            Start::Resume(saved) => resume::order_of(saved).map(Some),
            _ => Ok(None),
        }
    }

    /// The batch of each step: as the flags say, in the multiples of the run to resume.
    pub fn batches(&self, args: &TrainArgs) -> Result<Batches> {
        match self {
            Start::Resume(saved) => resume::batches(args, saved),
            _ => Ok(args.batches()),
        }
    }

    /// Refuses a checkpoint that is past the end of the run.
    fn check_step(&self, max_steps: usize) -> Result<()> {
        let step = self.resumed_step().unwrap_or(0);
        ensure!(
            step <= max_steps,
            "-x {max_steps}: the checkpoint in -o is past that already, at step {step}"
        );
        Ok(())
    }

    /// The description of the start-up table.
    fn describe(&self, args: &TrainArgs) -> String {
        match self {
            Start::Random(_) => format!("random, seed {}", args.model.seed),
            Start::File { name, .. } => name.clone(),
            Start::Resume(saved) => format!("checkpoint of step {}", saved.state.state.step),
        }
    }
}

/// Refuses a shape that is asked for but is not that of the checkpoint to resume.
fn check_shape(args: &TrainArgs, saved: &Saved) -> Result<()> {
    if let Ok(ModelSource::Shape(asked)) = args.model_source() {
        let found = saved.model.config;
        // The tokenizer decides on the vocabulary, and is compared by itself.
        let asked = asked.with_vocab(found.V);
        let T = asked.maxT;
        ensure!(
            args.model.context.is_some()
                || asked == found
                || ModelConfig { maxT: found.maxT, ..asked } != found,
            "-t {T} makes a model of {T} positions, and that in -o has {}; add --context {}",
            found.maxT,
            found.maxT
        );
        ensure!(
            asked == found,
            "-e/--model, --layers, --heads, --channels, --context, --qkv-bias: expected the shape of the \
             checkpoint in -o ({found}), found {asked}; resume with that shape, or choose another -o"
        );
    }
    Ok(())
}

/// A guess at the time of a checkpoint before the first one: 16 bytes per parameter, at 200 MB/s.
fn checkpoint_time(config: &ModelConfig) -> Duration {
    Duration::from_secs_f64(ParamLayout::new(config).len() as f64 * 16.0 / 200e6)
}

/// The sharding of this rank. A single process has nothing to shard.
fn sharding(stage: ZeroStage, process: &Process) -> Sharding {
    let &Process { rank, world_size, .. } = process;
    if world_size == 1 {
        return Sharding::NONE;
    }
    let partition = Partition { index: rank, of: world_size };
    Sharding { stage, partition }
}

/// The description of the ZeRO stage for the start-up table.
fn describe_stage(stage: ZeroStage, process: &Process) -> Option<String> {
    let (stage, parts) = (stage as usize, process.world_size);
    let what = match stage {
        0 => return None,
        _ if parts == 1 => return Some(format!("{stage}: nothing to divide, for one process")),
        1 => "optimizer state",
        2 => "optimizer state, gradients",
        _ => "state, gradients, parameters",
    };
    Some(format!("{stage}: {what} in {parts} parts"))
}

fn hyper_params(optim: &OptimFlags) -> HyperParams {
    HyperParams {
        beta1: optim.beta1,
        beta2: optim.beta2,
        eps: optim.adam_eps,
        weight_decay: optim.weight_decay,
        grad_clip: optim.grad_clip,
    }
}
