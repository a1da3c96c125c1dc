//! SIGINT and SIGTERM stop a run after the step in which they arrive.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The signal that asked the run to stop, if any.
pub struct StopSignal {
    received: Arc<AtomicUsize>,
}

impl StopSignal {
    /// Starts listening. A second signal of the same kind ends the process at once, as is its
    /// default.
    pub fn listen() -> Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let received = Arc::new(AtomicUsize::new(0));
        let stopping = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Order matters: at the first signal the flag that ends the process is not yet set.
            signal_hook::flag::register_conditional_default(signal, stopping.clone())
                .and_then(|_| signal_hook::flag::register(signal, stopping.clone()))
                .and_then(|_| signal_hook::flag::register_usize(signal, received.clone(), signal as usize))
                .context("could not listen for SIGINT and SIGTERM")?;
        }
        Ok(StopSignal { received })
    }

    /// The number of the signal, if one arrived.
    pub fn received(&self) -> Option<i32> {
        match self.received.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
