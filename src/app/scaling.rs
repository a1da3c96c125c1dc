//! `warpsmith scaling`: a predicted training step on many GPUs.

use super::roofline::{config, records, run};
use crate::app::print;
use crate::cli::flags::warpsmith::ScalingArgs;
use crate::files::NewFile;
use crate::roofline::scaling::cluster::Cluster;
use crate::roofline::scaling::links::links;
use crate::roofline::scaling::{Batch, Plan, Question};
use anyhow::{Context, Result};

pub fn scaling(args: &ScalingArgs) -> Result<()> {
    let step = &args.step;
    let config = config(step)?;
    let (batch, alone) = match step.total_batch_size {
        Some(tokens) => (Batch::Total(tokens), tokens),
        None => (Batch::MicroBatchEach, step.batch_size * step.sequence_length),
    };
    let links = links(step.gpu, &args.links).context("--links")?;
    let question = Question {
        config,
        step: run(step, alone)?,
        batch,
        gpu: step.gpu,
        cluster: Cluster::new(links, args.gpus_per_node),
        stages: args.zero.clone(),
        gpus: args.gpus.clone(),
    };
    // A path that cannot be written is refused before anything is predicted.
    let trace = args.trace.as_deref().map(NewFile::create).transpose().context("--trace")?;
    let records = records(step)?;
    let plan = Plan::new(question, &records);
    // Before the report: whoever reads that may close the pipe.
    if let Some(mut file) = trace {
        let written = plan.write_trace(&records, &mut file);
        written.and_then(|()| file.complete()?.publish()).context("--trace")?;
    }
    print(&plan)
}
