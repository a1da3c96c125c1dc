//! The GPU as those see it who queue work beside the device's own.

use anyhow::{Result, anyhow, bail};
use cudarc::driver::result::DriverError;
use cudarc::driver::{result as cu, sys};

/// A GPU that the device has opened.
#[derive(Clone, Copy)]
pub struct Context(sys::CUcontext);

// SAFETY: contexts may be current in many threads.
unsafe impl Send for Context {}

impl Context {
    /// That of the GPU this thread works with.
    ///
    /// # Errors
    /// If it works with none.
    pub fn current() -> Result<Self> {
        // SAFETY: loads NVIDIA's libcuda. Without it all below would panic.
        if unsafe { sys::is_culib_present() }
            && let Some(context) = cu::ctx::get_current().map_err(|e| message("cuCtxGetCurrent", e))?
        {
            return Ok(Context(context));
        }
        bail!("NCCL connects GPUs, and this thread has opened none")
    }

    /// Makes it this thread's.
    pub fn bind(self) -> Result<()> {
        // SAFETY: the device keeps it for longer than it has a communicator.
        unsafe { cu::ctx::set_current(self.0) }.map_err(|e| message("cuCtxSetCurrent", e))
    }
}

/// Work queued here is done in order, beside that of other streams.
pub struct Stream(sys::CUstream);

// SAFETY: streams may be used by any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver has locks.
unsafe impl Sync for Stream {}

impl Stream {
    /// Of the GPU whose context is current.
    pub fn new() -> Result<Self> {
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking);
        Ok(Stream(stream.map_err(|e| message("cuStreamCreate", e))?))
    }

    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// What is queued from now on waits for the event.
    pub fn wait_for(&self, event: Event) -> Result<()> {
        // SAFETY: both live. The driver remembers the point, so that the event goes.
        unsafe { cu::stream::wait_event(self.0, event.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
            .map_err(|e| message("cuStreamWaitEvent", e))
    }

    /// Passed when all is done that was queued until now.
    pub fn event(&self) -> Result<Event> {
        // SAFETY: the stream lives, and its GPU's context is current in all threads that queue work in it.
        unsafe { Event::after(self.0 as usize) }
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

// SAFETY: events may be used by any thread.
unsafe impl Send for Event {}

impl Event {
    /// Passed when all is done that was queued in a stream until now.
    ///
    /// # Safety
    /// It is a `CUstream` of the GPU whose context is current.
    pub unsafe fn after(stream: usize) -> Result<Self> {
        let event = cu::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let event = Event(event.map_err(|e| message("cuEventCreate", e))?);
        // SAFETY: as promised.
        let recorded = unsafe { cu::event::record(event.0, stream as sys::CUstream) };
        recorded.map_err(|e| message("cuEventRecord", e)).map(|()| event)
    }

    pub fn has_passed(&self) -> Result<bool> {
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => result.result().map(|()| true).map_err(|e| message("cuEventQuery", e)),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { cu::event::destroy(self.0) };
    }
}

fn message(what: &str, error: DriverError) -> anyhow::Error {
    let explained = error.error_string().map(|s| s.to_string_lossy().into_owned());
    anyhow!("{what}: {:?} ({})", error.0, explained.unwrap_or_else(|_| "unknown error".to_string()))
}
