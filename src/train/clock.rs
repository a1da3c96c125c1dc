//! How long steps take, without making them longer.
//!
//! A device works off what is queued; the host waits for it once a step, when it reads loss and norm back. So a step is
//! timed from its predecessor's read-back to its own: the predecessor's update, and its own forward and backward passes.
//! That is one step's work, though not of one step. The first step has no update to count. What lies between steps,
//! such as validation, is left out; before it the device finishes the update that it still owes to the clock.

use crate::ops::Device;
use anyhow::Result;
use std::time::{Duration, Instant};

/// Times steps; runs from [`Self::go`] on.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepClock {
    /// `None` while it stands.
    running_since: Option<Instant>,
    /// Of this lap, until it last stood.
    before: Duration,
}

impl StepClock {
    /// Goes on, if it stands.
    pub fn go(&mut self) {
        self.running_since.get_or_insert_with(Instant::now);
    }

    /// Stands still for something that is no training, once `dev` has done what is queued.
    ///
    /// # Errors
    /// If the device fails.
    pub fn stop(&mut self, dev: &mut (impl Device + ?Sized)) -> Result<()> {
        if self.running_since.is_some() {
            dev.synchronize()?;
        }
        if let Some(since) = self.running_since.take() {
            self.before += since.elapsed();
        }
        Ok(())
    }

    /// The time it ran since the last lap. It goes on.
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
