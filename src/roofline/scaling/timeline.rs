//! A recorded step over time: the computation of a GPU in order, and the traffic on its links in
//! order; each waits for the other where the trainer waits. All GPUs do the same at the same time.

use super::cluster::Cluster;
use crate::parallel::{Collective, Operation};
use crate::recorder::Event;
use crate::roofline::recording::Recording;

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

/// Returns the times of a step of one of `gpus`, after another like it. `event_ms` gives the
/// milliseconds of computation of an event.
pub fn simulate(
    recording: &mut Recording,
    mut event_ms: impl FnMut(&Event) -> f64,
    cluster: &Cluster,
    gpus: usize,
) -> Times {
    let mut timeline = Timeline { cluster, gpus, times: Times::default(), computed: 0.0, sent: vec![0.0] };
    // The second step begins with what the first one left in flight, as all later ones do.
    for _ in 0..2 {
        let began = timeline.computed;
        timeline.times = Times::default();
        recording.step(|event| timeline.play(&event, event_ms(&event)));
        timeline.times.step_ms = timeline.computed - began;
    }
    timeline.times
}

/// The state of the simulation.
struct Timeline<'a> {
    cluster: &'a Cluster,
    gpus: usize,
    /// Times of this step.
    times: Times,
    /// End of all computation so far, in milliseconds since the start.
    computed: f64,
    /// End of each [`Work`](crate::parallel::Work), by its number; they count from 1.
    sent: Vec<f64>,
}

impl Timeline<'_> {
    fn play(&mut self, event: &Event, ms: f64) {
        match event {
            Event::Start { operations, .. } => self.send(operations),
            Event::Wait(work) => self.computed = self.computed.max(self.sent[work.0 as usize]),
            _ => {
                self.computed += ms;
                self.times.compute_ms += ms;
            }
        }
    }

    /// Communicates once all computation and communication so far has ended. Operations that start
    /// together are of one kind and travel as one.
    fn send(&mut self, operations: &[Operation]) {
        let collective = operations[0].collective;
        let bytes: usize = operations.iter().map(|operation| operation.buffer.size_bytes()).sum();
        let ms = self.cluster.ms(collective, bytes as f64, self.gpus);
        match collective {
            Collective::AllReduce => self.times.all_reduce_ms += ms,
            Collective::ReduceScatter => self.times.reduce_scatter_ms += ms,
            Collective::AllGather => self.times.all_gather_ms += ms,
            Collective::Broadcast { .. } => unreachable!("a step broadcasts nothing"),
        }
        let free = self.sent.last().expect("never empty").max(self.computed);
        self.sent.push(free + ms);
    }
}
