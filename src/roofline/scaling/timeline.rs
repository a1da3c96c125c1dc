//! One step over time: the computation of a GPU in order, and the traffic on its links in order;
//! each waits for what it needs from the other. All GPUs do the same at the same time.

use super::cluster::{Cluster, Collective};
use super::phases::Phases;
use super::{Sizes, X};
use crate::sharding::ZeroStage;

/// Milliseconds of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    pub compute_ms: f64,
    pub all_reduce_ms: f64,
    pub reduce_scatter_ms: f64,
    pub all_gather_ms: f64,
    /// From the end of one step to the end of the next.
    pub step_ms: f64,
}

impl Times {
    pub fn communication_ms(&self) -> f64 {
        self.all_reduce_ms + self.reduce_scatter_ms + self.all_gather_ms
    }

    /// Time during which the GPU has nothing to compute.
    pub fn exposed_ms(&self) -> f64 {
        // Sums of long times may differ in the last place.
        (self.step_ms - self.compute_ms).max(0.0)
    }
}

/// Bytes of the loss, the norm and the stop flags: so few that only hops count.
const SCALARS: f64 = 0.0;

/// Simulates a step of `micro_steps` on each of `gpus`, after others like it.
///
/// - Without ZeRO and with ZeRO-1, the reduction of a layer's gradients starts when the backward
///   pass of the last micro-step has passed that layer; with ZeRO-2 and 3, in every micro-step.
/// - With ZeRO-1 and 2, new parameters are gathered unit by unit, each after its update; the next
///   forward pass waits for each.
/// - With ZeRO-3, a layer's parameters are gathered while its neighbor computes, forward and
///   backward, unless they are still resident from the previous pass; embeddings are gathered once
///   per step.
pub fn simulate(
    stage: ZeroStage,
    phases: &Phases,
    micro_steps: usize,
    sizes: &Sizes,
    cluster: &Cluster,
    gpus: usize,
) -> Times {
    let mut step = Step {
        stage,
        phases,
        sizes,
        cluster,
        gpus,
        times: Times::default(),
        computed: 0.0,
        sent: 0.0,
        arrived: vec![0.0; sizes.L + 1],
        layer_buffers: [0.0; 2],
        shared_buffer: 0.0,
    };
    // Each step waits for the communication that the previous one left in flight; from the third
    // on, all are alike.
    (0..3).for_each(|_| step.play(micro_steps));
    step.times
}

/// The state of the simulation. Times are milliseconds since its start.
struct Step<'a> {
    stage: ZeroStage,
    phases: &'a Phases,
    sizes: &'a Sizes,
    cluster: &'a Cluster,
    gpus: usize,
    /// Times of this step.
    times: Times,
    /// End of all computation so far, and of all communication.
    computed: f64,
    sent: f64,
    /// Time at which the parameters of each layer, and of the shared unit, arrive.
    arrived: Vec<f64>,
    /// Time at which gradients in flight have left their buffers: those of even and odd layers, and
    /// the shared unit's.
    layer_buffers: [f64; 2],
    shared_buffer: f64,
}

impl Step<'_> {
    fn play(&mut self, micro_steps: usize) {
        let began = self.computed;
        self.times = Times::default();
        if self.stage == ZeroStage::Zero3 {
            self.gather(self.sizes.L);
            (0..self.sizes.L.min(2)).for_each(|l| self.gather(l));
        }
        for micro_step in 0..micro_steps {
            self.forward();
            self.backward(micro_step + 1 == micro_steps);
        }
        self.update();
        self.times.step_ms = self.computed - began;
    }

    /// Computes, not before `ready`; returns the end time.
    fn compute(&mut self, ms: f64, ready: f64) -> f64 {
        self.computed = self.computed.max(ready) + ms;
        self.times.compute_ms += ms;
        self.computed
    }

    /// Communicates after everything that is queued, once all computation so far has ended; returns
    /// the end time.
    fn send(&mut self, collective: Collective, bytes: f64) -> f64 {
        let ms = self.cluster.ms(collective, bytes, self.gpus);
        match collective {
            Collective::AllReduce => self.times.all_reduce_ms += ms,
            Collective::ReduceScatter => self.times.reduce_scatter_ms += ms,
            Collective::AllGather => self.times.all_gather_ms += ms,
        }
        self.sent = self.sent.max(self.computed) + ms;
        self.sent
    }

    /// Number of parameters of a layer, or of the shared unit.
    fn len(&self, unit: usize) -> f64 {
        if unit == self.sizes.L { self.sizes.shared as f64 } else { self.sizes.layer as f64 }
    }

    fn gather(&mut self, unit: usize) {
        self.arrived[unit] = self.send(Collective::AllGather, X * self.len(unit));
    }

    fn forward(&mut self) {
        let L = self.sizes.L;
        self.compute(self.phases.encoder, self.arrived[L]);
        for l in 0..L {
            self.compute(self.phases.layer_forward, self.arrived[l]);
            if self.stage == ZeroStage::Zero3 && l + 2 < L {
                self.gather(l + 2);
            }
        }
    }

    fn backward(&mut self, last: bool) {
        let sums = last || self.stage >= ZeroStage::Zero2;
        let collective = match self.stage {
            ZeroStage::Zero0 => Collective::AllReduce,
            _ => Collective::ReduceScatter,
        };
        let (L, sharded) = (self.sizes.L, self.stage >= ZeroStage::Zero2);
        self.compute(self.phases.head, self.shared_buffer);
        for l in (0..L).rev() {
            self.compute(self.phases.layer_backward, self.arrived[l].max(self.layer_buffers[l % 2]));
            if sums {
                let sent = self.send(collective, X * self.len(l));
                // Without ZeRO-2 each layer has its own gradients and waits for nothing.
                self.layer_buffers[l % 2] = if sharded { sent } else { 0.0 };
            }
            if self.stage == ZeroStage::Zero3 && l >= 2 {
                self.gather(l - 2);
            }
        }
        self.compute(self.phases.encoder_backward, 0.0);
        if sums {
            let sent = self.send(collective, X * self.len(L));
            self.shared_buffer = if sharded { sent } else { 0.0 };
        }
    }

    /// Computes the norm and the update, and gathers what the next step waits for.
    fn update(&mut self) {
        let L = self.sizes.L;
        let parts = if self.stage >= ZeroStage::Zero1 { self.gpus as f64 } else { 1.0 };
        self.compute(self.phases.norm / parts + self.phases.update_gaps, self.sent);
        let ready = self.send(Collective::AllReduce, SCALARS);
        for unit in [L].into_iter().chain(0..L) {
            let share = self.len(unit) / self.sizes.all() as f64;
            self.compute(self.phases.adamw / parts * share, ready);
            if matches!(self.stage, ZeroStage::Zero1 | ZeroStage::Zero2) {
                self.gather(unit);
            }
        }
    }
}
