//! Streams and events that release themselves.

use super::message;
use anyhow::Result;
use cudarc::driver::result::DriverError;
use cudarc::driver::{result as cu, sys};

/// Work queued here is done in order.
pub struct Stream(sys::CUstream);

impl Stream {
    pub fn new() -> Result<Self> {
        // Not ordered against the default stream, which nobody uses.
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking);
        Ok(Stream(stream.map_err(|e| message("cuStreamCreate", e))?))
    }

    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    pub fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { cu::stream::synchronize(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { cu::stream::destroy(self.0) };
    }
}

/// A point in a stream.
pub struct Event(sys::CUevent);

impl Event {
    /// To wait for.
    pub fn new() -> Result<Self> {
        Event::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// To measure time with.
    pub fn timer() -> Result<Self> {
        Event::with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(flags: sys::CUevent_flags) -> Result<Self> {
        Ok(Event(cu::event::create(flags).map_err(|e| message("cuEventCreate", e))?))
    }

    pub fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both live.
        unsafe { cu::event::record(self.0, stream.0) }
    }

    /// Waits for it. One that was never recorded has passed.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the event lives as long as `self`.
        unsafe { cu::event::synchronize(self.0) }
    }

    /// Milliseconds from `earlier` to this event, which it waits for.
    pub fn since(&self, earlier: &Event) -> Result<f32, DriverError> {
        self.synchronize()?;
        // SAFETY: both live and are recorded.
        unsafe { cu::event::elapsed(earlier.0, self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { cu::event::destroy(self.0) };
    }
}
