//! The flags of the update: the optimizer of the blocks' matrices, its state, and rates of single
//! tensors.

use super::TrainArgs;
use crate::cli::values;
use crate::config::ModelConfig;
use crate::optim::lr_scale::LrScales;
use crate::optim::optimizer::{Muon, OptimizerKind, OptimizerOptions, StateType};
use anyhow::{Result, ensure};
use clap::Args;

/// Jordan's.
const MUON_LR: f32 = 0.02;
const MUON_MOMENTUM: f32 = 0.95;

/// The optimizer, its state, and rates of single tensors.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Optimizer")]
pub struct UpdateFlags {
    /// Optimizer; muon orthogonalizes the updates of the transformer blocks' matrices, and leaves
    /// the rest to AdamW
    #[arg(id = "optimizer", long = "optimizer", value_enum, default_value = "adamw")]
    pub kind: OptimizerKind,
    /// Maximum learning rate of Muon, which follows the schedule of -l [default: 0.02]
    #[arg(id = "muon_lr", long = "muon-lr", value_name = "LR", value_parser = values::non_negative)]
    pub muon_lr: Option<f32>,
    /// Momentum of Muon (Nesterov's) [default: 0.95]
    #[arg(id = "muon_momentum", long = "muon-momentum", value_name = "RATE", value_parser = values::decay)]
    pub muon_momentum: Option<f32>,
    /// Type of AdamW's m and v, and of Muon's momentum; bf16 is rounded stochastically
    #[arg(id = "optimizer_state", long = "optimizer-state", value_enum, default_value = "f32")]
    pub state: StateType,
    /// Factors on the learning rate of some tensors, by llm.c's or Hugging Face's names or by
    /// layers: 'wte=0.1,h.0-3=0.5,h.2.qkvw=0'; the last that names a tensor counts
    #[arg(id = "lr_scale", long = "lr-scale", value_name = "NAME=FACTOR,...",
          value_parser = str::parse::<LrScales>)]
    pub lr_scale: Option<LrScales>,
}

impl UpdateFlags {
    fn is_muon(&self) -> bool {
        self.kind == OptimizerKind::Muon
    }

    fn muon_lr(&self) -> f32 {
        self.muon_lr.unwrap_or(MUON_LR)
    }

    fn muon_momentum(&self) -> f32 {
        self.muon_momentum.unwrap_or(MUON_MOMENTUM)
    }

    /// The flags whose change in a resumed run is worth a warning, and their values.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let lr_scale = self.lr_scale.as_ref().map_or("none".to_owned(), LrScales::to_string);
        let muon = [("--muon-lr", self.muon_lr()), ("--muon-momentum", self.muon_momentum())];
        let muon = muon.into_iter().filter(|_| self.is_muon()).map(|(flag, value)| (flag, value.to_string()));
        muon.chain([("--lr-scale", lr_scale)]).collect()
    }
}

impl TrainArgs {
    /// Refuses settings of an optimizer that is not used.
    pub(in crate::cli) fn check_update(&self) -> Result<()> {
        let UpdateFlags { muon_lr, muon_momentum, .. } = self.update;
        for (flag, given) in [("--muon-lr", muon_lr), ("--muon-momentum", muon_momentum)] {
            ensure!(
                given.is_none() || self.update.is_muon(),
                "{flag}: expected --optimizer muon, found adamw; add it, or drop this"
            );
        }
        ensure!(
            !self.update.is_muon() || self.schedule.learning_rate > 0.0,
            "-l/--learning-rate: expected more than 0 with --optimizer muon, whose rate follows its schedule; \
             --lr-scale sets the rate of tensors to 0"
        );
        Ok(())
    }

    /// The options of the optimizer of a model.
    ///
    /// # Errors
    /// One line, if `--lr-scale` names what the model lacks.
    pub fn optimizer_options(&self, config: &ModelConfig) -> Result<OptimizerOptions> {
        let UpdateFlags { state, lr_scale, .. } = &self.update;
        let lr_scales = lr_scale.clone().unwrap_or_default();
        lr_scales.check(config).map_err(|error| anyhow::anyhow!("--lr-scale: {error}"))?;
        let muon = self.update.is_muon().then(|| Muon {
            lr_ratio: self.update.muon_lr() / self.schedule.learning_rate,
            momentum: self.update.muon_momentum(),
        });
        Ok(OptimizerOptions { muon, state: *state, lr_scales })
    }
}
