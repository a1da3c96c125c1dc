//! Checkpoints of a run, and going on from one exactly where it was written.

use super::Run;
use super::zero::ZeroState;
use crate::checkpoint::{self, Float, LoaderPosition, Saved, Shuffle, Source, State, TensorKind, model_bin};
use crate::data::loader::{LoaderState, ShuffleState};
use crate::optim::loss_scale::LossScale;
use crate::optim::optimizer::Optimizer;
use crate::optim::outlier::OutlierDetector;
use crate::rng::Mt19937;
use crate::sharding::ParamBuffer;
use crate::tensor::Dtype;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a run needs to go on, beside the tensors and llm.c's state: the rest of `run_*.json`.
#[derive(Serialize, Deserialize)]
struct Extras {
    /// Batch, sequence length and total batch, in which the loader's position is counted.
    B: usize,
    T: usize,
    total_batch_size: usize,
    /// Size of the training data: other data, to be met by mistake, would hardly have the same.
    data_tokens: u64,
    data_shards: usize,
    loss_outliers: OutlierDetector,
    norm_outliers: OutlierDetector,
    best_val_loss: Option<Float>,
    /// Type of the parameters. Runs of before there was a choice did not say; theirs were f32.
    #[serde(default = "f32_name")]
    dtype: String,
    /// Type of the operands of matrix products, `--dtype`. Earlier checkpoints do not say.
    #[serde(default)]
    operand_dtype: Option<String>,
    /// Of fp16 runs.
    #[serde(default)]
    loss_scale: Option<LossScale>,
}

fn f32_name() -> String {
    dtype_name(Dtype::F32).to_owned()
}

/// As `--dtype` spells it.
pub(super) fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "fp16",
        Dtype::F32 | Dtype::I32 => "f32",
    }
}

/// Type of the parameters in a model file: llm.c has no files of fp16, which f32 holds without loss.
fn file_dtype(params: Dtype) -> Dtype {
    if params == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
}

/// Opens the newest whole checkpoint in `dir`, if there is one. Of ranks, one is enough to warn.
///
/// # Errors
/// If the directory or the checkpoint cannot be read, or there are checkpoints but none is whole: to start afresh would
/// in time delete what may still be saved of them.
pub fn find(dir: &Path, warns: bool) -> Result<Option<Saved>> {
    let latest = checkpoint::latest(dir)?;
    for warning in latest.warnings.iter().filter(|_| warns) {
        eprintln!("warning: {warning}");
    }
    ensure!(
        latest.step.is_some() || latest.warnings.is_empty(),
        "-y 1: no complete checkpoint in {}: {}; repair or move them, or choose another -o",
        dir.display(),
        latest.warnings.join("; ")
    );
    latest.step.map(|step| Saved::open(dir, step, 0)).transpose()
}

/// `--dtype` of the run that is to resume from `dir`. `None` if there is no checkpoint, or none that says; one that cannot be read is
/// reported by who resumes from it.
///
/// # Errors
/// If the directory cannot be read.
pub fn dtype_so_far(dir: &Path) -> Result<Option<Dtype>> {
    let read =
        |step| checkpoint::RunFile::read(&checkpoint::run_path(dir, step)).ok()?.trainer::<Extras>().ok();
    let newest = checkpoint::steps(dir)?.into_iter().rev().find_map(read);
    let name = newest.and_then(|extras| extras.operand_dtype);
    let all = [Dtype::Bf16, Dtype::F16, Dtype::F32];
    Ok(all.into_iter().find(|&dtype| name.as_deref() == Some(dtype_name(dtype))))
}

impl Run {
    /// Writes a checkpoint of the state before `step`, if one is due: every so many steps and at the end, or because the
    /// run was told to stop.
    pub(super) fn checkpoint(&mut self, step: usize, last: bool, stopped: bool) -> Result<()> {
        let every = self.args.files.checkpoint_every;
        let due = every > 0 && (last || step > 0 && step.is_multiple_of(every));
        if self.args.files.output_dir.is_none()
            || !(due || stopped)
            || step == self.first_step && self.resumed
        {
            return Ok(());
        }
        self.clock.stop(self.dev.as_mut())?;
        let config = self.model.weights.config;
        let state = State {
            step: step as u64,
            num_processes: 1,
            rank: 0,
            use_master_weights: self.optimizer.master.is_some(),
            rng_state: 0,
            rng_state_last_update: 0,
            loader: loader_position(self.train_loader.state()),
        };
        let extras = Extras {
            B: self.shape.B,
            T: self.shape.T,
            total_batch_size: self.args.total_batch_tokens(),
            data_tokens: self.train_loader.num_tokens(),
            data_shards: self.train_loader.num_shards(),
            loss_outliers: self.loss_outliers.clone(),
            norm_outliers: self.norm_outliers.clone(),
            best_val_loss: self.best_val_loss.map(|loss| Float(f64::from(loss))),
            dtype: dtype_name(self.zero.params().dtype()).to_owned(),
            operand_dtype: Some(dtype_name(self.dev.operand_dtype()).to_owned()),
            loss_scale: self.loss_scale,
        };
        let Run { zero, dev, optimizer, .. } = self;
        let (dev, tensors) = (dev.as_mut(), Tensors::of(zero, optimizer));
        zero.finish_params(dev)?;
        let dtype = file_dtype(tensors.params.dtype());
        let source: &mut Source = &mut |kind, start, out| zero.download(dev, tensors.get(kind), start, out);
        // All ranks go through all tensors, as each may have a part of them; the master writes.
        let Some(dir) = &self.output_dir else { return checkpoint::participate(&config, &state, source) };
        checkpoint::save(dir, &config, dtype, &state, &extras, source)?;
        checkpoint::prune(
            dir,
            step as u64,
            self.args.files.checkpoints_keep,
            self.args.files.checkpoints_major_every as u64,
        )
    }

    /// Keeps the parameters with the lowest validation loss so far, in runs that write checkpoints.
    pub(super) fn save_best(&mut self) -> Result<()> {
        if self.args.files.output_dir.is_none() || self.args.files.checkpoint_every == 0 {
            return Ok(());
        }
        let Run { zero, dev, .. } = self;
        let (dev, params) = (dev.as_mut(), zero.params().clone());
        let config = self.model.weights.config;
        zero.finish_params(dev)?;
        let source: &mut Source = &mut |_, start, out| zero.download(dev, &params, start, out);
        match &self.output_dir {
            Some(dir) => {
                let path = dir.join("model_best.bin");
                model_bin::write(&path, &config, file_dtype(params.dtype()), source).map(|_| ())
            }
            None => checkpoint::participate_in_model(&config, source),
        }
    }

    /// Takes over all of a checkpoint.
    ///
    /// # Errors
    /// If it was written with another batch or other data, or cannot be read.
    pub(super) fn restore(&mut self, saved: Saved) -> Result<()> {
        if let Some(run) = &saved.run {
            let extras: Extras = run.trainer()?;
            let ours = [self.shape.B, self.shape.T, self.args.total_batch_tokens()];
            let theirs = [extras.B, extras.T, extras.total_batch_size];
            for ((flag, ours), theirs) in ["-b", "-t", "-d"].iter().zip(ours).zip(theirs) {
                ensure!(
                    ours == theirs,
                    "{flag} {ours}: the checkpoint was written with {flag} {theirs}; use that to resume"
                );
            }
            let ours = (self.train_loader.num_tokens(), self.train_loader.num_shards());
            ensure!(
                ours == (extras.data_tokens, extras.data_shards),
                "{}: {} tokens in {} shards, but the checkpoint was trained on {} in {}; resume with the same data",
                self.args.train_data_flag(),
                ours.0,
                ours.1,
                extras.data_tokens,
                extras.data_shards
            );
            self.loss_outliers = extras.loss_outliers;
            self.norm_outliers = extras.norm_outliers;
            self.loss_scale = self.loss_scale.map(|fresh| extras.loss_scale.unwrap_or(fresh));
            self.best_val_loss = extras.best_val_loss.map(|loss| loss.0 as f32);
        }
        let state = &saved.state.state;
        ensure!(
            state.num_processes == 1,
            "-y 1: expected a checkpoint in one part, as this program writes them, found one of {} processes, each with its part",
            state.num_processes
        );
        self.first_step = state.step as usize;
        self.resumed = true;
        self.train_loader
            .restore(&loader_state(&state.loader)?)
            .with_context(|| format!("{}: not the data of the checkpoint", self.args.train_data_flag()))?;
        self.restore_tensors(saved)
    }

    /// The tensors, and a warning where the run is to go on with other ones than it had.
    fn restore_tensors(&mut self, saved: Saved) -> Result<()> {
        let tensors = Tensors::of(&self.zero, &self.optimizer);
        let extras = saved.run.as_ref().map(|run| run.trainer::<Extras>()).transpose()?;
        let (was, multiplied) = match extras {
            Some(extras) => (extras.dtype, extras.operand_dtype),
            None => (dtype_name(saved.model.dtype).to_owned(), None),
        };
        let is = dtype_name(tensors.params.dtype());
        let multiplies = dtype_name(self.dev.operand_dtype());
        let has_master = saved.state.state.use_master_weights;
        let mut warn = |text: String| self.logs.console().warning(text);
        if was != is {
            warn(format!(
                "the checkpoint was written with --dtype {was}; its weights become {is}, and so its losses"
            ));
        } else if tensors.master.is_some() && !has_master {
            warn("the checkpoint has no master weights; they start from the parameters".to_owned());
        } else if has_master && tensors.master.is_none() {
            warn("-w 0: the checkpoint's master weights, rounded, become the parameters".to_owned());
        }
        if let Some(multiplied) = multiplied.filter(|multiplied| was == is && multiplied != multiplies) {
            warn(format!(
                "the checkpoint was trained with --dtype {multiplied}; its products are in {multiplies} from here on, \
                 and so its losses"
            ));
        }
        let dev = self.dev.as_mut();
        saved.restore(&mut |kind, start, values| {
            let (first, second) = match kind {
                // Until master weights come, if any do.
                TensorKind::Params => (&tensors.params, tensors.master.as_ref()),
                // Those are what counts: parameters of the same type have been rounded from them already.
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
struct Tensors {
    params: ParamBuffer,
    master: Option<ParamBuffer>,
    m: ParamBuffer,
    v: ParamBuffer,
}

impl Tensors {
    fn of(zero: &ZeroState, optimizer: &Optimizer) -> Self {
        let Optimizer { master, m, v, .. } = optimizer;
        Tensors { params: zero.params().clone(), master: master.clone(), m: m.clone(), v: v.clone() }
    }

    /// Where there are no master weights, the parameters are what counts.
    fn get(&self, kind: TensorKind) -> &ParamBuffer {
        match kind {
            TensorKind::Params => &self.params,
            TensorKind::Master => self.master.as_ref().unwrap_or(&self.params),
            TensorKind::M => &self.m,
            TensorKind::V => &self.v,
        }
    }
}

fn loader_position(state: LoaderState) -> LoaderPosition {
    LoaderPosition {
        current_shard_idx: state.current_shard_idx,
        current_sample_idx: state.current_sample_idx,
        shuffle: state.shuffle.map(|s| Shuffle {
            shard_indices: s.shard_indices,
            intra_shard_indices: s.intra_shard_indices,
            rng: s.rng.to_bytes(),
        }),
    }
}

fn loader_state(position: &LoaderPosition) -> Result<LoaderState> {
    let shuffle = match &position.shuffle {
        None => None,
        Some(s) => Some(ShuffleState {
            shard_indices: s.shard_indices.clone(),
            intra_shard_indices: s.intra_shard_indices.clone(),
            rng: Mt19937::from_bytes(&s.rng)?,
        }),
    };
    Ok(LoaderState {
        current_shard_idx: position.current_shard_idx,
        current_sample_idx: position.current_sample_idx,
        shuffle,
    })
}
