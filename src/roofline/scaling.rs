//! Many GPUs: how much of a step's communication overlaps with computation, and how much memory
//! each ZeRO stage saves.
//!
//! [`machine`] describes links and memories, [`cluster`] gives the time of a collective, [`phases`]
//! divides the computation of a step where communication can begin, [`timeline`] plays the queue of
//! both, [`memory`] sums the memory per GPU, and [`report`] prints.
//!
//! Not modeled: copies and additions take SMs and bandwidth from computation, GPUs wait for the
//! slowest one, and NCCL reduces over many machines with trees, where rings wait for each hop. The
//! first two make real steps slower than predicted, the last one faster.

pub mod cluster;
pub mod machine;
pub mod memory;
pub mod phases;
pub mod report;
pub mod timeline;

#[cfg(test)]
mod tests;

use super::gpu::Gpu;
use super::kernels::StepShape;
use super::record::Records;
use super::report::Budget;
use crate::config::ModelConfig;
use crate::params::{PARAMS, ParamLayout};
use crate::sharding::ZeroStage;
use cluster::Cluster;
use machine::Machine;
use memory::Memory;
use phases::Phases;
use timeline::{Times, simulate};

/// Bytes per parameter or gradient, in memory and in flight: bf16.
pub const X: f64 = 2.0;

/// Parameters per layer, and those of the shared unit: embeddings and the final layernorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub L: usize,
    pub layer: usize,
    pub shared: usize,
}

impl Sizes {
    pub fn of(config: &ModelConfig) -> Self {
        let layer = PARAMS.iter().filter(|spec| spec.per_layer).map(|spec| spec.len_per_layer(config)).sum();
        Sizes { L: config.L, layer, shared: ParamLayout::new(config).len() - config.L * layer }
    }

    pub fn all(&self) -> usize {
        self.L * self.layer + self.shared
    }
}

/// Tokens per optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// A total, divided among all GPUs.
    Total(usize),
    /// One micro-batch per GPU.
    MicroBatchEach,
}

/// The step and the clusters to predict.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub config: ModelConfig,
    /// `micro_steps` are those of a single GPU.
    pub step: StepShape,
    pub batch: Batch,
    pub gpu: &'a Gpu,
    pub cluster: Cluster,
    pub stages: Vec<ZeroStage>,
    pub gpus: Vec<usize>,
    /// Bytes of the activations of a micro-batch.
    pub activations: usize,
}

/// A ZeRO stage on a number of GPUs.
#[derive(Clone, Debug)]
pub struct Row {
    pub stage: ZeroStage,
    pub gpus: usize,
    pub memory: Memory,
    /// Bytes saved relative to stage 0.
    pub saved: f64,
    /// Whether that fits on a GPU.
    pub fits: bool,
    /// Times of a step, or why it is impossible.
    pub outcome: Result<Outcome, String>,
}

#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub micro_steps: usize,
    pub times: Times,
    pub tokens_per_s: f64,
    /// Tokens per second and GPU, relative to a single GPU with enough memory.
    pub efficiency: f64,
}

/// The prediction.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub question: Question<'a>,
    pub machine: &'static Machine,
    /// Number of kernels of the step, and how many of their times were measured.
    pub kernels: (usize, usize),
    pub rows: Vec<Row>,
}

impl<'a> Plan<'a> {
    pub fn new(question: Question<'a>, records: &Records) -> Self {
        let budget = |micro_steps| {
            let step = StepShape { micro_steps, ..question.step };
            Budget::new(&question.config, &step, question.gpu, records)
        };
        let alone = budget(question.step.micro_steps);
        let measured = alone.rows.iter().filter(|row| row.measured_us.is_some()).count();
        let sizes = Sizes::of(&question.config);
        let of_one = Phases::of(&alone).alone_ms(question.step.micro_steps);
        let tokens_of_one = question.step.tokens() as f64 / of_one;
        let machine = Machine::of(question.gpu);
        let row = |stage, gpus| {
            let outcome = question.micro_steps(gpus).map(|micro_steps| {
                let phases = Phases::of(&budget(micro_steps));
                let times = simulate(stage, &phases, micro_steps, &sizes, &question.cluster, gpus);
                let tokens = (question.step.B * question.step.T * micro_steps * gpus) as f64;
                let efficiency = tokens / times.step_ms / gpus as f64 / tokens_of_one;
                Outcome { micro_steps, times, tokens_per_s: tokens / times.step_ms * 1e3, efficiency }
            });
            let memory = |stage| Memory::of(stage, gpus, &sizes, question.activations);
            let (memory, unsharded) = (memory(stage), memory(ZeroStage::Zero0));
            let saved = unsharded.total() - memory.total();
            Row { stage, gpus, memory, saved, fits: memory.total() <= machine.usable_bytes(), outcome }
        };
        let pairs = question.stages.iter().flat_map(|&stage| question.gpus.iter().map(move |&n| (stage, n)));
        let rows = pairs.map(|(stage, gpus)| row(stage, gpus)).collect();
        Plan { machine, kernels: (alone.rows.len(), measured), rows, question }
    }
}

impl Question<'_> {
    /// Micro-steps per GPU.
    ///
    /// # Errors
    /// If the machines or the batch cannot be divided evenly; the message names a size that can.
    pub fn micro_steps(&self, gpus: usize) -> Result<usize, String> {
        let per_node = self.cluster.per_node;
        if gpus > per_node && !gpus.is_multiple_of(per_node) {
            return Err(format!("not a whole number of machines of {per_node} GPUs"));
        }
        let Batch::Total(tokens) = self.batch else { return Ok(1) };
        let (B, T) = (self.step.B, self.step.T);
        let (sequences, micro_batches) = (tokens / T, tokens / (B * T));
        if micro_batches.is_multiple_of(gpus) {
            return Ok(micro_batches / gpus);
        }
        if sequences < gpus {
            return Err(format!("fewer sequences ({sequences}) than GPUs: a larger -d is needed"));
        }
        if !sequences.is_multiple_of(gpus) {
            return Err(format!("{sequences} sequences cannot be divided evenly: another -d is needed"));
        }
        let each = sequences / gpus;
        let B = (1..=B).rev().find(|&b| each.is_multiple_of(b)).expect("1 divides everything");
        let why = if micro_batches < gpus { "fewer than" } else { "not a multiple of" };
        Err(format!("{micro_batches} micro-batches are {why} the GPUs: -b {B} would do"))
    }
}
