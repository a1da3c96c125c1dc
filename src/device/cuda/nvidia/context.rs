//! From a machine that may or may not have a GPU to a context on one.

use crate::device::cuda::driver::DeviceInfo;
use crate::device::cuda::fatbins::NVCC_VERSION;
use crate::libraries::{self, cuda_error};
use anyhow::{Result, anyhow, bail};
use cudarc::driver::{CudaContext, DriverError, result as cu, sys};
use std::ffi::{CStr, c_char};
use std::fmt;
use std::sync::Arc;
use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR;
use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR;
use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MAX_SHARED_BYTES;
use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as SM_COUNT;

/// Why no GPU can be used. Each is one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    NoDriver,
    /// The CUDA version that the driver supports, in CUDA's own encoding: 12040 is 12.4.
    DriverTooOld(i32),
    NoDevice,
    /// A toolkit's link-time stub was loaded instead of the driver.
    Stub,
    Other(String),
}

impl std::error::Error for Problem {}

impl Problem {
    /// The same for an overview, in which a machine without a driver is nothing special.
    pub fn brief(&self) -> String {
        if *self == Problem::NoDriver { "not found".to_owned() } else { self.to_string() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoDriver => {
                write!(f, "no NVIDIA driver: libcuda.so.1 was not found; install NVIDIA's driver")?
            }
            Problem::DriverTooOld(version) => {
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
                "libcuda of a toolkit's stubs folder was loaded{}, which is not a driver; remove .../stubs from LD_LIBRARY_PATH",
                place()
            )?,
            Problem::Other(why) => write!(f, "the NVIDIA driver does not start: {why}")?,
        }
        Ok(())
    }
}

/// `13.0`, for CUDA's 13000.
fn show(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The path of the loaded libcuda, as ` (/usr/lib/libcuda.so.1)`.
fn place() -> String {
    libraries::loaded_from("libcuda.so").map(|path| format!(" ({})", path.display())).unwrap_or_default()
}

/// 12.8 is the first to have all functions called here. Kernels compiled by a toolkit run on
/// drivers from the first of its major version on.
fn oldest_driver() -> i32 {
    i32::max(12080, NVCC_VERSION.0 as i32 * 1000)
}

fn failed(what: &str, e: DriverError) -> Problem {
    match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Problem::NoDevice,
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Problem::Stub,
        _ => Problem::Other(cuda_error(what, e).to_string()),
    }
}

/// Loads the driver. Returns the CUDA version that it supports, in CUDA's own encoding.
fn driver_version() -> Result<i32, Problem> {
    // SAFETY: this runs the initializers of NVIDIA's libcuda, which any program may load. Every
    // other function of cudarc panics if the library is missing, so none is called before this
    // returns true.
    if !unsafe { sys::is_culib_present() } {
        return Err(Problem::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is present, and this function may be called before `cuInit`.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| failed("cuDriverGetVersion", e))?;
    Ok(version)
}

/// Describes the driver: `for CUDA 13.0 (/usr/lib/libcuda.so.1)`.
///
/// # Errors
/// If there is none.
pub fn driver() -> Result<String, Problem> {
    driver_version().map(|version| format!("for CUDA {}{}", show(version), place()))
}

/// Returns the number of GPUs, at least one.
///
/// # Errors
/// If there is no GPU, or none that can be used.
pub fn probe() -> Result<usize, Problem> {
    let version = driver_version()?;
    if version < oldest_driver() {
        return Err(Problem::DriverTooOld(version));
    }
    cu::init().map_err(|e| failed("cuInit", e))?;
    match cu::device::get_count().map_err(|e| failed("cuDeviceGetCount", e))? {
        ..=0 => Err(Problem::NoDevice),
        count => Ok(count as usize),
    }
}

/// Returns the name of each GPU with its capability: `NVIDIA H100 80GB HBM3 (sm_90)`.
///
/// # Errors
/// As [`probe`].
pub fn gpus() -> Result<Vec<String>, Problem> {
    let describe = |ordinal| {
        let device = cu::device::get(ordinal)?;
        // SAFETY: the driver is initialized, and the device is one of those it counted.
        let [major, minor] = [MAJOR, MINOR].map(|part| unsafe { cu::device::get_attribute(device, part) });
        Ok(format!("{} (sm_{}{})", cu::device::get_name(device)?, major?, minor?))
    };
    (0..probe()? as i32).map(describe).collect::<Result<_, _>>().map_err(|e| failed("cuDeviceGetName", e))
}

/// Opens the primary context of a GPU, which CUDA's libraries use as well, and makes it current.
pub fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    let count = probe()?;
    if ordinal >= count {
        bail!("GPU {ordinal}: this machine shows {count}, numbered from 0");
    }
    let context = CudaContext::new(ordinal).map_err(|e| cuda_error(&format!("opening GPU {ordinal}"), e))?;
    // SAFETY: all work goes into one stream, so no two streams need to be ordered. Tracking would
    // add events and waits to the memory that cudarc allocates.
    unsafe { context.disable_event_tracking() };
    Ok(context)
}

pub fn info(context: &CudaContext) -> Result<DeviceInfo> {
    let failed = |what: &'static str| move |e| cuda_error(what, e);
    let attribute =
        |name| context.attribute(name).map_err(|e| cuda_error(&format!("cuDeviceGetAttribute({name:?})"), e));
    let (major, minor) = context.compute_capability().map_err(failed("cuDeviceGetAttribute"))?;
    Ok(DeviceInfo {
        name: context.name().map_err(failed("cuDeviceGetName"))?,
        capability: (major as u32, minor as u32),
        sm_count: attribute(SM_COUNT)? as usize,
        memory_bytes: context.total_mem().map_err(failed("cuDeviceTotalMem"))?,
        shared_bytes: attribute(MAX_SHARED_BYTES)? as usize,
        emulated: false,
    })
}

pub fn pci_bus_id(context: &CudaContext) -> Result<String> {
    let mut text: [c_char; 32] = [0; 32];
    // SAFETY: the driver writes at most `text.len()` characters, the last of which is zero.
    let got = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, context.cu_device()) };
    got.result().map_err(|e| cuda_error("cuDeviceGetPCIBusId", e))?;
    // SAFETY: the array held zeros, and the driver terminates what it writes with another.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    Ok(text.to_str().map_err(|_| anyhow!("the PCI bus id is not UTF-8"))?.to_string())
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
