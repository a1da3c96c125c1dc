//! Sizes and durations of collectives, logged at level `debug` and noted for traces.

use super::{Operation, Work};
use log::{Level, debug, log_enabled};
use std::time::Instant;

/// Operations that were started together, and when they ran. A communicator runs one work at a
/// time, so times do not overlap.
#[derive(Clone, Debug)]
pub struct WorkTime {
    pub work: Work,
    pub operations: Vec<Operation>,
    pub start: Instant,
    pub end: Instant,
}

/// The times of work, noted on request.
#[derive(Default)]
pub struct Times(Option<Vec<WorkTime>>);

impl Times {
    /// Starts to note times.
    pub fn begin(&mut self) {
        self.0 = Some(Vec::new());
    }

    pub fn are_noted(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the noted times, and notes no more.
    pub fn take(&mut self) -> Vec<WorkTime> {
        self.0.take().unwrap_or_default()
    }

    /// Notes when work ran, if times are noted.
    pub fn note(&mut self, work: Work, started: Started, (start, end): (Instant, Instant)) {
        if let Some(times) = &mut self.0 {
            times.push(WorkTime { work, operations: started.operations, start, end });
        }
    }
}

/// Operations that were started together.
pub struct Started {
    at: Instant,
    /// Empty unless they are logged or noted.
    operations: Vec<Operation>,
}

impl Started {
    pub fn now(operations: &[Operation], times: &Times) -> Self {
        let kept = if times.are_noted() || log_enabled!(Level::Debug) { operations } else { &[] };
        Started { at: Instant::now(), operations: kept.to_vec() }
    }

    /// Logs the time from the start until now, when the end was noticed.
    pub fn log_end(&self, work: Work) {
        for Operation { collective, buffer } in &self.operations {
            let (bytes, ms) = (buffer.size_bytes(), self.at.elapsed().as_secs_f64() * 1e3);
            debug!("{work}: {collective} of {bytes} bytes, {ms:.3} ms after its start");
        }
    }
}
