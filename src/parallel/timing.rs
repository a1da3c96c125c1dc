//! Sizes and durations of collectives, logged at level `debug`.

use super::{Collective, Operation, Work};
use log::{Level, debug, log_enabled};
use std::time::Instant;

/// Operations that were started together.
pub struct Started {
    at: Instant,
    /// Kind and bytes of each; empty unless they are logged.
    operations: Vec<(Collective, usize)>,
}

impl Started {
    pub fn now(operations: &[Operation]) -> Self {
        let sizes = |operation: &Operation| (operation.collective, operation.buffer.size_bytes());
        let logged = if log_enabled!(Level::Debug) { operations } else { &[] };
        Started { at: Instant::now(), operations: logged.iter().map(sizes).collect() }
    }

    /// Logs the time from the start until now, when the end was noticed.
    pub fn log_end(&self, work: Work) {
        for (collective, bytes) in &self.operations {
            let ms = self.at.elapsed().as_secs_f64() * 1e3;
            debug!("{work}: {collective} of {bytes} bytes, {ms:.3} ms after its start");
        }
    }
}
