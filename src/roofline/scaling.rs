//! Many GPUs: what of the communication of a step hides behind computing, and what of the memory each ZeRO stage saves.
//!
//! [`machine`] holds what is known of links and memories, [`cluster`] the time of a collective, [`phases`] the computing of a
//! step cut where communication can begin, [`timeline`] the queue of both, [`memory`] what a GPU holds, [`report`] the text.
//!
//! Left out: that copying and adding up takes multiprocessors and bandwidth from computing, that GPUs wait for the slowest
//! one, and the trees that NCCL takes for sums over many machines, where rings wait for each hop. The first two make it slower
//! than said here, the last one faster.

pub mod cluster;
pub mod machine;
pub mod memory;
pub mod phases;
pub mod report;
pub mod timeline;

#[cfg(test)]
mod tests;

use super::gpu::Gpu;
use super::kernels::Run;
use super::record::Records;
use super::report::Budget;
use crate::config::ModelConfig;
use crate::params::{PARAMS, ParamLayout};
use crate::units::Stage;
use cluster::Cluster;
use machine::Machine;
use memory::Memory;
use phases::Phases;
use timeline::{Times, simulate};

/// Bytes of a parameter or gradient on its way and in memory: bf16.
pub const X: f64 = 2.0;

/// Parameters of a layer, and those that are in none: embeddings and the last layernorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub L: usize,
    pub layer: usize,
    pub rest: usize,
}

impl Sizes {
    pub fn of(config: &ModelConfig) -> Self {
        let layer = PARAMS.iter().filter(|spec| spec.per_layer).map(|spec| spec.len_per_layer(config)).sum();
        Sizes { L: config.L, layer, rest: ParamLayout::new(config).len() - config.L * layer }
    }

    pub fn all(&self) -> usize {
        self.L * self.layer + self.rest
    }
}

/// Tokens of an optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// However many GPUs share them.
    Total(usize),
    /// One micro-batch for each GPU.
    MicroBatchEach,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub config: ModelConfig,
    /// Its `micro_steps` are those of a GPU alone.
    pub run: Run,
    pub batch: Batch,
    pub gpu: &'a Gpu,
    pub cluster: Cluster,
    pub stages: Vec<Stage>,
    pub gpus: Vec<usize>,
    /// Bytes of the buffers of a micro-batch.
    pub activations: usize,
}

/// A stage on so many GPUs.
#[derive(Clone, Debug)]
pub struct Row {
    pub stage: Stage,
    pub gpus: usize,
    pub memory: Memory,
    /// Bytes beside those of the first stage.
    pub saved: f64,
    /// Whether a GPU holds that.
    pub fits: bool,
    /// Times of a step, or why there is none.
    pub outcome: Result<Outcome, String>,
}

#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub micro_steps: usize,
    pub times: Times,
    pub tokens_per_s: f64,
    /// Tokens a second and GPU beside those of a GPU alone that has memory enough.
    pub efficiency: f64,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub question: Question<'a>,
    pub machine: &'static Machine,
    /// Kernels of the step, and those of them whose time was measured.
    pub kernels: (usize, usize),
    pub rows: Vec<Row>,
}

impl<'a> Plan<'a> {
    pub fn new(question: Question<'a>, records: &Records) -> Self {
        let budget = |micro_steps| {
            let run = Run { micro_steps, ..question.run };
            Budget::new(&question.config, &run, question.gpu, records)
        };
        let alone = budget(question.run.micro_steps);
        let measured = alone.rows.iter().filter(|row| row.measured_us.is_some()).count();
        let sizes = Sizes::of(&question.config);
        let of_one = Phases::of(&alone).alone_ms(question.run.micro_steps);
        let tokens_of_one = question.run.tokens() as f64 / of_one;
        let machine = Machine::of(question.gpu);
        let row = |stage, gpus| {
            let outcome = question.micro_steps(gpus).map(|micro_steps| {
                let phases = Phases::of(&budget(micro_steps));
                let times = simulate(stage, &phases, micro_steps, &sizes, &question.cluster, gpus);
                let tokens = (question.run.B * question.run.T * micro_steps * gpus) as f64;
                let efficiency = tokens / times.step_ms / gpus as f64 / tokens_of_one;
                Outcome { micro_steps, times, tokens_per_s: tokens / times.step_ms * 1e3, efficiency }
            });
            let memory = |stage| Memory::of(stage, gpus, &sizes, question.activations);
            let (memory, whole) = (memory(stage), memory(Stage::Zero0));
            let saved = whole.total() - memory.total();
            Row { stage, gpus, memory, saved, fits: memory.total() <= machine.usable_bytes(), outcome }
        };
        let pairs = question.stages.iter().flat_map(|&stage| question.gpus.iter().map(move |&n| (stage, n)));
        let rows = pairs.map(|(stage, gpus)| row(stage, gpus)).collect();
        Plan { machine, kernels: (alone.rows.len(), measured), rows, question }
    }
}

impl Question<'_> {
    /// Micro-steps of each of so many GPUs.
    ///
    /// # Errors
    /// If machines or the batch cannot be shared out evenly; the message says what could be.
    pub fn micro_steps(&self, gpus: usize) -> Result<usize, String> {
        let per_node = self.cluster.per_node;
        if gpus > per_node && !gpus.is_multiple_of(per_node) {
            return Err(format!("not a whole number of machines of {per_node} GPUs"));
        }
        let Batch::Total(tokens) = self.batch else { return Ok(1) };
        let (B, T) = (self.run.B, self.run.T);
        let (sequences, micro_batches) = (tokens / T, tokens / (B * T));
        if micro_batches.is_multiple_of(gpus) {
            return Ok(micro_batches / gpus);
        }
        if sequences < gpus {
            return Err(format!("fewer sequences ({sequences}) than GPUs: a larger -d is needed"));
        }
        if !sequences.is_multiple_of(gpus) {
            return Err(format!("{sequences} sequences cannot be shared evenly: another -d is needed"));
        }
        let each = sequences / gpus;
        let B = (1..=B).rev().find(|&b| each.is_multiple_of(b)).expect("1 divides everything");
        let why = if micro_batches < gpus { "fewer than" } else { "no multiple of" };
        Err(format!("{micro_batches} micro-batches are {why} the GPUs: -b {B} would do"))
    }
}
