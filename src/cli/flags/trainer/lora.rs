//! The flags of LoRA.

use super::TrainArgs;
use crate::cli::values;
use crate::config::Lora;
use crate::optim::optimizer::OptimizerKind;
use crate::params::lora;
use anyhow::{Result, ensure};
use clap::Args;
use std::path::PathBuf;

/// The alpha of PEFT's `LoraConfig`, and of its targets in GPT-2 the name: `c_attn`.
const ALPHA: f32 = 8.0;
const TARGETS: [bool; 4] = [true, false, false, false];

/// Adapters that are trained in place of the model's own parameters.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "LoRA")]
pub struct LoraFlags {
    /// Train adapters of rank N beside some matrices, and freeze the model itself, which takes no
    /// gradient and no optimizer state [default: no adapters, or those of --adapter or of the
    /// resumed run]
    #[arg(id = "lora_rank", long = "lora-rank", value_name = "N", value_parser = values::count)]
    pub rank: Option<usize>,
    /// Weight of the adapters: their product counts X / N times [default: 8, as in PEFT]
    #[arg(id = "lora_alpha", long = "lora-alpha", value_name = "X", value_parser = values::positive)]
    pub alpha: Option<f32>,
    /// Matrices that get adapters: qkvw,attprojw,fcw,fcprojw, Hugging Face's c_attn, attn.c_proj,
    /// mlp.c_fc, mlp.c_proj, or all [default: qkvw, as in PEFT]
    #[arg(id = "lora_targets", long = "lora-targets", value_name = "NAMES",
          value_parser = lora::parse_targets)]
    pub targets: Option<[bool; 4]>,
    /// Start from the adapters in a folder of PEFT, or in the adapter_STEP of a run. They belong to
    /// the model of -e
    #[arg(id = "adapter", long = "adapter", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

impl LoraFlags {
    /// The adapters of a run that starts without any.
    pub fn wanted(&self) -> Option<Lora> {
        let (alpha, targets) = (self.alpha.unwrap_or(ALPHA), self.targets.unwrap_or(TARGETS));
        self.rank.map(|rank| Lora { rank, alpha, targets })
    }

    /// Checks that the adapters that a run starts with are those that the flags ask for.
    ///
    /// # Errors
    /// One line that names the first flag that asks for others; `whose` they are.
    pub fn check_same(&self, found: Option<&Lora>, whose: &str) -> Result<()> {
        let shown = |value: Option<String>| value.unwrap_or("none".to_owned());
        let names = |targets: [bool; 4]| lora::names(targets);
        let asked = [
            ("--lora-rank", self.rank.map(|n| n.to_string()), found.map(|f| f.rank.to_string())),
            ("--lora-alpha", self.alpha.map(|x| x.to_string()), found.map(|f| f.alpha.to_string())),
            ("--lora-targets", self.targets.map(names), found.map(|f| names(f.targets))),
        ];
        for (flag, asked, found) in asked {
            ensure!(
                asked.is_none() || asked == found,
                "{flag} {}: {whose} has {}; drop the flag, or start another run",
                shown(asked),
                shown(found)
            );
        }
        Ok(())
    }
}

impl TrainArgs {
    /// Refuses flags of adapters where there are none.
    pub(in crate::cli) fn check_lora(&self) -> Result<()> {
        let LoraFlags { rank, alpha, targets, adapter } = &self.lora;
        // A run that resumes has its own.
        let any = rank.is_some() || adapter.is_some() || self.files.resume;
        for (flag, given) in [("--lora-alpha", alpha.is_some()), ("--lora-targets", targets.is_some())] {
            ensure!(any || !given, "{flag}: there are no adapters; give their rank with --lora-rank");
        }
        let most = Lora::MAX_RANK;
        ensure!(
            rank.is_none_or(|rank| rank <= most),
            "--lora-rank {}: expected at most {most}",
            rank.unwrap_or_default()
        );
        if rank.is_some() || adapter.is_some() { self.check_with_adapters() } else { Ok(()) }
    }

    /// Refuses flags that do not go with adapters.
    ///
    /// # Errors
    /// One line that names the flag.
    pub fn check_with_adapters(&self) -> Result<()> {
        ensure!(
            self.optim.freeze.is_none(),
            "--freeze: with LoRA all of the model's own parameters are frozen; drop one of them"
        );
        ensure!(
            self.update.kind == OptimizerKind::Adamw,
            "--optimizer muon: adapters are trained by AdamW, expected adamw; drop the flag"
        );
        ensure!(
            !self.compat.write_tensors,
            "--write-tensors 1: writes the gradients of all parameters, which LoRA freezes; drop one of them"
        );
        Ok(())
    }
}
