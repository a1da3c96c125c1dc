//! The GPU that the device has opened in this thread.

use crate::libraries::cuda_error;
use anyhow::{Result, bail, ensure};
use cudarc::driver::{CudaContext, CudaEvent, result, sys};
use std::sync::Arc;

/// Returns the context that is current in this thread. It must be its GPU's primary one, which is
/// then retained.
pub fn current_context() -> Result<Arc<CudaContext>> {
    // SAFETY: this runs the initializers of NVIDIA's libcuda, which any program may load. Every
    // other function of cudarc panics without it.
    let is_loaded = unsafe { sys::is_culib_present() };
    let current = if is_loaded { result::ctx::get_current() } else { Ok(None) };
    let Some(current) = current.map_err(|e| cuda_error("cuCtxGetCurrent", e))? else {
        bail!("NCCL connects GPUs, and no CUDA context is current on this thread");
    };
    let mut device = 0;
    // SAFETY: a context is current, and the function writes a number.
    unsafe { sys::cuCtxGetDevice(&mut device) }.result().map_err(|e| cuda_error("cuCtxGetDevice", e))?;
    // A CUdevice is the ordinal of a GPU.
    let context = CudaContext::new(device as usize).map_err(|e| cuda_error("cuDevicePrimaryCtxRetain", e))?;
    // SAFETY: nothing is allocated through this handle, so nothing is tracked. With tracking on, a
    // first stream would wait for everything that is queued in the context.
    unsafe { context.disable_event_tracking() };
    ensure!(context.cu_ctx() == current, "NCCL needs the primary context of GPU {device} to be current");
    Ok(context)
}

/// Returns an event that completes when everything queued in `stream` so far is done.
///
/// # Safety
/// `stream` is a live `CUstream` of the context.
pub unsafe fn record(context: &Arc<CudaContext>, stream: usize) -> Result<CudaEvent> {
    // SAFETY: the caller guarantees a live stream of this context, and the wrapper lives no longer
    // than this call.
    let stream = unsafe { context.wrap_borrowed_stream(stream as sys::CUstream) };
    stream.record_event(None).map_err(|e| cuda_error("cuEventRecord", e))
}
