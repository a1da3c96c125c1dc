//! Kernels on a GPU: a file is loaded, and a function looked up, on its first launch.
//!
//! Modules are cudarc's raw handles: its safe loader comes with NVRTC and copies each image to
//! memory that is not aligned as CUDA's loader reads it.

use crate::device::cuda::driver::DeviceInfo;
use crate::device::cuda::fatbins::{self, Fatbin, WHY_NONE};
use crate::device::cuda::kernel::{Arg, KernelSpec};
use crate::libraries::cuda_error;
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail};
use cudarc::driver::{result as cu, sys};
use std::collections::HashMap;
use std::ffi::CString;

/// Dynamic shared memory that a kernel may use without asking for it.
const FREE_SHARED_BYTES: u32 = 48 << 10;

pub struct Functions {
    fatbins: &'static [Fatbin],
    dtype: Dtype,
    /// The GPU's name in messages: `GPU 0 (NVIDIA H200, sm_90)`.
    gpu: String,
    modules: HashMap<&'static str, sys::CUmodule>,
    /// Keyed by the address of the kernel's description.
    functions: HashMap<usize, Function>,
}

struct Function {
    raw: sys::CUfunction,
    /// Dynamic shared memory that the driver allows so far.
    shared_bytes: u32,
    /// Whether the driver has been told to prefer shared memory over L1.
    has_shared: bool,
}

/// A small file that every run needs.
const FIRST_FILE: &str = "reduce.cu";

impl Functions {
    /// # Errors
    /// If this program has no kernels, none for this GPU, or the GPU is too old for them.
    pub fn new(
        fatbins: &'static [Fatbin],
        dtype: Dtype,
        (ordinal, info): (usize, &DeviceInfo),
    ) -> Result<Self> {
        let (major, minor) = info.capability;
        let gpu = format!("GPU {ordinal} ({}, sm_{major}{minor})", info.name);
        if major < 8 {
            bail!("{gpu} has compute capability {major}.{minor}; expected 8.0 or newer");
        }
        if fatbins.is_empty() {
            bail!(
                "this program has no kernels for GPUs ({WHY_NONE}); `make train_gpt2cu` builds one that has"
            );
        }
        let mut functions =
            Functions { fatbins, dtype, gpu, modules: HashMap::new(), functions: HashMap::new() };
        // Fails before anything is set up for kernels that this GPU cannot run. Only tests lack
        // this file.
        if fatbins::find(fatbins, FIRST_FILE, dtype).is_some() {
            functions.module(FIRST_FILE)?;
        }
        Ok(functions)
    }

    /// Returns the function, ready for `shared_bytes` of dynamic shared memory.
    pub fn get(
        &mut self,
        kernel: &'static KernelSpec,
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<sys::CUfunction> {
        let key = std::ptr::from_ref(kernel) as usize;
        if !self.functions.contains_key(&key) {
            let raw = self.load(kernel)?;
            check_parameters(raw, args)?;
            self.functions.insert(key, Function { raw, shared_bytes: FREE_SHARED_BYTES, has_shared: false });
        }
        let function = self.functions.get_mut(&key).expect("just inserted");
        let set = |attribute, value: u32| {
            // SAFETY: the function belongs to a module that stays loaded until `self` is dropped.
            unsafe { cu::function::set_function_attribute(function.raw, attribute, value as i32) }
                .map_err(|e| cuda_error(&format!("{shared_bytes} bytes of shared memory"), e))
        };
        if shared_bytes > 0 && !function.has_shared {
            // The largest share of L1, so that as many blocks fit an SM as the kernel counts on.
            set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
            function.has_shared = true;
        }
        if shared_bytes > function.shared_bytes {
            set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.raw)
    }

    fn load(&mut self, kernel: &'static KernelSpec) -> Result<sys::CUfunction> {
        let module = self.module(kernel.file)?;
        let name = CString::new(kernel.name).expect("a name without zeros");
        // SAFETY: the module stays loaded until `self` is dropped.
        unsafe { cu::module::get_function(module, name) }
            .map_err(|e| cuda_error(&format!("looking for it in {}", kernel.file), e))
    }

    fn module(&mut self, file: &'static str) -> Result<sys::CUmodule> {
        if let Some(module) = self.modules.get(file) {
            return Ok(*module);
        }
        let module = self.load_module(file)?;
        self.modules.insert(file, module);
        Ok(module)
    }

    fn load_module(&self, file: &str) -> Result<sys::CUmodule> {
        let fatbin = fatbins::find(self.fatbins, file, self.dtype)
            .with_context(|| format!("{file} was not compiled for {}", self.dtype))?;
        // SAFETY: the image is what nvcc wrote, aligned to 64 bytes, and lives as long as the
        // program.
        unsafe { cu::module::load_data(fatbin.image.as_ptr().cast()) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                let gpu = &self.gpu;
                anyhow::anyhow!(
                    "{file} in this program was not compiled for {gpu}; build again without KERNEL_ARCHES, or with this one"
                )
            }
            _ => cuda_error(&format!("loading {file}"), e),
        })
    }
}

/// Compares the sizes of the compiled kernel's parameters with those of the arguments: a launch
/// reads as many bytes from each argument's address as the kernel says. Only as many parameters are
/// queried as there are arguments: the driver logs an error for a query past the last one, and only
/// CUDA 13.2 and newer report their number. The emulated device checks the number.
fn check_parameters(function: sys::CUfunction, args: &[Arg]) -> Result<()> {
    let size = |i| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function's module is loaded, and the driver writes to two numbers that live
        // here.
        let found = unsafe { sys::cuFuncGetParamInfo(function, i, &mut offset, &mut size) };
        found.result().is_ok().then_some(size)
    };
    let sizes: Vec<usize> = (0..args.len()).map_while(size).collect();
    let given: Vec<usize> = args.iter().map(|arg| arg.bytes).collect();
    if sizes != given {
        bail!("its parameters have {sizes:?} bytes, the arguments {given:?}");
    }
    Ok(())
}

impl Drop for Functions {
    fn drop(&mut self) {
        for (_, module) in self.modules.drain() {
            // SAFETY: the module was loaded once and is unloaded once. `Nvidia::drop` has waited
            // for all kernels and made the context current.
            let _ = unsafe { cu::module::unload(module) };
        }
    }
}
