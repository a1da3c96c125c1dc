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

/// An event that takes time, in milliseconds since the start of the step.
#[derive(Clone, Debug)]
pub struct Played {
    pub event: Event,
    pub start_ms: f64,
    pub end_ms: f64,
}

/// Returns the times of a step of one of `gpus`, after another like it. `event_ms` gives the
/// milliseconds of computation of an event. If `played` is given, it receives the events of the
/// step. Collectives that cross its start or end are cut there.
pub fn simulate(
    recording: &mut Recording,
    mut event_ms: impl FnMut(&Event) -> f64,
    cluster: &Cluster,
    gpus: usize,
    played: Option<&mut Vec<Played>>,
) -> Times {
    let (times, sent) = (Times::default(), vec![0.0]);
    let mut timeline = Timeline { cluster, gpus, times, computed: 0.0, sent, played };
    // The second step begins with what the first one left in flight, as all later ones do.
    for _ in 0..2 {
        let began = timeline.computed;
        timeline.times = Times::default();
        recording.step(|event| {
            let ms = event_ms(&event);
            timeline.play(event, ms);
        });
        timeline.times.step_ms = timeline.computed - began;
    }
    timeline.cut();
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
    /// Events of both steps, since the start of the first one.
    played: Option<&'a mut Vec<Played>>,
}

impl Timeline<'_> {
    fn play(&mut self, event: Event, ms: f64) {
        let (start_ms, end_ms) = match &event {
            Event::Start { operations, .. } => self.send(operations),
            Event::Wait(work) => {
                self.computed = self.computed.max(self.sent[work.0 as usize]);
                return;
            }
            _ => {
                let start = self.computed;
                self.computed += ms;
                self.times.compute_ms += ms;
                (start, self.computed)
            }
        };
        if let Some(played) = &mut self.played {
            played.push(Played { event, start_ms, end_ms });
        }
    }

    /// Communicates once all computation and communication so far has ended. Operations that start
    /// together are of one kind and travel as one. Returns their start and end.
    fn send(&mut self, operations: &[Operation]) -> (f64, f64) {
        let collective = operations[0].collective;
        let bytes: usize = operations.iter().map(|operation| operation.buffer.size_bytes()).sum();
        let ms = self.cluster.ms(collective, bytes as f64, self.gpus);
        match collective {
            Collective::AllReduce => self.times.all_reduce_ms += ms,
            Collective::ReduceScatter => self.times.reduce_scatter_ms += ms,
            // Broadcasts of many roots at once move what an all-gather moves.
            Collective::AllGather | Collective::Broadcast { .. } => self.times.all_gather_ms += ms,
        }
        let free = self.sent.last().expect("never empty").max(self.computed);
        self.sent.push(free + ms);
        (free, free + ms)
    }

    /// Reduces what was played to this step.
    fn cut(&mut self) {
        let Some(played) = &mut self.played else { return };
        let length = self.times.step_ms;
        let began = self.computed - length;
        let since = |ms: f64| (ms - began).clamp(0.0, length);
        for event in played.iter_mut() {
            (event.start_ms, event.end_ms) = (since(event.start_ms), since(event.end_ms));
        }
        played.retain(|event| event.start_ms < event.end_ms);
    }
}
