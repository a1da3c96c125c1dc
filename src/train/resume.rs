//! The state of a run in its checkpoints, and resuming from one exactly where it was written.

use super::Trainer;
use super::data::Data;
use super::early_stop::Patience;
use crate::checkpoint::{self, Float, Saved, State, TensorKind};
use crate::cli::flags::trainer::{Shuffle, TrainArgs};
use crate::config::DropoutRates;
use crate::model::{BatchShape, GPT2};
use crate::optim::batch::{BatchRamp, Batches};
use crate::optim::loss_scale::LossScale;
use crate::optim::optimizer::Optimizer;
use crate::optim::outlier::OutlierDetector;
use crate::optim::schedule::{Schedule, ScheduleKind};
use crate::replica::Replica;
use crate::sharding::ParamBuffer;
use crate::tensor::Dtype;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The state of a run besides tensors and llm.c's state: the trainer's part of `run_*.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extras {
    /// The order of the training data. Early checkpoints lack it; theirs is llm.c's.
    #[serde(default = "llmc_order")]
    shuffle: Shuffle,
    /// Batch, sequence length and total batch: the units of the loader's position.
    B: usize,
    T: usize,
    total_batch_size: usize,
    /// `--batch-ramp`, and the multiples in which its batch grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch_ramp: Option<BatchRamp>,
    /// Size of the training data, by which other data is recognized.
    data_tokens: u64,
    data_shards: usize,
    /// The weights of sources that are mixed. Without a mix, there are none.
    #[serde(default)]
    data_weights: Vec<Float>,
    /// Which documents are packed into sequences, if they are.
    #[serde(default)]
    packing: Option<String>,
    loss_outliers: OutlierDetector,
    norm_outliers: OutlierDetector,
    best_val_loss: Option<Float>,
    /// Evaluations without a better one.
    #[serde(default, skip_serializing_if = "Patience::is_fresh")]
    patience: Patience,
    /// Type of the parameters. Early checkpoints lack it; theirs is f32.
    #[serde(default = "f32_name")]
    dtype: String,
    /// Type of the operands of matmuls, `--dtype`. Early checkpoints lack it.
    #[serde(default)]
    operand_dtype: Option<String>,
    /// Only for fp16 parameters.
    #[serde(default)]
    loss_scale: Option<LossScale>,
    /// The tokenizer of the data. Early checkpoints lack it.
    #[serde(default)]
    tokenizer: Option<String>,
    /// Flags that shape the training, and their values. Early checkpoints lack them.
    #[serde(default)]
    settings: Settings,
}

/// Values of flags by name.
pub type Settings = BTreeMap<String, String>;

/// The flags whose change in a resumed run is worth a warning. The value of `-i` and `-j` is the
/// checksum of their data.
///
/// # Errors
/// If the data cannot be read.
pub fn settings(args: &TrainArgs, schedule: &Schedule, data: &Data, model: &GPT2) -> Result<Settings> {
    let optim = &args.optim;
    let decays = schedule.kind != ScheduleKind::Constant && schedule.final_frac < 1.0;
    // The end of the curve changes the learning rate of each step.
    let ends_early = schedule.decay_steps != schedule.total_steps;
    let flag = if ends_early { "--decay-steps" } else { "-x" };
    let steps = decays.then(|| (flag, schedule.decay_steps.to_string()));
    let (cooldown, shape) = schedule.cooldown;
    let cooldown = [("--cooldown-steps", cooldown.to_string()), ("--cooldown-shape", shape.to_string())];
    let cooldown = cooldown.into_iter().filter(|_| schedule.kind == ScheduleKind::Wsd);
    let settings = [
        ("-l", schedule.max_lr.to_string()),
        ("-k", schedule.kind.to_string()),
        ("-u", schedule.warmup.to_string()),
        ("-q", schedule.final_frac.to_string()),
        ("-c", optim.weight_decay.to_string()),
        ("--grad-clip", optim.grad_clip.to_string()),
        ("--beta1", optim.beta1.to_string()),
        ("--beta2", optim.beta2.to_string()),
        ("--adam-eps", optim.adam_eps.to_string()),
        ("--skip-update-lossz", optim.skip_update_lossz.to_string()),
        ("--skip-update-gradz", optim.skip_update_gradz.to_string()),
        ("--seed", args.model.seed.to_string()),
        ("--freeze", model.weights.frozen.to_string()),
    ];
    let update = args.update.settings();
    let train = (data.train_flag, data.train.checksum()?.to_string());
    let val = data
        .val
        .as_ref()
        .map(|val| Ok::<_, anyhow::Error>(("-j", val.checksum()?.to_string())))
        .transpose()?;
    let settings = settings.into_iter().chain(update).chain(dropout_settings(model.acts.dropout));
    let all = settings.chain(steps).chain(cooldown).chain([train]).chain(val);
    Ok(all.map(|(flag, value)| (flag.to_owned(), value)).collect())
}

/// The rates of dropout by their flags, of which [`RunFile::dropout`](checkpoint::RunFile::dropout)
/// reads them.
fn dropout_settings(dropout: DropoutRates) -> impl Iterator<Item = (&'static str, String)> {
    DropoutRates::FLAGS.into_iter().zip(dropout.all().map(|rate| rate.to_string()))
}

fn f32_name() -> String {
    Dtype::F32.to_string()
}

fn llmc_order() -> Shuffle {
    Shuffle::Llmc
}

/// The order of the training data in the run that wrote a checkpoint.
///
/// # Errors
/// If the checkpoint's run file has another form.
pub fn order_of(saved: &Saved) -> Result<Shuffle> {
    let extras = saved.run.as_ref().map(|run| run.trainer::<Extras>()).transpose()?;
    Ok(extras.map_or_else(llmc_order, |extras| extras.shuffle))
}

/// The batch of each step of a run that resumes, which grows in the multiples of the run so far, so
/// that each step reads what it would have read.
///
/// # Errors
/// If the ramp of the batch is not that of the run so far, or its next batches are no multiples of
/// this run's micro-batches.
pub fn batches(args: &TrainArgs, saved: &Saved) -> Result<Batches> {
    let batches = args.batches();
    let extras = saved.run.as_ref().map(|run| run.trainer::<Extras>()).transpose()?;
    let was = extras.as_ref().and_then(|extras| Some((extras.batch_ramp?, extras.total_batch_size)));
    let is = batches.ramp().map(|ramp| (*ramp, batches.full()));
    let shown = |ramp: &Option<(BatchRamp, usize)>| match ramp {
        Some((BatchRamp { from, tokens, .. }, full)) => format!("--batch-ramp {from}:{tokens} -d {full}"),
        None => "none".to_owned(),
    };
    let (asked, expected) = (shown(&is), shown(&was));
    ensure!(
        asked == expected,
        "--batch-ramp: the run so far had {expected}, expected the same, found {asked}; its steps would not read \
         each text once"
    );
    let Some((ramp, full)) = was else { return Ok(batches) };
    let (batches, step) = (Batches::new(full, Some(ramp)), saved.state.state.step as usize);
    let micro = args.micro_batch_tokens() * args.process.world_size;
    ensure!(
        step >= batches.end_of_ramp() || (ramp.unit.is_multiple_of(micro) && ramp.from.is_multiple_of(micro)),
        "-b {}: the batch of this run grows in multiples of {} tokens until step {}, and B*T*processes are \
         {micro}; expected a divisor of that, lower -b",
        args.batch.batch_size,
        ramp.unit,
        batches.end_of_ramp()
    );
    Ok(batches)
}

/// Opens the newest complete checkpoint in `dir`, if there is one. A rank that `warns` logs what is
/// wrong with newer ones.
///
/// # Errors
/// If the directory or the checkpoint cannot be read, or no checkpoint of several is complete: a
/// fresh run would in time delete what can still be saved of them.
pub fn find(dir: &Path, warns: bool) -> Result<Option<Saved>> {
    let latest = checkpoint::latest::<Extras>(dir)?;
    for warning in latest.warnings.iter().filter(|_| warns) {
        log::warn!("{warning}");
    }
    ensure!(
        latest.step.is_some() || latest.warnings.is_empty(),
        "-y 1: no complete checkpoint in {}: {}; repair or move them, or choose another -o",
        dir.display(),
        latest.warnings.join("; ")
    );
    latest.step.map(|step| Saved::open(dir, step, 0)).transpose()
}

/// The `--dtype` of the newest readable checkpoint in `dir`, if it records one. Resuming reports
/// checkpoints that cannot be read.
///
/// # Errors
/// If the directory cannot be read.
pub fn dtype_so_far(dir: &Path) -> Result<Option<Dtype>> {
    let read = |step| checkpoint::read_run(dir, step).ok()??.0.trainer::<Extras>().ok();
    let newest = checkpoint::steps(dir)?.into_iter().rev().find_map(read);
    Ok(newest.and_then(|extras| extras.operand_dtype?.parse().ok()))
}

impl Trainer {
    /// llm.c's state before `step`.
    pub(super) fn state(&self, step: usize) -> State {
        State {
            step: step as u64,
            num_processes: 1,
            rank: 0,
            use_master_weights: self.replica.optimizer.master.is_some(),
            muon: self.replica.optimizer.options().muon.is_some(),
            adapters: self.replica.model.weights.config.lora.is_some(),
            dtype: self.replica.optimizer.m.dtype(),
            rng_state: 0,
            rng_state_last_update: 0,
            loader: self.data.train.state(),
        }
    }

    pub(super) fn extras(&self) -> Extras {
        let Trainer { replica, data, guards, .. } = self;
        Extras {
            shuffle: data.shuffle,
            B: data.shape.B,
            T: data.shape.T,
            total_batch_size: data.batches.full(),
            batch_ramp: data.batches.ramp().copied(),
            data_tokens: data.train.num_tokens(),
            data_shards: data.train.num_shards(),
            data_weights: data.train.weights().into_iter().map(Float).collect(),
            packing: data.train.packing().map(str::to_owned),
            loss_outliers: guards.loss.clone(),
            norm_outliers: guards.norm.clone(),
            best_val_loss: self.best_val_loss.map(|loss| Float(f64::from(loss))),
            patience: self.patience,
            dtype: replica.zero.params().dtype().to_string(),
            operand_dtype: Some(replica.dev.operand_dtype().to_string()),
            loss_scale: guards.scale,
            tokenizer: Some(data.tokenizer.id.to_string()),
            settings: self.settings.clone(),
        }
    }

    /// Restores the state of a checkpoint.
    ///
    /// # Errors
    /// If it was written with other data, or cannot be read.
    pub(super) fn restore(&mut self, saved: Saved) -> Result<()> {
        let extras = saved.run.as_ref().map(|run| run.trainer::<Extras>()).transpose()?;
        if let Some(extras) = &extras {
            self.check_data(extras)?;
            self.warn_of_changes(extras);
            self.guards.loss = extras.loss_outliers.clone();
            self.guards.norm = extras.norm_outliers.clone();
            self.guards.scale = self.guards.scale.map(|fresh| extras.loss_scale.unwrap_or(fresh));
            self.set_best(extras.best_val_loss.map(|loss| loss.0 as f32));
            self.patience = extras.patience;
        }
        let state = &saved.state.state;
        ensure!(
            state.num_processes == 1,
            "-y 1: expected a checkpoint in one part, as this program writes them, found one of {} processes, \
             each with its part",
            state.num_processes
        );
        self.check_optimizer(state)?;
        let shape = extras.as_ref().map_or(self.data.shape, |was| BatchShape::new(was.B, was.T));
        let sample_tokens = self.data.sample_tokens(shape);
        if !self.data.seek(&state.loader, sample_tokens)? {
            let is = self.data.sample_tokens(self.data.shape);
            self.report.console().warning(format_args!(
                "the text is read in pieces of {is} tokens, and so far of {sample_tokens}; some text of this shard \
                 may be read twice or not at all"
            ));
        }
        self.restore_tensors(saved, extras)
    }

    /// Says which settings differ from those of the run so far. The run goes on with the new ones.
    fn warn_of_changes(&mut self, extras: &Extras) {
        let Data { shape, batches, shuffle, .. } = &self.data;
        let mut changes = Vec::new();
        for (flag, is, was) in [
            ("-b", shape.B, extras.B),
            ("-t", shape.T, extras.T),
            ("-d", batches.full(), extras.total_batch_size),
        ] {
            // Gradient accumulation makes up for another micro-batch, except in llm.c's order.
            if is != was && (flag != "-b" || *shuffle == Shuffle::Llmc) {
                changes.push(format!("{flag} {is}: the run so far used {was}"));
            }
        }
        // Early checkpoints do not say that nothing was dropped.
        let dropout = dropout_settings(DropoutRates::NONE).map(|(flag, rate)| (flag.to_owned(), rate));
        let settings: Settings = dropout.chain(extras.settings.clone()).collect();
        for (flag, was) in &settings {
            match self.settings.get(flag).filter(|is| *is != was) {
                Some(_) if matches!(flag.as_str(), "-i" | "-j") => {
                    changes.push(format!("{flag}: these are not the data that the run so far used"));
                }
                Some(is) if flag == "--freeze" => changes.push(format!(
                    "--freeze: {is} is frozen, and in the run so far {was}; AdamW's moments of what trains from here \
                     on start from zero"
                )),
                Some(is) => changes.push(format!("{flag} {is}: the run so far used {was}")),
                None => {}
            }
        }
        changes.into_iter().for_each(|change| self.report.console().warning(change));
    }

    /// Refuses a checkpoint of other data.
    fn check_data(&self, extras: &Extras) -> Result<()> {
        let data = &self.data;
        let (tokens, shards) = (data.train.num_tokens(), data.train.num_shards());
        ensure!(
            (tokens, shards) == (extras.data_tokens, extras.data_shards),
            "{}: {tokens} tokens in {shards} shards, but the checkpoint was trained on {} in {}; resume with \
             the same data",
            data.train_flag,
            extras.data_tokens,
            extras.data_shards
        );
        let say = |packing: Option<&str>| packing.map_or("no documents".to_owned(), str::to_owned);
        let (is, was) = (data.train.packing(), extras.packing.as_deref());
        ensure!(
            is == was,
            "{}: {} are packed into sequences, and {} in the checkpoint, which its position depends on; resume with \
             the --packed-documents and --skip-long-examples of that run",
            data.train_flag,
            say(is),
            say(was)
        );
        let found = data.tokenizer.id.to_string();
        ensure!(
            extras.tokenizer.as_ref().is_none_or(|expected| *expected == found),
            "{}: tokens of the tokenizer {found}, but the checkpoint was trained on those of {}; resume with the \
             same data",
            data.train_flag,
            extras.tokenizer.as_deref().unwrap_or_default()
        );
        let list = |weights: Vec<f64>| match weights.is_empty() {
            true => "no weights".to_owned(),
            false => format!("{weights:?}"),
        };
        let (is, was) = (data.train.weights(), extras.data_weights.iter().map(|weight| weight.0).collect());
        ensure!(
            is == was,
            "{}: the sources have {}, and {} in the checkpoint, which its position depends on; resume with those",
            data.train_flag,
            list(is),
            list(was)
        );
        Ok(())
    }

    /// Refuses the state of another optimizer, and warns if it changes its type.
    fn check_optimizer(&mut self, state: &State) -> Result<()> {
        let name = |muon| if muon { "muon" } else { "adamw" };
        let (is, was) = (self.replica.optimizer.options().muon.is_some(), state.muon);
        ensure!(
            is == was,
            "--optimizer {}: the checkpoint in -o has the state of {1}; resume with --optimizer {1}, or start \
             another run from its model with -e",
            name(is),
            name(was)
        );
        let (is, was) = (self.replica.optimizer.m.dtype(), state.dtype);
        if is != was {
            self.report.console().warning(format_args!(
                "--optimizer-state {is}: the checkpoint has m and v in {was}; they become {is}, which changes the losses"
            ));
        }
        Ok(())
    }

    /// Restores the tensors, and warns if their types differ from those of the checkpoint.
    fn restore_tensors(&mut self, saved: Saved, extras: Option<Extras>) -> Result<()> {
        let tensors = Tensors::of(&self.replica);
        let (was, operands_were) = match extras {
            Some(extras) => (extras.dtype, extras.operand_dtype),
            None => (saved.model.dtype.to_string(), None),
        };
        let is = tensors.params.dtype().name();
        let operands = self.replica.dev.operand_dtype().name();
        let has_master = saved.state.state.use_master_weights;
        let mut warn = |text: String| self.report.console().warning(text);
        if was != is {
            warn(format!(
                "the checkpoint was written with --dtype {was}; its weights become {is}, which changes the losses"
            ));
        } else if tensors.master.is_some() && !has_master {
            warn("the checkpoint has no master weights; they start from the parameters".to_owned());
        } else if has_master && tensors.master.is_none() {
            warn("-w 0: the checkpoint's master weights, rounded, become the parameters".to_owned());
        }
        if let Some(were) = operands_were.filter(|were| was == is && were != operands) {
            warn(format!(
                "the checkpoint was trained with --dtype {were}; its matmuls use {operands} from here on, \
                 which changes the losses"
            ));
        }
        let dev = self.replica.dev.as_mut();
        saved.restore(&mut |kind, start, values| {
            let (first, second) = match kind {
                // Master weights start from the parameters, unless the checkpoint has them, too.
                TensorKind::Params => (&tensors.params, tensors.master.as_ref()),
                // Parameters of the same type are already the rounded master weights.
                TensorKind::Master if was == is && tensors.master.is_some() => (tensors.get(kind), None),
                TensorKind::Master => (&tensors.params, tensors.master.as_ref()),
                TensorKind::M | TensorKind::V => (tensors.get(kind), None),
            };
            first.upload(dev, start, values)?;
            second.map_or(Ok(()), |tensors| tensors.upload(dev, start, values))
        })
    }
}

/// The tensors of a checkpoint.
pub(super) struct Tensors {
    params: ParamBuffer,
    master: Option<ParamBuffer>,
    m: ParamBuffer,
    v: ParamBuffer,
}

impl Tensors {
    pub(super) fn of(replica: &Replica) -> Self {
        let Optimizer { master, m, v, .. } = &replica.optimizer;
        let params = replica.zero.params().clone();
        Tensors { params, master: master.clone(), m: m.clone(), v: v.clone() }
    }

    /// The tensor of a kind. Without master weights, the parameters take their place.
    pub(super) fn get(&self, kind: TensorKind) -> &ParamBuffer {
        match kind {
            TensorKind::Params => &self.params,
            TensorKind::Master => self.master.as_ref().unwrap_or(&self.params),
            TensorKind::M => &self.m,
            TensorKind::V => &self.v,
        }
    }

    /// The tensor that has the frozen elements of a kind: checkpoints are complete. Moments have
    /// none, and are written as 0.
    pub(super) fn frozen(&self, kind: TensorKind) -> Option<&ParamBuffer> {
        matches!(kind, TensorKind::Master).then_some(&self.params)
    }
}
