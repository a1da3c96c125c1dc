//! Step times, measured without slowing steps down.
//!
//! The device works through its queue, and the host waits for it once per step, where it reads loss
//! and norm back. So a step is timed from the previous read-back to its own, an interval that
//! covers one step's worth of work: the previous update plus this forward and backward. The first
//! step has no update to count. Work between steps, such as validation, is excluded: the clock
//! stops before it, once the device has finished the pending update.

use crate::ops::Device;
use anyhow::Result;
use std::time::{Duration, Instant};

/// A stopwatch for steps, started by [`Self::go`].
#[derive(Clone, Copy, Debug, Default)]
pub struct StepClock {
    /// `None` while stopped.
    running_since: Option<Instant>,
    /// The time of this lap before the clock last stopped.
    before: Duration,
}

impl StepClock {
    /// Starts the clock, or restarts it if it was stopped.
    pub fn go(&mut self) {
        self.running_since.get_or_insert_with(Instant::now);
    }

    pub fn is_stopped(&self) -> bool {
        self.running_since.is_none()
    }

    /// Stops the clock before work that is not training, after `dev` has finished its queue.
    pub fn stop(&mut self, dev: &mut (impl Device + ?Sized)) -> Result<()> {
        if self.running_since.is_some() {
            dev.synchronize()?;
        }
        if let Some(since) = self.running_since.take() {
            self.before += since.elapsed();
        }
        Ok(())
    }

    /// Starts a new lap and returns the running time of the last one.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let since = self.running_since.replace(now);
        std::mem::take(&mut self.before) + since.map_or(Duration::ZERO, |since| now - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::cpu;
    use crate::tensor::MemoryPlan;
    use std::thread::sleep;

    #[test]
    fn what_lies_between_steps_is_not_counted() {
        let (short, long) = (Duration::from_millis(20), Duration::from_millis(400));
        let mut dev = cpu(&MemoryPlan::new());
        let mut clock = StepClock::default();
        clock.stop(&mut dev).unwrap();
        sleep(long);
        clock.go();
        sleep(short);
        let first = clock.lap();
        sleep(short); // an update
        clock.stop(&mut dev).unwrap();
        sleep(long);
        clock.stop(&mut dev).unwrap();
        clock.go();
        sleep(short);
        clock.go();
        let second = clock.lap();
        assert!(first >= short && first < long, "{first:?}");
        assert!(second >= 2 * short && second < long, "{second:?}");
    }
}
