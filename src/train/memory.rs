//! The memory of a rank: planned part by part before the run, and measured in each step.

use crate::checkpoint::{Checkpoint, State};
use crate::cli::flags::trainer::TrainArgs;
use crate::data::loader::LoaderState;
use crate::device::open::DeviceName;
use crate::memory::{MIB, Resident, mib};
use crate::ops::{GpuMemory, Ops};
use crate::parallel::host;
use crate::params::Param;
use crate::replica::{RESERVED_BYTES, ReplicaPlan};
use crate::report::jsonl::MemoryMetrics;
use std::fmt;

/// Touched pages of the program, its libraries, stacks and small allocations: measured, in a
/// release build on Linux x86-64 (14 MiB of it are files).
const PROGRAM_BYTES: usize = 17 * MIB;

/// The merges and the vocabulary of GPT-2's tokenizer, measured.
const TOKENIZER_BYTES: usize = 9 * MIB;

/// Planned bytes of a rank, by part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// The arenas of the device's plan.
    pub tensors: Vec<(&'static str, usize)>,
    /// The memory beside them in the same place: of the process if the device's memory is the
    /// host's, else of the GPU.
    pub beside: Vec<(&'static str, usize)>,
    /// Bytes that it may take, where `-b auto` asked for them.
    pub room: Option<u64>,
}

impl RankMemory {
    /// Plans the memory of the rank that `args` describe.
    pub fn new(args: &TrainArgs, plan: &ReplicaPlan, dev: &dyn Ops, room: Option<u64>) -> Self {
        let tensors = plan.memory.arenas.iter().map(|arena| (arena.name, arena.size_bytes)).collect();
        let beside = match args.device.name {
            DeviceName::Cuda => vec![("driver, kernels and libraries", RESERVED_BYTES)],
            DeviceName::Cpu | DeviceName::Emulated => in_process(args, plan, dev),
        };
        RankMemory { tensors, beside, room }
    }

    pub fn rows(&self) -> impl Iterator<Item = &(&'static str, usize)> {
        self.tensors.iter().chain(&self.beside)
    }

    pub fn total(&self) -> usize {
        self.rows().fold(0, |sum, row| sum.saturating_add(row.1))
    }
}

/// The memory that the process takes besides tensors.
fn in_process(args: &TrainArgs, plan: &ReplicaPlan, dev: &dyn Ops) -> Vec<(&'static str, usize)> {
    let copies = args.files.output_dir.is_some() && args.process.is_rank0() && !args.compat.inference_only;
    let tokenizes = args.eval.sample_every > 0 || args.asks_questions();
    let head_gradient = !plan.model.weights.frozen.contains(Param::Wte, plan.config.L);
    let rows = [
        ("packed operands", dev.host_bytes(&plan.model.limits(), head_gradient)),
        ("collectives", if args.process.world_size > 1 { host::BUFFER_BYTES } else { 0 }),
        ("copy for checkpoints", if copies { checkpoint(args, plan).copy_bytes() } else { 0 }),
        ("tokenizer", if tokenizes { TOKENIZER_BYTES } else { 0 }),
        ("program", PROGRAM_BYTES),
    ];
    rows.into_iter().filter(|row| row.1 > 0).collect()
}

/// A checkpoint of the run, as far as its size depends on it.
fn checkpoint(args: &TrainArgs, plan: &ReplicaPlan) -> Checkpoint {
    let weights = &plan.model.weights;
    let state = State {
        step: 0,
        num_processes: 1,
        rank: 0,
        use_master_weights: plan.optimizer.master.is_some(),
        muon: plan.optimizer.options().muon.is_some(),
        adapters: weights.config.lora.is_some(),
        dtype: args.update.state.dtype(),
        rng_state: 0,
        rng_state_last_update: 0,
        loader: LoaderState { current_shard_idx: 0, current_sample_idx: 0, shuffle: None },
    };
    let dtype = super::checkpoints::file_dtype(weights.params.dtype());
    Checkpoint { config: weights.config, dtype, state: Some(state), base_model: String::new() }
}

/// The memory of a run against its plan.
pub struct MemoryMeter {
    planned: usize,
    /// The most that the GPU reported.
    gpu_peak: u64,
}

impl MemoryMeter {
    pub fn new(planned: &RankMemory) -> Self {
        MemoryMeter { planned: planned.total(), gpu_peak: 0 }
    }

    /// Measures the process, and the GPU if there is one.
    pub fn measure(&mut self, dev: &mut dyn Ops) -> MemoryMetrics {
        let (process, gpu) = (Resident::read(), dev.gpu_memory());
        let used = |gpu: GpuMemory| gpu.process.unwrap_or(gpu.used);
        self.gpu_peak = self.gpu_peak.max(gpu.map_or(0, used));
        MemoryMetrics {
            rss_bytes: process.map(|process| process.now),
            peak_rss_bytes: process.map(|process| process.peak),
            gpu_bytes: gpu.and_then(|gpu| gpu.process),
            gpu_used_bytes: gpu.map(|gpu| gpu.used),
        }
    }

    /// The most that was measured where the plan is: on the GPU, or of the process.
    pub fn peak(&mut self, dev: &mut dyn Ops) -> Option<u64> {
        let measured = self.measure(dev);
        if dev.gpu().is_some() {
            Some(self.gpu_peak).filter(|&peak| peak > 0)
        } else {
            measured.peak_rss_bytes
        }
    }

    /// The line at the end of a run.
    pub fn conclude(&mut self, dev: &mut dyn Ops) -> Conclusion {
        Conclusion { planned: self.planned as u64, measured: self.peak(dev) }
    }
}

/// Planned and measured memory.
pub struct Conclusion {
    planned: u64,
    measured: Option<u64>,
}

/// `memory: planned 337.9 MiB, peak measured 339.2 MiB (+0.4 %)`
impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory: planned {}, peak measured ", mib(self.planned))?;
        match self.measured {
            None => f.write_str("n/a"),
            Some(measured) => {
                let share = 100.0 * (measured as f64 / self.planned as f64 - 1.0);
                write!(f, "{} ({share:+.1} %)", mib(measured))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_at_the_end_of_a_run() {
        let line = |measured| Conclusion { planned: 200 << 20, measured }.to_string();
        assert_eq!(line(Some(199 << 20)), "memory: planned 200.0 MiB, peak measured 199.0 MiB (-0.5 %)");
        assert_eq!(line(None), "memory: planned 200.0 MiB, peak measured n/a");
    }
}
