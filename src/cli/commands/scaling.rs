//! `warpsmith scaling`: the predicted step of many GPUs.
#![allow(non_snake_case)]

use super::roofline::{config, records, run};
use crate::cli::print;
use crate::cli::tools::{RooflineArgs, ScalingArgs};
use crate::config::ModelConfig;
use crate::model::ModelOptions;
use crate::model::activations::{Activations, Recompute};
use crate::roofline::scaling::cluster::Cluster;
use crate::roofline::scaling::machine::Machine;
use crate::roofline::scaling::{Batch, Plan, Question};
use crate::tensor::{Dtype, MemoryPlan};
use crate::units::{Sharding, Stage};
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
        run: run(step, alone)?,
        batch,
        gpu: step.gpu,
        cluster: Cluster::new(links, args.gpus_per_node),
        stages: args.zero.iter().map(|&stage| Stage::ALL[stage]).collect(),
        gpus: args.gpus.clone(),
        activations: activation_bytes(&config, step),
    };
    print(Plan::new(question, &records(step)?))
}

/// The buffers that a trainer would plan, to the byte.
fn activation_bytes(config: &ModelConfig, step: &RooflineArgs) -> usize {
    let options = ModelOptions {
        B: step.batch_size,
        T: step.sequence_length,
        min_rows: 0,
        recompute: [Recompute::Nothing, Recompute::Gelu, Recompute::GeluAndLayernorm][step.recompute],
        logits_bytes: step.logits_rows * config.Vp * Dtype::Bf16.size(),
        sharding: Sharding::NONE,
    };
    let mut plan = MemoryPlan::new();
    Activations::plan(config, &options, Dtype::Bf16, &mut plan);
    plan.size_bytes()
}
