//! The driver for real GPUs: NVIDIA's driver API, loaded when it is first needed, so that one program starts on any machine.
//!
//! All work goes into one stream, in the order it is queued. Uploads go there too, by way of pinned memory, rather than into
//! a stream of their own: what they overwrite may be read by kernels still queued, so that a second stream would wait for
//! the first one anyway, and a batch of tokens takes some ten microseconds of a step.

mod context;
mod cublaslt;
mod functions;
mod staging;
mod stream;
mod tensor_map;

pub use context::{Problem, probe};

use super::driver::{DeviceInfo, Driver};
use super::fatbins::{FATBINS, Fatbin};
use super::kernel::{Arg, KernelSpec, Launch, Launcher};
use super::matmul_library::MatmulLibrary;
use super::nvml::Monitor;
use super::tensor_map::{TensorMap, TiledMatrix};
use crate::libraries::Missing;
use crate::ops::Place;
use crate::tensor::Dtype;
use anyhow::{Context as _, Result, anyhow, bail};
use context::Context;
use cublaslt::Cublaslt;
use cudarc::driver::result::DriverError;
use cudarc::driver::{result as cu, sys};
use functions::Functions;
use staging::Staging;
use std::ffi::c_void;
use std::rc::Rc;
use stream::{Event, Stream};

/// One GPU. Fields are released from top to bottom, the context last.
pub struct Nvidia {
    info: DeviceInfo,
    functions: Functions,
    matmul_library: Option<Cublaslt>,
    /// Why there is none, once it was looked for.
    no_matmul_library: Option<Missing>,
    /// Opened when first asked.
    monitor: Option<Monitor>,
    staging: Staging,
    timers: [Event; 2],
    memory: Vec<u64>,
    stream: Rc<Stream>,
    /// For the error of a kernel, which surfaces only later.
    last_launch: Option<(&'static KernelSpec, Launch)>,
    context: Context,
}

impl Nvidia {
    /// Opens GPU number `ordinal`, of those that `CUDA_VISIBLE_DEVICES` shows, for kernels of `dtype`.
    ///
    /// # Errors
    /// One line: no driver, too old a driver, no such GPU, no kernels in this program.
    pub fn open(ordinal: usize, dtype: Dtype) -> Result<Self> {
        Self::with_fatbins(FATBINS, ordinal, dtype)
    }

    /// With other kernels than the program's.
    ///
    /// # Errors
    /// As [`Nvidia::open`].
    pub fn with_fatbins(fatbins: &'static [Fatbin], ordinal: usize, dtype: Dtype) -> Result<Self> {
        let context = Context::open(ordinal)?;
        let info = context.info()?;
        let functions = Functions::new(fatbins, dtype, (ordinal, &info))?;
        let stream = Rc::new(Stream::new()?);
        Ok(Nvidia {
            info,
            functions,
            matmul_library: None,
            no_matmul_library: None,
            monitor: None,
            staging: Staging::new()?,
            timers: [Event::timer()?, Event::timer()?],
            memory: Vec::new(),
            stream,
            last_launch: None,
            context,
        })
    }

    /// Where the GPU sits, `00000000:65:00.0`: its name for NVML.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn pci_bus_id(&self) -> Result<String> {
        self.context.pci_bus_id()
    }

    /// An error that a call reports may be that of any kernel queued before it.
    fn blame(&self, what: &str, error: DriverError) -> anyhow::Error {
        use sys::CUresult::{CUDA_ERROR_ILLEGAL_INSTRUCTION, CUDA_ERROR_LAUNCH_FAILED};
        let hint = match error.0 {
            // `__trap` is one or the other.
            CUDA_ERROR_LAUNCH_FAILED | CUDA_ERROR_ILLEGAL_INSTRUCTION => {
                " (kernels end themselves so when one waits longer than about 10 s for a barrier in shared memory: \
                 BARRIER_PATIENCE_NS in kernels/hopper.cuh)"
            }
            _ => "",
        };
        let error = message(what, error);
        match self.last_launch {
            Some((kernel, launch)) => anyhow!(
                "{error}{hint}; the last kernel queued was {}; CUDA_LAUNCH_BLOCKING=1 finds the one at fault",
                describe(kernel, launch)
            ),
            None => error,
        }
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.blame("waiting for the GPU", e))
    }

    /// Waits for all queued work and releases all memory. Context, kernels and pinned buffers stay, for who allocates next: tests, of
    /// which a program has hundreds.
    ///
    /// # Errors
    /// If a kernel failed; then nothing is released before this is dropped.
    pub fn release_memory(&mut self) -> Result<()> {
        self.context.bind()?;
        self.wait()?;
        self.last_launch = None;
        self.free_all();
        Ok(())
    }

    /// Frees what nothing on the GPU uses any more.
    fn free_all(&mut self) {
        for address in self.memory.drain(..) {
            // SAFETY: allocated by `allocate`, freed once, and no work is queued.
            let _ = unsafe { cu::free_sync(address) };
        }
    }
}

// SAFETY: CUDA's handles belong to a context, not to a thread, and every method first makes this context the calling thread's. The
// reference-counted stream is shared by fields of one `Nvidia` alone, which move together.
unsafe impl Send for Nvidia {}

impl Drop for Nvidia {
    /// Nothing may be released that the GPU still works on. Errors were reported where they happened, or the run is over.
    fn drop(&mut self) {
        let _ = self.context.bind();
        let _ = self.stream.synchronize();
        self.free_all();
    }
}

/// `layernorm_forward (layernorm.cu) <<<[256, 1, 1], 128, 0 bytes>>>`
fn describe(kernel: &KernelSpec, launch: Launch) -> String {
    let Launch { grid, threads, shared_bytes } = launch;
    format!("{} ({}) <<<{grid:?}, {threads}, {shared_bytes} bytes>>>", kernel.name, kernel.file)
}

/// `cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory)`
fn message(what: &str, error: DriverError) -> anyhow::Error {
    let explained = error.error_string().map(|s| s.to_string_lossy().into_owned());
    anyhow!("{what}: {:?} ({})", error.0, explained.unwrap_or_else(|_| "unknown error".to_string()))
}

impl Launcher for Nvidia {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()> {
        self.context.bind()?;
        let function = self.functions.get(kernel, launch.shared_bytes, args).with_context(|| kernel.name)?;
        let mut values = Values::new(args);
        let (grid, block) = (launch.grid.into(), (launch.threads, 1, 1));
        // SAFETY: the function is loaded; `Functions::get` has compared number and sizes of its parameters with `args`, and
        // the driver copies the values before it returns. That addresses are good is up to the op layer.
        let launched = unsafe {
            cu::launch_kernel(
                function,
                grid,
                block,
                launch.shared_bytes,
                self.stream.raw(),
                values.pointers(),
            )
        };
        launched.map_err(|e| self.blame(&format!("launching {}", describe(kernel, launch)), e))?;
        self.last_launch = Some((kernel, launch));
        Ok(())
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        self.context.bind()?;
        tensor_map::encode(matrix)
    }
}

/// Addresses of argument values, on the stack: launches are frequent.
struct Values {
    pointers: [*mut c_void; Values::MOST],
    count: usize,
}

impl Values {
    const MOST: usize = 48;

    fn new(args: &[Arg]) -> Self {
        assert!(args.len() <= Self::MOST, "a kernel of {} arguments", args.len());
        let mut pointers = [std::ptr::null_mut(); Self::MOST];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = arg.value.cast_mut();
        }
        Values { pointers, count: args.len() }
    }

    fn pointers(&mut self) -> &mut [*mut c_void] {
        &mut self.pointers[..self.count]
    }
}

impl Driver for Nvidia {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.context.bind()?;
        // SAFETY: no preconditions beyond a context. The driver refuses to allocate nothing.
        let address = match unsafe { cu::malloc_sync(bytes.max(256)) } {
            Ok(address) => address,
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = cu::mem_get_info().map_err(|e| message("cuMemGetInfo", e))?;
                bail!("out of GPU memory: {} of {} MiB are free", free >> 20, total >> 20);
            }
            Err(e) => return Err(self.blame("cuMemAlloc", e)),
        };
        self.memory.push(address);
        self.clear(address, bytes)?;
        Ok(address)
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        self.context.bind()?;
        let uploaded = self.staging.upload(&self.stream, dst, src);
        uploaded.map_err(|e| self.blame("copying to the GPU", e))
    }

    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()> {
        self.context.bind()?;
        let downloaded = self.staging.download(&self.stream, dst, src);
        downloaded.map_err(|e| self.blame("copying from the GPU", e))
    }

    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        self.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as for `set_bytes`.
        let copied = unsafe { cu::memcpy_dtod_async(dst, src, bytes, self.stream.raw()) };
        copied.map_err(|e| self.blame("copying on the GPU", e))
    }

    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()> {
        self.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the range; a bad one is the driver's error or the GPU's.
        let set = unsafe { cu::memset_d8_async(dst, value, bytes, self.stream.raw()) };
        set.map_err(|e| self.blame("setting memory", e))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.context.bind()?;
        self.wait()
    }

    /// Nothing is checked here: a kernel that touches what is lent is found on the emulated device.
    fn lend(&mut self, address: u64, _bytes: usize) -> (u64, Place) {
        (address, Place::Gpu { stream: self.stream.raw() as usize })
    }

    fn take_back(&mut self, _address: u64, _bytes: usize) {}

    fn start_timer(&mut self) -> Result<()> {
        self.context.bind()?;
        self.timers[0].record(&self.stream).map_err(|e| message("cuEventRecord", e))
    }

    fn stop_timer(&mut self) -> Result<Option<f32>> {
        self.context.bind()?;
        let timed = self.timers[1].record(&self.stream).and_then(|()| self.timers[1].since(&self.timers[0]));
        timed.map(Some).map_err(|e| self.blame("timing", e))
    }

    fn state(&mut self) -> Result<String> {
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::open(&self.pci_bus_id()?)?);
        }
        Ok(self.monitor.as_ref().map(|monitor| monitor.state().to_string()).unwrap_or_default())
    }

    fn matmul_library(&mut self) -> Result<&mut dyn MatmulLibrary> {
        self.context.bind()?;
        if let Some(why) = &self.no_matmul_library {
            return Err(why.clone().into());
        }
        if self.matmul_library.is_none() {
            let opened = Cublaslt::open(self.stream.clone())
                .map_err(|why| why.downcast().unwrap_or_else(|why| Missing::Unusable(format!("{why:#}"))));
            self.matmul_library = Some(opened.inspect_err(|why| self.no_matmul_library = Some(why.clone()))?);
        }
        Ok(self.matmul_library.as_mut().expect("opened above"))
    }
}
