//! Time stamps of devices whose work is done whenever a method returns.

use std::time::{Duration, Instant};

/// Time stamps by the host's clock.
#[derive(Debug, Default)]
pub struct HostStamps(Vec<Instant>);

impl HostStamps {
    /// As [`Device::stamp`](super::Device::stamp).
    pub fn stamp(&mut self) {
        self.0.push(Instant::now());
    }

    /// As [`Device::take_stamps`](super::Device::take_stamps).
    pub fn take(&mut self) -> Vec<Duration> {
        let stamps = std::mem::take(&mut self.0);
        stamps.iter().map(|&stamp| stamp - stamps[0]).collect()
    }
}
