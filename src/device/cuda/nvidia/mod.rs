//! The driver for real GPUs: NVIDIA's driver API through cudarc, loaded on first use, so that one
//! program starts on any machine.
//!
//! All work goes into one stream, in the order it is queued. Uploads go there too, through pinned
//! memory, rather than into a stream of their own: kernels still queued may read what an upload
//! overwrites, so a second stream would wait for the first one anyway, and a batch of tokens takes
//! some ten microseconds of a step.

mod context;
mod cublaslt;
mod functions;
mod staging;
mod tensor_map;

pub use context::{Problem, driver, gpus, probe};

use super::driver::{DeviceInfo, Driver, Graph};
use super::fatbins::{FATBINS, Fatbin};
use super::kernel::{Arg, KernelSpec, Launch, Launcher};
use super::matmul_library::MatmulLibrary;
use super::nvml::Monitor;
use super::tensor_map::{TensorMap, TiledMatrix};
use crate::libraries::{Missing, cuda_error};
use crate::ops::{GpuMemory, Place};
use crate::tensor::Dtype;
use anyhow::{Context as _, Result, anyhow, bail};
use cublaslt::Cublaslt;
use cudarc::driver::{CudaEvent, CudaGraph, CudaStream, DriverError, result as cu, sys};
use functions::Functions;
use staging::Staging;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

/// One GPU. Fields are released from top to bottom: first what needs the context to be current,
/// then cudarc's handles, each of which keeps the context alive.
pub struct Nvidia {
    info: DeviceInfo,
    graphs: Vec<CudaGraph>,
    functions: Functions,
    matmul_library: Option<Cublaslt>,
    /// The reason there is no library, once it has been looked for.
    no_matmul_library: Option<Missing>,
    /// Opened on first use; why it cannot be, once that was tried.
    monitor: Option<Result<Monitor, String>>,
    staging: Staging,
    timers: [CudaEvent; 2],
    stamps: Vec<CudaEvent>,
    memory: Vec<u64>,
    stream: Arc<CudaStream>,
    /// Named in the error of a kernel, which surfaces only later.
    last_launch: Option<(&'static KernelSpec, Launch)>,
}

/// Describes cuBLASLt: `13.0.2 from /usr/local/cuda/lib64/libcublasLt.so.13`, or why there is none.
pub fn cublaslt() -> String {
    cublaslt::load().map_or_else(|missing| missing.brief().to_owned(), |found| found.to_string())
}

impl Nvidia {
    /// Opens GPU number `ordinal` of those that `CUDA_VISIBLE_DEVICES` shows, for kernels of
    /// `dtype`.
    ///
    /// # Errors
    /// One line: no driver, too old a driver, no such GPU, no kernels in this program.
    pub fn open(ordinal: usize, dtype: Dtype) -> Result<Self> {
        Self::with_fatbins(FATBINS, ordinal, dtype)
    }

    /// Opens a GPU with other kernels than the program's.
    ///
    /// # Errors
    /// As [`Nvidia::open`].
    pub fn with_fatbins(fatbins: &'static [Fatbin], ordinal: usize, dtype: Dtype) -> Result<Self> {
        let context = context::open(ordinal)?;
        let info = context::info(&context)?;
        let functions = Functions::new(fatbins, dtype, (ordinal, &info))?;
        // Not ordered against the default stream, which nothing uses.
        let stream = context.new_stream().map_err(|e| cuda_error("cuStreamCreate", e))?;
        Ok(Nvidia {
            info,
            graphs: Vec::new(),
            functions,
            matmul_library: None,
            no_matmul_library: None,
            monitor: None,
            staging: Staging::new(&context)?,
            timers: [new_timer(&stream)?, new_timer(&stream)?],
            stamps: Vec::new(),
            memory: Vec::new(),
            stream,
            last_launch: None,
        })
    }

    /// Returns the GPU's PCI address, which names it for NVML: `00000000:65:00.0`.
    pub fn pci_bus_id(&self) -> Result<String> {
        context::pci_bus_id(self.stream.context())
    }

    /// Returns the monitor, which is looked for once.
    fn monitor(&mut self) -> Result<&Monitor> {
        if self.monitor.is_none() {
            let opened = self.pci_bus_id().and_then(|id| Monitor::open(&id));
            self.monitor = Some(opened.map_err(|why| format!("{why:#}")));
        }
        let opened = self.monitor.as_ref().expect("opened above");
        opened.as_ref().map_err(|why| anyhow!("{why}"))
    }

    /// Makes this GPU's context the calling thread's, which may work with several GPUs.
    fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(|e| cuda_error("cuCtxSetCurrent", e))
    }

    /// Describes an error. CUDA reports asynchronous errors late: this one may belong to any kernel
    /// queued earlier.
    fn blame(&self, what: &str, error: DriverError) -> anyhow::Error {
        use sys::CUresult::{CUDA_ERROR_ILLEGAL_INSTRUCTION, CUDA_ERROR_LAUNCH_FAILED};
        let hint = match error.0 {
            // `__trap` shows as one or the other.
            CUDA_ERROR_LAUNCH_FAILED | CUDA_ERROR_ILLEGAL_INSTRUCTION => {
                " (kernels end themselves so when one waits longer than about 10 s for a barrier in shared memory: \
                 BARRIER_PATIENCE_NS in kernels/hopper.cuh)"
            }
            _ => "",
        };
        let error = cuda_error(what, error);
        match self.last_launch {
            Some((kernel, launch)) => {
                // A graph is a single launch.
                let apart = if self.graphs.is_empty() { "" } else { " with --cuda-graphs 0" };
                anyhow!(
                    "{error}{hint}; the last kernel queued was {}; CUDA_LAUNCH_BLOCKING=1{apart} finds the one at fault",
                    describe(kernel, launch)
                )
            }
            None => error,
        }
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.blame("waiting for the GPU", e))
    }

    /// Waits for all queued work and releases all memory. Context, kernels and pinned buffers stay
    /// for the next of a test program's hundreds of cases.
    ///
    /// # Errors
    /// If a kernel failed. Then the memory is released only when this is dropped.
    #[cfg(any(test, feature = "testing"))]
    pub fn release_memory(&mut self) -> Result<()> {
        self.bind()?;
        self.wait()?;
        self.last_launch = None;
        self.graphs.clear();
        self.free_all();
        Ok(())
    }

    /// Frees all memory. Nothing on the GPU may still use it.
    fn free_all(&mut self) {
        for address in self.memory.drain(..) {
            // SAFETY: `allocate` allocated it, `drain` frees it once, and the callers have waited
            // for all work.
            let _ = unsafe { cu::free_sync(address) };
        }
    }
}

// SAFETY: the raw handles in it (modules, functions, cuBLASLt's) belong to a context, not to a
// thread, and every method that uses one first makes that context the calling thread's.
unsafe impl Send for Nvidia {}

impl Drop for Nvidia {
    /// Waits before releasing anything that the GPU may still use. Errors are ignored: either they
    /// were reported where they happened, or the run is over.
    fn drop(&mut self) {
        let _ = self.bind();
        let _ = self.stream.synchronize();
        self.free_all();
    }
}

/// An event that measures time in a stream.
fn new_timer(stream: &CudaStream) -> Result<CudaEvent> {
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    stream.context().new_event(flags).map_err(|e| cuda_error("cuEventCreate", e))
}

/// The attribute of a programmatic launch. After anything but a kernel that allows it, it changes
/// nothing.
fn launched_early() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

/// `layernorm_forward (layernorm.cu) <<<[256, 1, 1], 128, 0 bytes>>>`
fn describe(kernel: &KernelSpec, launch: Launch) -> String {
    let Launch { grid, threads, shared_bytes, .. } = launch;
    format!("{} ({}) <<<{grid:?}, {threads}, {shared_bytes} bytes>>>", kernel.name, kernel.file)
}

impl Launcher for Nvidia {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let function = self.functions.get(kernel, launch.shared_bytes, args).with_context(|| kernel.name)?;
        let mut values = Values::new(args);
        let [x, y, z] = launch.grid;
        let mut early = launched_early();
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &mut early,
            numAttrs: u32::from(launch.programmatic && self.info.capability >= (9, 0)),
        };
        // SAFETY: the function is loaded. `Functions::get` has compared number and sizes of its
        // parameters with `args`, and the driver copies configuration and values before it returns.
        // The op layer vouches for the device addresses among them.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, function, values.pointers().as_mut_ptr(), std::ptr::null_mut())
        };
        launched.result().map_err(|e| self.blame(&format!("launching {}", describe(kernel, launch)), e))?;
        self.last_launch = Some((kernel, launch));
        Ok(())
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        self.bind()?;
        tensor_map::encode(matrix)
    }
}

/// Addresses of argument values, kept on the stack because launches are frequent.
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
        self.bind()?;
        // The driver refuses to allocate zero bytes.
        // SAFETY: a context is current, which is all that the call requires.
        let address = match unsafe { cu::malloc_sync(bytes.max(256)) } {
            Ok(address) => address,
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let memory = self.stream.context().mem_get_info();
                let (free, total) = memory.map_err(|e| cuda_error("cuMemGetInfo", e))?;
                bail!("out of GPU memory: {} of {} MiB are free", free >> 20, total >> 20);
            }
            Err(e) => return Err(self.blame("cuMemAlloc", e)),
        };
        self.memory.push(address);
        self.clear(address, bytes)?;
        Ok(address)
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        self.bind()?;
        let uploaded = self.staging.upload(&self.stream, dst, src);
        uploaded.map_err(|e| self.blame("copying to the GPU", e))
    }

    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()> {
        self.bind()?;
        let downloaded = self.staging.download(&self.stream, dst, src);
        downloaded.map_err(|e| self.blame("copying from the GPU", e))
    }

    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for both ranges and that they do not overlap. The driver or
        // the GPU reports a bad address as an error.
        let copied = unsafe { cu::memcpy_dtod_async(dst, src, bytes, self.stream.cu_stream()) };
        copied.map_err(|e| self.blame("copying on the GPU", e))
    }

    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the range. The driver or the GPU reports a bad one as an
        // error.
        let set = unsafe { cu::memset_d8_async(dst, value, bytes, self.stream.cu_stream()) };
        set.map_err(|e| self.blame("setting memory", e))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.bind()?;
        self.wait()
    }

    /// Threads of the communicator may call the driver meanwhile: only this one is held to what a
    /// graph can have.
    fn begin_capture(&mut self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| self.blame("starting a graph", e))
    }

    fn end_capture(&mut self) -> Result<Graph> {
        let captured = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = captured.map_err(|e| self.blame("making a graph", e))?;
        self.graphs.push(graph.context("no graph was begun")?);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn launch_graph(&mut self, graph: Graph) -> Result<()> {
        self.graphs[graph.0].launch().map_err(|e| self.blame("launching a graph", e))
    }

    /// Checks nothing: the emulated device finds kernels that touch lent memory.
    fn lend(&mut self, address: u64, _bytes: usize) -> (u64, Place) {
        (address, Place::Gpu { stream: self.stream.cu_stream() as usize })
    }

    fn reclaim(&mut self, _address: u64, _bytes: usize) {}

    fn start_timer(&mut self) -> Result<()> {
        self.bind()?;
        self.timers[0].record(&self.stream).map_err(|e| cuda_error("cuEventRecord", e))
    }

    fn stop_timer(&mut self) -> Result<Option<f32>> {
        self.bind()?;
        let [start, end] = &self.timers;
        let timed = end.record(&self.stream).and_then(|()| start.elapsed_ms(end));
        timed.map(Some).map_err(|e| self.blame("timing", e))
    }

    fn stamp(&mut self) -> Result<()> {
        self.bind()?;
        let stamp = new_timer(&self.stream)?;
        stamp.record(&self.stream).map_err(|e| cuda_error("cuEventRecord", e))?;
        self.stamps.push(stamp);
        Ok(())
    }

    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        self.bind()?;
        let stamps = std::mem::take(&mut self.stamps);
        let since_first = |stamp| stamps[0].elapsed_ms(stamp).map_err(|e| self.blame("timing", e));
        stamps.iter().map(|stamp| Ok(Duration::from_secs_f64(f64::from(since_first(stamp)?) / 1e3))).collect()
    }

    /// Starts or stops what `nsys profile --capture-range=cudaProfilerApi` and
    /// `ncu --profile-from-start off` wait for.
    fn record_for_profiler(&mut self, on: bool) -> Result<()> {
        self.bind()?;
        // SAFETY: a context is current, which is all that the calls require.
        let (name, result) = match on {
            true => ("cuProfilerStart", unsafe { sys::cuProfilerStart() }),
            false => ("cuProfilerStop", unsafe { sys::cuProfilerStop() }),
        };
        result.result().map_err(|e| cuda_error(name, e))
    }

    fn state(&mut self) -> Result<String> {
        Ok(self.monitor()?.state().to_string())
    }

    fn memory(&mut self) -> Option<GpuMemory> {
        self.monitor().ok()?.memory()
    }

    fn matmul_library(&mut self) -> Result<&mut dyn MatmulLibrary> {
        self.bind()?;
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
