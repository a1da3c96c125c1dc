//! LoRA in a run: the adapters that it starts with, and the frozen model beside its checkpoints.

use super::Trainer;
use super::checkpoints::file_dtype;
use super::resume::Tensors;
use super::setup::Start;
use crate::checkpoint::{self, Adapter, Base};
use crate::cli::flags::trainer::TrainArgs;
use crate::config::ModelConfig;
use crate::params::ParamLayout;
use crate::replica::Replica;
use anyhow::{Context, Result, ensure};

/// Gives a new model the adapters that the flags ask for, and checks that a run that resumes has
/// those.
///
/// # Errors
/// One line that names the flag, if the adapters do not fit the model or other flags.
pub(super) fn attach(start: Start, args: &TrainArgs) -> Result<Start> {
    let flags = &args.lora;
    let start = match (start, &flags.adapter) {
        (Start::Resume(saved), _) => {
            flags.check_same(saved.config.lora.as_ref(), "the run in -o")?;
            Start::Resume(saved)
        }
        (Start::File { mut model, name, tokenizer }, Some(dir)) => {
            let adapter = Adapter::read(dir, &model.config).context("--adapter")?;
            flags.check_same(Some(&adapter.lora), "the adapter of --adapter")?;
            model.config.lora = Some(adapter.lora);
            model.params.extend(adapter.values);
            Start::File { model, name, tokenizer }
        }
        (Start::File { mut model, name, tokenizer }, None) => {
            model.config.lora = flags.wanted();
            Start::File { model, name, tokenizer }
        }
        (Start::Random(config), adapter) => {
            ensure!(
                adapter.is_none(),
                "--adapter: belongs to the model that it was trained on, found a shape in -e; give that model"
            );
            Start::Random(ModelConfig { lora: flags.wanted(), ..config })
        }
    };
    let has_adapters = start.config().lora.is_some();
    let asked = flags.alpha.is_some() || flags.targets.is_some();
    ensure!(has_adapters || !asked, "--lora-alpha, --lora-targets: there are no adapters; give --lora-rank");
    if has_adapters {
        args.check_with_adapters()?
    }
    Ok(start)
}

/// The model that the adapters of a run belong to, as the files of PEFT name it.
pub(super) fn base_model(start: &Start, args: &TrainArgs) -> String {
    match start {
        Start::Random(_) => String::new(),
        Start::File { .. } => args.model.source.clone(),
        Start::Resume(saved) => saved.adapter.as_ref().map_or(String::new(), |a| a.base_model.clone()),
    }
}

impl Trainer {
    /// Fills the parameters of a new run with those of a model file, and its adapters with those
    /// that follow or with new ones.
    pub(super) fn load(&mut self, params: &[f32], seed: u32) -> Result<()> {
        self.replica.load(params)?;
        let all = ParamLayout::new(&self.replica.model.weights.config).len();
        if params.len() < all { self.replica.initialize_adapters(seed) } else { Ok(()) }
    }

    /// Writes the frozen model of a new run that trains adapters into its directory: checkpoints
    /// have the merged one. Ranks other than 0 take part in the downloads.
    pub(super) fn save_base(&mut self) -> Result<()> {
        let config = self.replica.model.weights.config;
        if config.lora.is_none() || self.files.output_dir.is_none() || self.resumed_step.is_some() {
            return Ok(());
        }
        let base = Base { config, dtype: file_dtype(self.replica.zero.params().dtype()) };
        let dir = self.output_dir().map(ToOwned::to_owned);
        let tensors = Tensors::of(&self.replica);
        let Replica { zero, dev, .. } = &mut self.replica;
        let source: &mut checkpoint::Source =
            &mut |kind, start, out| zero.download(dev.as_mut(), tensors.get(kind), None, start, out);
        match dir {
            Some(dir) => base.save(&dir, source),
            None => base.participate(source),
        }
    }
}
