//! GPUs that are opened once per type for all cases of a test program: creating a context and
//! loading the kernels takes a second, and a program has hundreds of cases.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::time::Duration;
use warpsmith::device::cuda::driver::{Counts, DeviceInfo, Driver, Graph};
use warpsmith::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher};
use warpsmith::device::cuda::matmul_library::MatmulLibrary;
use warpsmith::device::cuda::nvidia::Nvidia;
use warpsmith::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use warpsmith::ops::Place;
use warpsmith::tensor::Dtype;

/// GPUs that no case is using. Statics are never dropped, so contexts last as long as the program.
static IDLE: Mutex<Vec<(Dtype, Nvidia)>> = Mutex::new(Vec::new());

/// A GPU for one case. When dropped, it releases its memory and becomes idle.
pub struct Gpu {
    dtype: Dtype,
    /// `None` only during the drop.
    nvidia: Option<Nvidia>,
}

/// Takes an idle GPU for kernels of `dtype`, or opens one with `open`.
pub fn take(dtype: Dtype, open: impl FnOnce() -> anyhow::Result<Nvidia>) -> anyhow::Result<Gpu> {
    let mut idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let found = idle.iter().position(|(of, _)| *of == dtype).map(|i| idle.swap_remove(i).1);
    drop(idle);
    let nvidia = found.map_or_else(open, Ok)?;
    Ok(Gpu { dtype, nvidia: Some(nvidia) })
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let Some(mut nvidia) = self.nvidia.take() else { return };
        // After a fault this context is unusable, and the next case reports that itself.
        if nvidia.release_memory().is_ok() {
            IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((self.dtype, nvidia));
        }
    }
}

impl Deref for Gpu {
    type Target = Nvidia;

    fn deref(&self) -> &Nvidia {
        self.nvidia.as_ref().expect("a GPU that is not dropped")
    }
}

impl DerefMut for Gpu {
    fn deref_mut(&mut self) -> &mut Nvidia {
        self.nvidia.as_mut().expect("a GPU that is not dropped")
    }
}

impl Launcher for Gpu {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> anyhow::Result<()> {
        self.deref_mut().launch(kernel, launch, args)
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> anyhow::Result<TensorMap> {
        self.deref().tensor_map(matrix)
    }
}

impl Driver for Gpu {
    fn info(&self) -> &DeviceInfo {
        self.deref().info()
    }

    fn allocate(&mut self, bytes: usize) -> anyhow::Result<u64> {
        self.deref_mut().allocate(bytes)
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> anyhow::Result<()> {
        self.deref_mut().upload(dst, src)
    }

    fn download(&mut self, dst: &mut [u8], src: u64) -> anyhow::Result<()> {
        self.deref_mut().download(dst, src)
    }

    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> anyhow::Result<()> {
        self.deref_mut().copy(dst, src, bytes)
    }

    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> anyhow::Result<()> {
        self.deref_mut().set_bytes(dst, value, bytes)
    }

    fn synchronize(&mut self) -> anyhow::Result<()> {
        self.deref_mut().synchronize()
    }

    fn begin_capture(&mut self) -> anyhow::Result<()> {
        self.deref_mut().begin_capture()
    }

    fn end_capture(&mut self) -> anyhow::Result<Graph> {
        self.deref_mut().end_capture()
    }

    fn launch_graph(&mut self, graph: Graph) -> anyhow::Result<()> {
        self.deref_mut().launch_graph(graph)
    }

    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place) {
        self.deref_mut().lend(address, bytes)
    }

    fn reclaim(&mut self, address: u64, bytes: usize) {
        self.deref_mut().reclaim(address, bytes);
    }

    fn start_timer(&mut self) -> anyhow::Result<()> {
        self.deref_mut().start_timer()
    }

    fn stop_timer(&mut self) -> anyhow::Result<Option<f32>> {
        self.deref_mut().stop_timer()
    }

    fn stamp(&mut self) -> anyhow::Result<()> {
        self.deref_mut().stamp()
    }

    fn take_stamps(&mut self) -> anyhow::Result<Vec<Duration>> {
        self.deref_mut().take_stamps()
    }

    fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        self.deref_mut().take_counts()
    }

    fn state(&mut self) -> anyhow::Result<String> {
        self.deref_mut().state()
    }

    fn matmul_library(&mut self) -> anyhow::Result<&mut dyn MatmulLibrary> {
        self.deref_mut().matmul_library()
    }
}
