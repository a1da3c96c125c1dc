//! One step in time: what a GPU computes, in order, and what goes over its links, in order, each waiting for what it needs of
//! the other. All GPUs do the same at the same time.

use super::cluster::{Cluster, Collective};
use super::phases::Phases;
use super::{Sizes, X};
use crate::units::Stage;

/// Milliseconds of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    pub compute_ms: f64,
    pub all_reduce_ms: f64,
    pub reduce_scatter_ms: f64,
    pub all_gather_ms: f64,
    /// From its begin until the next one can begin.
    pub step_ms: f64,
}

impl Times {
    pub fn communication_ms(&self) -> f64 {
        self.all_reduce_ms + self.reduce_scatter_ms + self.all_gather_ms
    }

    /// Time in which the GPU has nothing to compute.
    pub fn exposed_ms(&self) -> f64 {
        self.step_ms - self.compute_ms
    }
}

/// Bytes of the loss and of the wishes to stop, or of the norm: so few that only hops count.
const SCALARS: f64 = 0.0;

/// Plays a step of `micro_steps` on each of `gpus`.
///
/// - Without ZeRO and with ZeRO-1, a layer's gradients are on their way when the last micro-step's backward pass through it
///   ends; with ZeRO-2 and 3 those of every micro-step.
/// - With ZeRO-1 and 2 the new parameters are gathered after the update, before the next forward pass.
/// - With ZeRO-3 a layer's parameters are gathered while its neighbour is at work, forward and backward; embeddings
///   once a step.
pub fn simulate(
    stage: Stage,
    phases: &Phases,
    micro_steps: usize,
    sizes: &Sizes,
    cluster: &Cluster,
    gpus: usize,
) -> Times {
    let visits = 2 * sizes.L * micro_steps;
    let mut step = Step {
        stage,
        phases,
        sizes,
        cluster,
        gpus,
        times: Times::default(),
        computed: 0.0,
        sent: 0.0,
        visits,
        gathered: 0.0,
        layer_buffers: [0.0; 2],
        rest_buffer: 0.0,
    };
    let whole = step.begin();
    for micro_step in 0..micro_steps {
        step.forward(whole);
        step.backward(micro_step + 1 == micro_steps);
    }
    step.update();
    step.times
}

/// Where a step is. Times are milliseconds since its begin.
struct Step<'a> {
    stage: Stage,
    phases: &'a Phases,
    sizes: &'a Sizes,
    cluster: &'a Cluster,
    gpus: usize,
    times: Times,
    /// When all computing so far has ended, and all communication.
    computed: f64,
    sent: f64,
    /// Forward and backward passes through layers yet to come, and when the next one's parameters are there.
    visits: usize,
    gathered: f64,
    /// When gradients on their way have left their buffers: two layers', the one free first in front, and the others'.
    layer_buffers: [f64; 2],
    rest_buffer: f64,
}

impl Step<'_> {
    /// Computes, not before `ready`; returns when that ends.
    fn compute(&mut self, ms: f64, ready: f64) -> f64 {
        self.computed = self.computed.max(ready) + ms;
        self.times.compute_ms += ms;
        self.computed
    }

    /// Communicates behind everything that is queued, not before `ready`; returns when that ends.
    fn send(&mut self, collective: Collective, bytes: f64, ready: f64) -> f64 {
        let ms = self.cluster.ms(collective, bytes, self.gpus);
        match collective {
            Collective::AllReduce => self.times.all_reduce_ms += ms,
            Collective::ReduceScatter => self.times.reduce_scatter_ms += ms,
            Collective::AllGather => self.times.all_gather_ms += ms,
        }
        self.sent = self.sent.max(ready) + ms;
        self.sent
    }

    fn layer_bytes(&self) -> f64 {
        X * self.sizes.layer as f64
    }

    fn rest_bytes(&self) -> f64 {
        X * self.sizes.rest as f64
    }

    /// Returns when the embeddings are there.
    fn begin(&mut self) -> f64 {
        if self.stage < Stage::Zero3 {
            return 0.0;
        }
        let whole = self.send(Collective::AllGather, self.rest_bytes(), 0.0);
        self.gathered = self.send(Collective::AllGather, self.layer_bytes(), 0.0);
        whole
    }

    /// One layer, forward or backward; returns when it ends.
    fn layer(&mut self, ms: f64, ready: f64) -> f64 {
        let ready = ready.max(self.gathered);
        self.visits -= 1;
        if self.stage == Stage::Zero3 && self.visits > 0 {
            // The buffer of the layer before is free once this one begins.
            let begin = self.computed.max(ready);
            self.gathered = self.send(Collective::AllGather, self.layer_bytes(), begin);
        }
        self.compute(ms, ready)
    }

    fn forward(&mut self, whole: f64) {
        self.compute(self.phases.encoder, whole);
        for _ in 0..self.sizes.L {
            self.layer(self.phases.layer_forward, 0.0);
        }
    }

    fn backward(&mut self, last: bool) {
        let sums = last || self.stage >= Stage::Zero2;
        let collective = match self.stage {
            Stage::Zero0 => Collective::AllReduce,
            _ => Collective::ReduceScatter,
        };
        self.compute(self.phases.head, self.rest_buffer);
        for _ in 0..self.sizes.L {
            let [free, other] = self.layer_buffers;
            let end = self.layer(self.phases.layer_backward, free);
            if sums {
                let sent = self.send(collective, self.layer_bytes(), end);
                // Without ZeRO-2 each layer has its own gradients, and waits for nobody.
                if self.stage >= Stage::Zero2 {
                    self.layer_buffers = [other, sent];
                }
            }
        }
        let end = self.compute(self.phases.encoder_backward, 0.0);
        if sums {
            let sent = self.send(collective, self.rest_bytes(), end);
            if self.stage >= Stage::Zero2 {
                self.rest_buffer = sent;
            }
        }
    }

    /// Norm, update, and what must be there before the next step.
    fn update(&mut self) {
        let summed = self.send(Collective::AllReduce, SCALARS, self.computed);
        let parts = if self.stage >= Stage::Zero1 { self.gpus as f64 } else { 1.0 };
        let mut ready = self.compute(self.phases.norm / parts + self.phases.update_gaps, summed);
        if self.stage >= Stage::Zero1 {
            ready = self.send(Collective::AllReduce, SCALARS, ready);
        }
        let updated = self.compute(self.phases.adamw / parts, ready);
        if matches!(self.stage, Stage::Zero1 | Stage::Zero2) {
            for _ in 0..self.sizes.L {
                self.send(Collective::AllGather, self.layer_bytes(), updated);
            }
            self.send(Collective::AllGather, self.rest_bytes(), updated);
        }
        self.times.step_ms = self.computed.max(self.sent);
    }
}
