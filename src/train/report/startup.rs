//! The tables at the start of a run: flags, device, model, data, memory.

use super::{Report, Utilization};
use crate::cli::flags::trainer::{TrainArgs, startup_rows};
use crate::config::{DropoutRates, Lora, ModelConfig};
use crate::data::loader::DataLoader;
use crate::device::open::environment_threads;
use crate::gpus::{Peak, flops_per_token};
use crate::memory::mib;
use crate::model::Weights;
use crate::ops::{Gpu, Ops};
use crate::optim::schedule::Schedule;
use crate::params::frozen::ranges;
use crate::params::{self, ParamLayout, ParamSpec};
use crate::replica::MemoryNeeds;
use crate::train::data::Data;
use crate::train::memory::RankMemory;
use crate::words::count;

impl Report {
    /// Shows the start-up tables: flags, device, model, data.
    pub fn banner(
        &mut self,
        args: &TrainArgs,
        dev: &dyn Ops,
        start: &str,
        weights: &Weights,
        (data, schedule): (&Data, &Schedule),
    ) {
        let config = &weights.config;
        let files = ParamLayout::new(config);
        let [decayed, not_decayed] = files.decay_groups(&weights.frozen);
        let (train, val) = (&data.train, data.val.as_ref());
        self.console.table_head();
        self.table(self.flags(args, dev));
        self.device(dev, data.shape.T, weights);
        self.table([
            ("weight init method", start.to_string()),
            ("max_sequence_length T", config.maxT.to_string()),
            ("vocab_size V", config.V.to_string()),
            ("padded_vocab_size Vp", config.Vp.to_string()),
            ("num_layers L", config.L.to_string()),
            ("num_heads NH", config.NH.to_string()),
            ("channels C", config.C.to_string()),
            ("num_parameters", count_of(config).to_string()),
            ("decayed", format!("{} parameters in {} tensors", decayed.0, decayed.1)),
            ("not decayed", format!("{} parameters in {} tensors", not_decayed.0, not_decayed.1)),
        ]);
        self.what_trains(weights);
        self.table([
            ("train data", shards(train)),
            ("shuffle", data.shuffle.to_string()),
            ("val data", val.map_or("not read".to_string(), shards)),
            ("max_steps", self.max_steps.to_string()),
            ("grad_accum_steps", accumulation(data)),
        ]);
        self.table(lengths(args, schedule));
        let T = data.shape.T;
        if T < config.maxT {
            self.console.warning(format_args!(
                "sequences of {T} tokens leave positions {T} to {} untrained",
                config.maxT - 1
            ));
        }
        for path in train.short_shards().into_iter().chain(val.iter().flat_map(|v| v.short_shards())) {
            self.console.warning(format_args!("{}: too short to be read", path.display()));
        }
    }

    /// Shows the dropout of the run, if it has any, and whether its model came with it.
    pub fn dropout(&mut self, rates: DropoutRates, of_model: DropoutRates) {
        let origin = match rates == of_model {
            true => " (of the model; --dropout 0 turns it off)",
            false => "",
        };
        if rates.any() {
            self.table([("dropout rates", format!("{rates}{origin}"))]);
        }
    }

    /// Shows which parameters are trained, if some are frozen.
    fn what_trains(&mut self, weights: &Weights) {
        let Weights { config, frozen, .. } = weights;
        if frozen.is_empty() {
            return;
        }
        if let Some(Lora { rank, alpha, targets }) = config.lora {
            let beside = params::lora::names(targets);
            self.table([("adapters", format!("rank {rank}, alpha {alpha}, beside {beside}"))]);
        }
        let trained = |spec: &ParamSpec| frozen.trained_layers(spec, config);
        let len = |spec: &ParamSpec| trained(spec).len() * spec.count_per_layer(config);
        let row = |spec: &'static ParamSpec| {
            let layers = trained(spec);
            let shown = match (layers.len(), spec.per_layer) {
                (0, _) => "frozen".to_owned(),
                (n, true) if n < config.L => {
                    format!("trained in h.{}: {} parameters", ranges(&layers), len(spec))
                }
                _ => format!("trained: {} parameters", len(spec)),
            };
            (spec.name, shown)
        };
        let (all, trained) = (count_of(config), params::all(config).map(len).sum::<usize>());
        let sums = [("trained", trained), ("frozen", all - trained)];
        let share = |n: usize| format!("{n} parameters, {:.2} %", 100.0 * n as f64 / all as f64);
        self.table(params::all(config).map(row).chain(sums.map(|(name, n)| (name, share(n)))));
    }

    /// The flags and their values, apart from what the tables below them show.
    fn flags(&self, args: &TrainArgs, dev: &dyn Ops) -> Vec<(String, String)> {
        let below =
            ["shuffle", "max_steps", "num_layers L", "num_heads NH", "channels C", "max_sequence_length"];
        let mut rows = startup_rows(args);
        rows.retain(|(name, _)| !below.contains(&name.as_str()));
        for (name, value) in &mut rows {
            match (name.as_str(), value.as_str(), environment_threads()) {
                ("dtype", "auto", _) => *value = format!("auto ({})", dev.operand_dtype()),
                ("threads", "0", Some(threads)) => *value = format!("{threads} (OMP_NUM_THREADS)"),
                _ => {}
            }
        }
        rows
    }

    /// Shows the device and, for a GPU, its peak.
    fn device(&mut self, dev: &dyn Ops, T: usize, weights: &Weights) {
        let mut rows = vec![("running on", dev.describe())];
        if let Some(gpu) = dev.gpu() {
            let operands = gpu.operands;
            let peak = Peak::of_device(&gpu.name).map(|peak| peak.tflops(operands) * 1e12);
            let shown = |peak: f64| format!("{:.1} ({operands})", peak / 1e12);
            rows.push(("peak TFlops", peak.map_or("unknown GPU".to_string(), shown)));
            let (L, C) = (weights.config.L, weights.config.C);
            let flops_per_token = flops_per_token(ParamLayout::new(&weights.config).len(), L, C, T);
            self.utilization = peak.map(|peak_flops| Utilization { peak_flops, flops_per_token, operands });
        }
        self.table(rows);
    }

    /// Shows the libraries loaded for the run, and their paths.
    pub fn libraries(&mut self, libraries: &[(&'static str, String)]) {
        if !libraries.is_empty() {
            self.table(libraries.iter().map(|(name, found)| (name, found)));
        }
    }

    /// Shows the processes that train together, and the state that they shard.
    pub fn peers(&mut self, processes: Option<String>, sharded: Option<String>) {
        let rows = [("processes", processes), ("zero_stage", sharded)];
        let rows: Vec<_> = rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        if !rows.is_empty() {
            self.table(rows);
        }
    }

    /// Shows the memory that the run is about to take, and the largest batch that would fit.
    pub fn memory(&mut self, planned: &RankMemory, needs: &MemoryNeeds, gpu: Option<&Gpu>) {
        let rows = planned.rows().map(|&(name, bytes)| (name, mib(bytes as u64)));
        self.table(rows.chain([("memory in all", mib(planned.total() as u64))]));
        if let Some(gpu) = gpu {
            let (used, all) = (planned.total() >> 20, gpu.memory_bytes >> 20);
            self.console.line(format_args!("device memory usage: {used} MiB / {all} MiB"));
        }
        self.console.line(format_args!("memory per sequence: {} MiB", needs.sequence_bytes >> 20));
        if let Some(max) = needs.max_batch_size {
            self.console.line(format_args!(" -> estimated maximum batch size: {max}"));
        }
    }
}

/// The parameters of a model, with the padding of its vocabulary and without that of a rank.
fn count_of(config: &ModelConfig) -> usize {
    params::all(config).map(|spec| spec.layers(config) * spec.count_per_layer(config)).sum()
}

/// The tokens and shards of a loader.
fn shards(l: &DataLoader) -> String {
    let short = match l.short_shards().len() {
        0 => String::new(),
        short => format!(", {short} of them too short to be read"),
    };
    let (tokens, shards) = (count(l.num_tokens(), "token"), count(l.num_shards(), "shard"));
    let mixed = match l.weights().len() {
        0 => String::new(),
        sources => format!(", {sources} sources mixed"),
    };
    let packed = l.packed_documents().map_or_else(String::new, |documents| format!(", {documents} packed"));
    format!("{tokens} in {shards}{short}{mixed}{packed}")
}

/// Micro-batches of a step, and how they grow.
fn accumulation(data: &Data) -> String {
    let (first, end) = (data.grad_accum_steps(0), data.batches.end_of_ramp());
    match end {
        0 => first.to_string(),
        end => format!("{first} to {} in step {}", data.grad_accum_steps(end), end + 1),
    }
}

/// Lengths that were given in tokens or as a fraction, in steps.
fn lengths(args: &TrainArgs, schedule: &Schedule) -> Vec<(&'static str, String)> {
    let flags = &args.schedule;
    let rows = [
        ("warmup iterations", flags.warmup_tokens.is_some(), schedule.warmup),
        ("decay_steps", flags.decay_tokens.is_some(), schedule.decay_steps),
        (
            "cooldown_steps",
            flags.cooldown_frac.is_some() || flags.cooldown_tokens.is_some(),
            schedule.cooldown.0,
        ),
    ];
    rows.into_iter().filter(|row| row.1).map(|(name, _, steps)| (name, steps.to_string())).collect()
}
