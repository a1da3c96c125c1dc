//! From a machine that may or may not have a GPU to a context on one.

use super::message;
use crate::device::cuda::driver::DeviceInfo;
use crate::device::cuda::fatbins::NVCC_VERSION;
use crate::libraries;
use anyhow::{Result, anyhow, bail};
use cudarc::driver::{result as cu, sys};
use std::ffi::{CStr, c_char};
use std::fmt;
use sys::CUdevice_attribute as Attribute;

/// Why there is no GPU to be had. One line each, that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    NoDriver,
    /// The CUDA version that the driver supports, as it counts: 12040.
    DriverTooOld(i32),
    NoDevice,
    /// The library to link with, which a toolkit has, in place of the driver's.
    Stub,
    Other(String),
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoDriver => {
                write!(f, "no NVIDIA driver: libcuda.so.1 was not found; install NVIDIA's driver")?
            }
            Problem::DriverTooOld(version) => {
                let show = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
                let (found, expected) = (show(*version), show(oldest_driver()));
                write!(
                    f,
                    "the NVIDIA driver{} is for CUDA {found}; expected {expected} or newer; update the driver",
                    place()
                )?;
            }
            Problem::NoDevice => {
                write!(f, "no NVIDIA GPU: the driver found none")?;
                if let Some(visible) = std::env::var_os("CUDA_VISIBLE_DEVICES") {
                    write!(f, " (CUDA_VISIBLE_DEVICES={})", visible.display())?;
                }
            }
            Problem::Stub => write!(
                f,
                "libcuda of a toolkit's stubs folder was loaded{}, which is no driver; take .../stubs off LD_LIBRARY_PATH",
                place()
            )?,
            Problem::Other(why) => write!(f, "the NVIDIA driver does not start: {why}")?,
        }
        Ok(())
    }
}

/// ` (/usr/lib/libcuda.so.1)`: which one was loaded.
fn place() -> String {
    libraries::loaded_from("libcuda.so").map(|path| format!(" ({})", path.display())).unwrap_or_default()
}

/// 12.8 has all the functions we call; kernels compiled by a toolkit run on drivers from the first of its major version on.
fn oldest_driver() -> i32 {
    i32::max(12080, NVCC_VERSION.0 as i32 * 1000)
}

/// How many GPUs there are, at least one.
///
/// # Errors
/// If there is none, or none that can be used.
pub fn probe() -> Result<usize, Problem> {
    let failed = |what: &str, e: cu::DriverError| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Problem::NoDevice,
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Problem::Stub,
        _ => Problem::Other(message(what, e).to_string()),
    };
    // SAFETY: loads libcuda, whose initialisers are NVIDIA's affair. Nothing else of cudarc may be called before this has
    // returned true: a missing library or function panics there.
    if !unsafe { sys::is_culib_present() } {
        return Err(Problem::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there; this function needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| failed("cuDriverGetVersion", e))?;
    if version < oldest_driver() {
        return Err(Problem::DriverTooOld(version));
    }
    cu::init().map_err(|e| failed("cuInit", e))?;
    match cu::device::get_count().map_err(|e| failed("cuDeviceGetCount", e))? {
        ..=0 => Err(Problem::NoDevice),
        count => Ok(count as usize),
    }
}

/// The primary context of a GPU, which libraries use as well.
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

impl Context {
    pub fn open(ordinal: usize) -> Result<Self> {
        let count = probe()?;
        if ordinal >= count {
            bail!("GPU {ordinal}: this machine shows {count}, numbered from 0");
        }
        let device = cu::device::get(ordinal as i32).map_err(|e| message("cuDeviceGet", e))?;
        // SAFETY: the device is one the driver gave us.
        let raw =
            unsafe { cu::primary_ctx::retain(device) }.map_err(|e| message("cuDevicePrimaryCtxRetain", e))?;
        let context = Context { device, raw };
        context.bind()?;
        Ok(context)
    }

    /// Makes it the current one of this thread, which may have several GPUs.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { cu::ctx::set_current(self.raw) }.map_err(|e| message("cuCtxSetCurrent", e))
    }

    pub fn info(&self) -> Result<DeviceInfo> {
        let attribute = |attribute: Attribute| {
            // SAFETY: the device is one the driver gave us.
            let value = unsafe { cu::device::get_attribute(self.device, attribute) };
            value.map_err(|e| message(&format!("{attribute:?}"), e))
        };
        // SAFETY: as above.
        let memory =
            unsafe { cu::device::total_mem(self.device) }.map_err(|e| message("cuDeviceTotalMem", e))?;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(DeviceInfo {
            name: cu::device::get_name(self.device).map_err(|e| message("cuDeviceGetName", e))?,
            capability: (major as u32, minor as u32),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            memory_bytes: memory,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            emulated: false,
        })
    }

    pub fn pci_bus_id(&self) -> Result<String> {
        let mut text: [c_char; 32] = [0; 32];
        // SAFETY: the driver writes at most 32 characters, the last of them zero.
        let got = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, self.device) };
        got.result().map_err(|e| message("cuDeviceGetPCIBusId", e))?;
        // SAFETY: see above.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) };
        Ok(text.to_str().map_err(|_| anyhow!("a PCI bus id that is no text"))?.to_string())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once.
        let _ = unsafe { cu::primary_ctx::release(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_one_line_that_says_what_to_do() {
        assert_eq!(
            Problem::DriverTooOld(12040).to_string(),
            format!(
                "the NVIDIA driver is for CUDA 12.4; expected {}.{} or newer; update the driver",
                oldest_driver() / 1000,
                oldest_driver() % 1000 / 10
            )
        );
        assert!(Problem::NoDriver.to_string().ends_with("install NVIDIA's driver"));
    }
}
