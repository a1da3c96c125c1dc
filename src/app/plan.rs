//! `warpsmith plan`: what a run will take, before it starts.

use super::roofline::read_records;
use super::room;
use super::trainer::device_options;
use crate::app::print;
use crate::cli::flags::warpsmith::{PlanArgs, PlanFlags};
use crate::device::cuda::driver::DeviceInfo;
use crate::gpus::flops_per_token;
use crate::memory::mib;
use crate::ops::Ops;
use crate::params::ParamLayout;
use crate::roofline::gpu::Gpu;
use crate::roofline::kernels::StepShape;
use crate::roofline::report::grouped;
use crate::roofline::scaling::cluster::Cluster;
use crate::roofline::scaling::links::links;
use crate::roofline::scaling::{Batch, Outcome, Plan, Question};
use crate::tensor::Dtype;
use crate::train::memory::RankMemory;
use crate::train::plan::RunPlan;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt::{self, Display, Formatter};

pub fn plan(args: &PlanArgs) -> Result<()> {
    let options = device_options(&args.train, None);
    let (dev, room) = match args.plan.gpu {
        Some(gpu) => (options.on_paper(on_paper(gpu)), Some((gpu.memory_mib * f64::from(1 << 20)) as u64)),
        None => (options.open()?, room::alone().map(|room| room / args.train.process.world_size as u64)),
    };
    let run = crate::train::plan::plan(&args.train, dev.as_ref(), room)?;
    let step = match args.plan.gpu {
        Some(gpu) => predicted(&run, gpu, &args.plan, dev.as_ref())?,
        None => Err("not predicted on a CPU; the trainer shows it from its first step on".to_owned()),
    };
    let report = Report { run, plan: args.plan.clone(), room, step };
    if args.plan.json { print(format_args!("{}\n", report.json())) } else { print(report) }
}

/// The properties of a GPU on which the plan of memory depends. Only Hopper has kernels of its own.
fn on_paper(gpu: &Gpu) -> DeviceInfo {
    DeviceInfo {
        name: gpu.full_name.to_owned(),
        capability: if gpu.wgmma { (9, 0) } else { (8, 0) },
        sm_count: gpu.SMs,
        memory_bytes: (gpu.memory_mib * f64::from(1 << 20)) as usize,
        shared_bytes: if gpu.wgmma { 227 << 10 } else { 99 << 10 },
        emulated: false,
    }
}

/// The predicted step, or why there is no prediction.
fn predicted(run: &RunPlan, gpu: &Gpu, flags: &PlanFlags, dev: &dyn Ops) -> Result<Result<Outcome, String>> {
    let (train, config) = (&run.args, run.replica.config);
    let ranks = train.process.world_size;
    if dev.float_dtype() == Dtype::F32 {
        return Ok(Err("predicted for 16-bit types only".to_owned()));
    }
    if train.optim.freeze.is_some() {
        return Ok(Err("not predicted with --freeze".to_owned()));
    }
    let (B, T) = (train.batch.batch_size, train.batch.sequence_length);
    let step = StepShape {
        B,
        T,
        micro_steps: train.grad_accum_steps(),
        recompute: train.device.recompute,
        logits_rows: (dev.logits_bytes() / (config.Vp * dev.float_dtype().size())).max(1),
        optimizer: train.update.kind,
    };
    let links = links(gpu, &flags.links).context("--links")?;
    let question = Question {
        config,
        step,
        batch: Batch::Total(train.total_batch_tokens()),
        gpu,
        cluster: Cluster::new(links, train.processes.gpus_per_node),
        stages: vec![train.processes.zero_stage],
        gpus: vec![ranks],
    };
    let records = read_records(&flags.records, gpu)?;
    let row = Plan::new(question, &records).rows.pop().expect("one stage on one number of GPUs");
    Ok(row.outcome)
}

/// A plan, to be printed.
struct Report {
    run: RunPlan,
    plan: PlanFlags,
    /// Bytes that each rank may take.
    room: Option<u64>,
    step: Result<Outcome, String>,
}

impl Report {
    fn ranks(&self) -> usize {
        self.run.args.process.world_size
    }

    fn flops_per_token(&self) -> f64 {
        let config = &self.run.replica.config;
        let parameters = ParamLayout::new(config).len();
        flops_per_token(parameters, config.L, config.C, self.run.args.batch.sequence_length)
    }

    /// Seconds of all steps.
    fn seconds(&self) -> Option<f64> {
        Some(self.run.tokens? as f64 / self.step.as_ref().ok()?.tokens_per_s)
    }

    fn gpu_hours(&self) -> Option<f64> {
        Some(self.seconds()? / 3600.0 * self.ranks() as f64)
    }

    fn dollars(&self) -> Option<f64> {
        Some(self.gpu_hours()? * f64::from(self.plan.price?))
    }

    fn fits(&self) -> Option<bool> {
        self.room.map(|room| self.run.memory.total() as u64 <= room)
    }

    /// Share of the peak of all GPUs, of 1.
    fn mfu(&self) -> Option<f64> {
        let (gpu, step) = (self.plan.gpu?, self.step.as_ref().ok()?);
        Some(self.flops_per_token() * step.tokens_per_s / (gpu.peak_tflops() * 1e12 * self.ranks() as f64))
    }

    fn json(&self) -> Value {
        let run = &self.run;
        let parts = |memory: &RankMemory| -> Value {
            memory.rows().map(|&(name, bytes)| (name.to_owned(), Value::from(bytes))).collect()
        };
        let step = self.step.as_ref();
        json!({
            "parameters": ParamLayout::new(&run.replica.config).len(),
            "processes": self.ranks(),
            "batch_size": run.args.batch.batch_size,
            "memory_bytes": parts(&run.memory),
            "memory_total_bytes": run.memory.total(),
            "memory_total_bytes_of_other_ranks": run.others.as_ref().map(RankMemory::total),
            "memory_available_bytes": self.room,
            "fits": self.fits(),
            "largest_batch_size": run.largest_batch,
            "tokens_per_step": run.args.total_batch_tokens(),
            "steps": run.steps,
            "tokens": run.tokens,
            "flops_per_token": self.flops_per_token(),
            "flops": run.tokens.map(|tokens| self.flops_per_token() * tokens as f64),
            "step_seconds": step.ok().map(|step| step.times.step_ms / 1e3),
            "tokens_per_second": step.ok().map(|step| step.tokens_per_s),
            "seconds": self.seconds(),
            "gpu_hours": self.gpu_hours(),
            "dollars": self.dollars(),
            "notes": run.notes,
        })
    }

    fn write_memory(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let memory = &self.run.memory;
        let whose = if self.ranks() > 1 { "memory of rank 0" } else { "memory" };
        writeln!(f, "\n{whose:<32} {:>14}", "MiB")?;
        for &(name, bytes) in memory.rows() {
            writeln!(f, "  {name:<30} {:>14}", shown_mib(bytes))?;
        }
        writeln!(f, "  {:<30} {:>14}", "in all", shown_mib(memory.total()))?;
        let different = self.run.others.as_ref().filter(|others| *others != memory);
        if let Some(others) = different {
            let names = |memory: &RankMemory| memory.rows().map(|row| row.0).collect::<Vec<_>>();
            let theirs = names(others);
            let without: Vec<_> = names(memory).into_iter().filter(|name| !theirs.contains(name)).collect();
            let label = format!("each other rank: no {}", without.join(", "));
            writeln!(f, "  {label:<30} {:>14}", shown_mib(others.total()))?;
        }
        if let (Some(room), Some(fits)) = (self.room, self.fits()) {
            let verdict = if fits { "it fits" } else { "it does not fit" };
            let whole = if self.plan.gpu.is_some() { "memory of a GPU" } else { "free memory" };
            writeln!(f, "  {whole:<30} {:>14}  {verdict}", shown_mib(room as usize))?;
        }
        let largest = match (self.run.largest_batch, self.room) {
            (Some(largest), _) => format!("-b {largest}"),
            (None, Some(_)) => "none".to_owned(),
            (None, None) => "unknown".to_owned(),
        };
        let dividing = if self.run.args.batch.total_batch_size.is_some() { " and divides -d" } else { "" };
        writeln!(f, "{:<32} {largest:>14}", format!("largest batch that fits{dividing}"))
    }

    fn write_work(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        let unknown = || "unknown".to_owned();
        let rows = [
            ("tokens a step", grouped(run.args.total_batch_tokens())),
            ("steps", run.steps.map_or_else(unknown, grouped)),
            ("tokens", run.tokens.map_or_else(unknown, |tokens| grouped(tokens as usize))),
            ("FLOPs a token", format!("{:.3e}", self.flops_per_token())),
            (
                "FLOPs",
                run.tokens
                    .map_or_else(unknown, |tokens| format!("{:.3e}", self.flops_per_token() * tokens as f64)),
            ),
        ];
        writeln!(f)?;
        rows.iter().try_for_each(|(name, value)| writeln!(f, "{name:<32} {value:>14}"))
    }

    fn write_time(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let step = match &self.step {
            Ok(step) => step,
            Err(why) => return writeln!(f, "{:<32} {why}", "time"),
        };
        let mut rows = vec![
            ("predicted step", format!("{:.1} ms", step.times.step_ms)),
            ("  of it, waits for other GPUs", format!("{:.1} ms", step.times.exposed_ms())),
            ("tokens a second", grouped(step.tokens_per_s.round() as usize)),
        ];
        rows.extend(self.mfu().map(|mfu| ("MFU", format!("{:.1} %", 100.0 * mfu))));
        rows.extend(self.seconds().map(|seconds| ("time of all steps", duration(seconds))));
        rows.extend(self.gpu_hours().map(|hours| ("GPU-hours", format!("{hours:.1}"))));
        rows.extend(self.dollars().map(|dollars| ("cost", format!("${dollars:.2}"))));
        rows.iter().try_for_each(|(name, value)| writeln!(f, "{name:<32} {value:>14}"))
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let RunPlan { replica, args, .. } = &self.run;
        let c = &replica.config;
        let parameters = grouped(ParamLayout::new(c).len());
        writeln!(f, "L {}, NH {}, C {}, Vp {}: {parameters} parameters", c.L, c.NH, c.C, c.Vp)?;
        let ranks = self.ranks();
        let place = match (self.plan.gpu, ranks) {
            (Some(gpu), 1) => format!("one {}", gpu.full_name),
            (Some(gpu), _) => format!("{ranks} x {}", gpu.full_name),
            (None, 1) => "the CPU of this machine".to_owned(),
            (None, _) => format!("{ranks} processes on the CPU of this machine"),
        };
        let (B, T, accumulated) =
            (args.batch.batch_size, args.batch.sequence_length, args.grad_accum_steps());
        let stage = args.processes.zero_stage as usize;
        let sharded = if ranks > 1 { format!("; ZeRO stage {stage}") } else { String::new() };
        writeln!(
            f,
            "B {B}, T {T}, {accumulated} micro-step(s), recompute {}: {place}{sharded}",
            args.device.recompute as usize
        )?;
        self.run.notes.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        self.write_memory(f)?;
        self.write_work(f)?;
        self.write_time(f)
    }
}

/// A number of MiB without the unit.
fn shown_mib(bytes: usize) -> String {
    mib(bytes as u64).trim_end_matches(" MiB").to_owned()
}

/// `3 d 4.5 h`, `2.3 h`, `12.0 min` or `5.0 s`.
fn duration(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        60.0..3600.0 => format!("{:.1} min", seconds / 60.0),
        3600.0..86_400.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{} d {:.1} h", (seconds / 86_400.0).floor(), seconds % 86_400.0 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_suits_them() {
        let shown = [5.0, 720.0, 8280.0, 275_400.0].map(duration);
        assert_eq!(shown, ["5.0 s", "12.0 min", "2.3 h", "3 d 4.5 h"]);
    }
}
