//! `warpsmith roofline`: the predicted budget of a training step, or the clocks of one kernel.

use super::clocks;
use crate::app::print;
use crate::cli::check::{BATCH_FLAG, micro_steps};
use crate::cli::flags::warpsmith::{RooflineArgs, StepArgs};
use crate::config::ModelConfig;
use crate::files;
use crate::roofline::gpu::Gpu;
use crate::roofline::kernels::StepShape;
use crate::roofline::record::{FILE_SUFFIX, Records};
use crate::roofline::report::Budget;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

pub fn roofline(args: &RooflineArgs) -> Result<()> {
    let step = &args.step;
    if let Some(name) = &args.kernel {
        return clocks::print_kernel(name, step.gpu, &step.records);
    }
    let config = config(step)?;
    let total = step.total_batch_size.unwrap_or(step.batch_size * step.sequence_length);
    print(Budget::new(&config, &run(step, total)?, step.gpu, &records(step)?))
}

/// The shape of the model.
pub(super) fn config(args: &StepArgs) -> Result<ModelConfig> {
    let model = args.model.as_deref().context("-e/--model: missing")?;
    let config = ModelConfig::from_descriptor(model).context("-e/--model")?;
    config.check_sequence_length(args.sequence_length)?;
    Ok(config)
}

/// A step of `tokens` tokens on one GPU.
pub(super) fn run(args: &StepArgs, tokens: usize) -> Result<StepShape> {
    let (B, T) = (args.batch_size, args.sequence_length);
    let micro_steps = micro_steps(BATCH_FLAG, tokens, (B, T), 1)?;
    Ok(StepShape {
        B,
        T,
        micro_steps,
        recompute: args.recompute,
        logits_rows: args.logits_rows,
        optimizer: args.optimizer,
    })
}

/// Times measured on that GPU, and counts from the emulated device.
pub(super) fn records(args: &StepArgs) -> Result<Records> {
    read_records(&args.records, args.gpu)
}

/// The same from a directory.
pub(super) fn read_records(dir: &Path, gpu: &Gpu) -> Result<Records> {
    let mut records = Records::default();
    for_each_record(&dir.join(gpu.name), |text| records.add(text))?;
    for_each_record(&dir.join("emulated"), |text| records.counted.add(text))?;
    Ok(records)
}

/// Calls `add` with each record of a device, the newest last: names begin with a date. A device
/// without a directory has no records.
fn for_each_record(dir: &Path, mut add: impl FnMut(&str) -> Result<()>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let fault = || format!("--records {}: cannot read", dir.display());
    let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut paths: Vec<_> = entries.with_context(fault)?.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(FILE_SUFFIX));
    paths.sort();
    for path in paths {
        let text = files::read_text(&path, files::TEXT_BYTES)?;
        add(&text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
