//! Many GPUs: how much of a step's communication overlaps with computation, and how much memory
//! each ZeRO stage saves.
//!
//! [`links`] describes links, [`cluster`] gives the time of a collective,
//! [`timeline`] plays the recorded step of a rank with the times of its calls and collectives,
//! [`memory`] sums the memory that the rank plans, [`report`] prints, and [`trace`] shows the step
//! as a timeline.
//!
//! Not modeled: collectives take SMs and bandwidth from computation, GPUs wait for the slowest one,
//! and NCCL reduces over many machines with trees, where rings wait for each hop. The first two
//! make real steps slower than predicted, the last one faster.

pub mod cluster;
pub mod links;
pub mod memory;
pub mod report;
pub mod timeline;
pub mod trace;

#[cfg(test)]
mod tests;

use super::calls::Kernels;
use super::gpu::Gpu;
use super::kernels::StepShape;
use super::record::Records;
use super::recording::Recording;
use super::report::Budget;
use crate::config::ModelConfig;
use crate::recorder::Event;
use crate::sharding::ZeroStage;
use cluster::Cluster;
use memory::Memory;
use timeline::{Played, Times, simulate};

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
    /// Number of kernels of the step, and how many of their times were measured.
    pub kernels: (usize, usize),
    pub rows: Vec<Row>,
}

impl<'a> Plan<'a> {
    pub fn new(question: Question<'a>, records: &Records) -> Self {
        let one_gpu = question.budget(question.step.micro_steps, records);
        let measured = one_gpu.rows.iter().filter(|row| row.measured_us.is_some()).count();
        let alone = question.times(ZeroStage::Zero0, 1, &one_gpu);
        let tokens_of_one = question.step.tokens() as f64 / alone.step_ms;
        let mut rows = Vec::new();
        for &gpus in &question.gpus {
            let budget = question.micro_steps(gpus).map(|micro_steps| question.budget(micro_steps, records));
            rows.extend(question.stages.iter().map(|&stage| {
                let outcome = budget.as_ref().map_err(Clone::clone).map(|budget| {
                    let times = question.times(stage, gpus, budget);
                    let tokens = (budget.step.tokens() * gpus) as f64;
                    let efficiency = tokens / times.step_ms / gpus as f64 / tokens_of_one;
                    let (micro_steps, tokens_per_s) = (budget.step.micro_steps, tokens / times.step_ms * 1e3);
                    Outcome { micro_steps, times, tokens_per_s, efficiency }
                });
                let memory = |stage| Memory::of(&question.recording(stage, gpus, &question.step).memory);
                let (memory, unsharded) = (memory(stage), memory(ZeroStage::Zero0));
                let saved = unsharded.total() - memory.total();
                Row {
                    stage,
                    gpus,
                    memory,
                    saved,
                    fits: memory.total() <= question.gpu.usable_bytes(),
                    outcome,
                }
            }));
        }
        // Stable: the numbers of GPUs stay in their order.
        rows.sort_by_key(|row| question.stages.iter().position(|stage| *stage == row.stage));
        Plan { kernels: (one_gpu.rows.len(), measured), rows, question }
    }
}

impl Question<'_> {
    /// One GPU's computation of a step.
    fn budget(&self, micro_steps: usize, records: &Records) -> Budget {
        Budget::new(&self.config, &StepShape { micro_steps, ..self.step }, self.gpu, records)
    }

    fn recording(&self, stage: ZeroStage, gpus: usize, step: &StepShape) -> Recording {
        Recording::new(&self.config, step, stage, gpus)
    }

    /// Simulates the step of `budget` with that step's times of kernels.
    fn times(&self, stage: ZeroStage, gpus: usize, budget: &Budget) -> Times {
        self.play(&mut self.recording(stage, gpus, &budget.step), gpus, budget, None)
    }

    /// Simulates a recorded step of `budget`; `played` is that of [`simulate`].
    fn play(
        &self,
        recording: &mut Recording,
        gpus: usize,
        budget: &Budget,
        played: Option<&mut Vec<Played>>,
    ) -> Times {
        let mut kernels = Kernels::new(recording.weights());
        let event_ms = |event: &Event| kernels.of(event).iter().map(|kernel| budget.call_ms(kernel)).sum();
        simulate(recording, event_ms, &self.cluster, gpus, played)
    }

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
