//! `warpsmith scaling`: a predicted training step on many GPUs.

use super::roofline::{config, records, run};
use crate::app::print;
use crate::cli::flags::warpsmith::{ScalingArgs, StepArgs};
use crate::config::ModelConfig;
use crate::model::ModelOptions;
use crate::model::activations::Activations;
use crate::roofline::scaling::cluster::Cluster;
use crate::roofline::scaling::machine::Machine;
use crate::roofline::scaling::{Batch, Plan, Question};
use crate::sharding::Sharding;
use crate::tensor::{Dtype, MemoryPlan};
use anyhow::{Context, Result};

pub fn scaling(args: &ScalingArgs) -> Result<()> {
    let step = &args.step;
    let config = config(step)?;
    let (batch, alone) = match step.total_batch_size {
        Some(tokens) => (Batch::Total(tokens), tokens),
        None => (Batch::MicroBatchEach, step.batch_size * step.sequence_length),
    };
    let links = Machine::of(step.gpu).links(&args.links).context("--links")?;
    let question = Question {
        config,
        step: run(step, alone)?,
        batch,
        gpu: step.gpu,
        cluster: Cluster::new(links, args.gpus_per_node),
        stages: args.zero.clone(),
        gpus: args.gpus.clone(),
        activations: activation_bytes(&config, step),
    };
    print(Plan::new(question, &records(step)?))
}

/// Bytes of the activations that a trainer would plan.
fn activation_bytes(config: &ModelConfig, step: &StepArgs) -> usize {
    let options = ModelOptions {
        B: step.batch_size,
        T: step.sequence_length,
        min_rows: 0,
        recompute: step.recompute,
        logits_bytes: step.logits_rows * config.Vp * Dtype::Bf16.size(),
        sharding: Sharding::NONE,
    };
    let mut plan = MemoryPlan::new();
    Activations::plan(config, &options, Dtype::Bf16, &mut plan);
    plan.size_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GPT2;
    use crate::model::activations::Recompute;
    use crate::optim::optimizer::{HyperParams, Optimizer};
    use crate::roofline::scaling::Sizes;
    use crate::roofline::scaling::memory::Memory;
    use crate::sharding::{Partition, ZeroStage};
    use crate::replica::zero::ZeroBuffers;

    #[test]
    fn the_memory_predicted_is_what_a_trainer_plans() {
        let (recompute, partition) = (Recompute::Gelu, Partition { index: 3, of: 8 });
        for config in ["d12", "d48"].map(|name| ModelConfig::from_descriptor(name).unwrap()) {
            for stage in ZeroStage::ALL {
                let sharding = Sharding { stage, partition };
                let options = ModelOptions { B: 1, T: 1, min_rows: 0, recompute, logits_bytes: 0, sharding };
                let mut plan = MemoryPlan::new();
                let model = GPT2::plan(&config, &options, Dtype::Bf16, &mut plan);
                ZeroBuffers::plan(sharding, &model, &mut plan);
                let (layout, stored) = (&model.weights.params.layout, sharding.stored(ZeroStage::Zero1));
                let hyper =
                    HyperParams { beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, grad_clip: 0.0 };
                Optimizer::plan(layout, stored, Dtype::Bf16, true, hyper, &mut plan);
                let bytes = plan.arenas.iter().filter(|arena| arena.name != "activations");
                let planned = bytes.map(|arena| arena.size_bytes).sum::<usize>() as f64;
                let predicted = Memory::of(stage, partition.of, &Sizes::of(&config), 0).total();
                let off = (planned / predicted - 1.0).abs();
                assert!(off <= 2e-3, "{stage:?} of {config:?}: {planned} planned, {predicted} predicted");
            }
        }
    }
}
