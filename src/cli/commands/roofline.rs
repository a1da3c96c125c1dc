//! `warpsmith roofline`: the predicted budget of a training step.
#![allow(non_snake_case)]

use crate::cli::check::micro_steps;
use crate::cli::print;
use crate::cli::tools::RooflineArgs;
use crate::config::ModelConfig;
use crate::roofline::kernels::Run;
use crate::roofline::record::{FILE_SUFFIX, Records};
use crate::roofline::report::Budget;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

pub fn roofline(args: &RooflineArgs) -> Result<()> {
    let config = ModelConfig::from_descriptor(&args.model).context("-e/--model")?;
    let (B, T) = (args.batch_size, args.sequence_length);
    ensure!(
        T <= config.maxT,
        "-t/--sequence-length: expected at most {}, what {} can take, found {T}",
        config.maxT,
        args.model
    );
    let micro_steps = micro_steps(args.total_batch_size.unwrap_or(B * T), (B, T), 1)?;
    let run = Run { B, T, micro_steps, recompute: args.recompute, logits_rows: args.logits_rows };
    let mut records = Records::default();
    for_each_record(&args.records.join(args.gpu.name), |text| records.add(text))?;
    for_each_record(&args.records.join("emulated"), |text| records.counted.add(text))?;
    print(Budget::new(&config, &run, args.gpu, &records))
}

/// Adds all records of a device, the newest last: their names begin with a date. None if it has no folder.
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
        let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
        add(&text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
