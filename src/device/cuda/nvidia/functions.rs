//! Kernels on a GPU: files are loaded, and functions looked up, when they are first launched.

use super::message;
use crate::device::cuda::driver::DeviceInfo;
use crate::device::cuda::fatbins::{self, Fatbin, WHY_NONE};
use crate::device::cuda::kernel::{Arg, KernelSpec};
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail};
use cudarc::driver::{result as cu, sys};
use std::collections::HashMap;
use std::ffi::CString;

/// Dynamic shared memory that a kernel gets without asking.
const FREE_SHARED_BYTES: u32 = 48 << 10;

pub struct Functions {
    fatbins: &'static [Fatbin],
    dtype: Dtype,
    /// `sm_90`, for messages
    arch: String,
    modules: HashMap<&'static str, sys::CUmodule>,
    /// By the address of the kernel's description.
    functions: HashMap<usize, Function>,
}

struct Function {
    raw: sys::CUfunction,
    shared_bytes: u32,
}

impl Functions {
    /// # Errors
    /// If this program has no kernels, or the GPU is too old for them.
    pub fn new(fatbins: &'static [Fatbin], dtype: Dtype, info: &DeviceInfo) -> Result<Self> {
        let (major, minor) = info.capability;
        if major < 8 {
            bail!("{} has compute capability {major}.{minor}; expected 8.0 or newer", info.name);
        }
        if fatbins.is_empty() {
            bail!(
                "this program has no kernels for GPUs ({WHY_NONE}); `make train_gpt2cu` builds one that has"
            );
        }
        let arch = format!("sm_{major}{minor}");
        Ok(Functions { fatbins, dtype, arch, modules: HashMap::new(), functions: HashMap::new() })
    }

    /// The function, ready for so much dynamic shared memory.
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
            self.functions.insert(key, Function { raw, shared_bytes: FREE_SHARED_BYTES });
        }
        let function = self.functions.get_mut(&key).expect("just inserted");
        if shared_bytes > function.shared_bytes {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { cu::function::set_function_attribute(function.raw, most, shared_bytes as i32) }
                .map_err(|e| message(&format!("{shared_bytes} bytes of shared memory"), e))?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.raw)
    }

    fn load(&mut self, kernel: &'static KernelSpec) -> Result<sys::CUfunction> {
        let module = match self.modules.get(kernel.file) {
            Some(module) => *module,
            None => {
                let module = self.load_module(kernel.file)?;
                self.modules.insert(kernel.file, module);
                module
            }
        };
        let name = CString::new(kernel.name).expect("a name without zeros");
        // SAFETY: the module is loaded until `self` is dropped.
        unsafe { cu::module::get_function(module, name) }
            .map_err(|e| message(&format!("looking for it in {}", kernel.file), e))
    }

    fn load_module(&self, file: &str) -> Result<sys::CUmodule> {
        let fatbin = fatbins::find(self.fatbins, file, self.dtype)
            .with_context(|| format!("{file} was not compiled for {:?}", self.dtype))?;
        // SAFETY: an image that nvcc wrote, aligned, in memory for as long as the program runs.
        unsafe { cu::module::load_data(fatbin.image.as_ptr().cast()) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                let arch = &self.arch;
                anyhow::anyhow!(
                    "{file} was not compiled for {arch}; build again without KERNEL_ARCHES, or with this one"
                )
            }
            _ => message(&format!("loading {file}"), e),
        })
    }
}

/// A launch reads as many bytes from each argument's address as the compiled kernel says, so that must be what is there.
fn check_parameters(function: sys::CUfunction, args: &[Arg]) -> Result<()> {
    let mut sizes = Vec::new();
    let (mut offset, mut size) = (0, 0);
    // SAFETY: the function is loaded, and the driver writes the two numbers. It fails past the last parameter.
    while unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) }.result().is_ok() {
        sizes.push(size);
    }
    let given: Vec<usize> = args.iter().map(|arg| arg.bytes).collect();
    if sizes != given {
        bail!("its parameters have {sizes:?} bytes, the arguments {given:?}");
    }
    Ok(())
}

impl Drop for Functions {
    fn drop(&mut self) {
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded once, unloaded once, after `Nvidia::drop` has waited for all kernels.
            let _ = unsafe { cu::module::unload(module) };
        }
    }
}
