//! The driver for [`Cuda`](crate::device::cuda::Cuda) of the emulated device.

use super::commands::{Command, Value};
use crate::device::cuda::driver::{Counts, DeviceInfo, Driver, Graph};
use crate::device::cuda::fatbins::floatx;
use crate::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher};
use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use crate::ops::{HostStamps, Place};
use crate::tensor::Dtype;
use anyhow::{Context, Result, ensure};
use cuda_emulator::{Emulator, EmulatorOptions, MAX_SHARED_BYTES, Table, TablePointer};
use std::collections::BTreeMap;
use std::time::Duration;

macro_rules! tables {
    ($list:ident: $($file:literal, $floatx:literal, $checked:literal, $symbol:ident;)*) => {
        unsafe extern "C" {
            $(static $symbol: TablePointer;)*
        }
        // SAFETY: the build script compiled these symbols with `emulated/table.h` and links them.
        pub static $list: &[Table] =
            unsafe { &[$(Table::new($file, $floatx, $checked, &raw const $symbol)),*] };
    };
}
// `KERNELS`, the program's own; `SELF_TEST` and `PROBES`, those of tests.
include!(concat!(env!("OUT_DIR"), "/emulated/tables.rs"));

/// An emulator that poses as a GPU, by default of compute capability 9.0.
pub struct Emulated {
    info: DeviceInfo,
    emulator: Emulator,
    stamps: HostStamps,
    graphs: Vec<Vec<Command>>,
    /// The graph that is being captured.
    capture: Option<Vec<Command>>,
}

impl Emulated {
    /// A device with these kernels, compiled for one floating-point type.
    pub fn new(tables: &[Table], dtype: Dtype, options: EmulatorOptions) -> Self {
        let info = DeviceInfo {
            name: "emulated device".to_owned(),
            capability: options.capability,
            sm_count: 4,
            memory_bytes: host_memory_bytes(),
            shared_bytes: MAX_SHARED_BYTES,
            emulated: true,
        };
        let emulator = Emulator::new(tables, floatx(dtype), options);
        let (stamps, graphs) = (HostStamps::default(), Vec::new());
        Emulated { info, emulator, stamps, graphs, capture: None }
    }

    /// Refuses what cannot be part of a graph.
    fn ensure_no_capture(&self, what: &str) -> Result<()> {
        ensure!(self.capture.is_none(), "{what} cannot be part of a graph");
        Ok(())
    }
}

fn host_memory_bytes() -> usize {
    // SAFETY: `sysconf` takes any name and touches no memory of ours.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    usize::try_from(pages).unwrap_or(0) * usize::try_from(page).unwrap_or(0)
}

impl Launcher for Emulated {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> Result<()> {
        let Some(graph) = &mut self.capture else { return self.emulator.launch(kernel.name, launch, args) };
        let args = args.iter().map(Value::new).collect();
        graph.push(Command::Launch { kernel: kernel.name, launch, args });
        Ok(())
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        self.emulator.tensor_map(matrix)
    }
}

impl Driver for Emulated {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.ensure_no_capture("an allocation")?;
        self.emulator.allocate(bytes)
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        self.ensure_no_capture("an upload")?;
        self.emulator.upload(dst, src)
    }

    fn download(&mut self, dst: &mut [u8], src: u64) -> Result<()> {
        self.ensure_no_capture("a download")?;
        self.emulator.download(dst, src)
    }

    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        let Some(graph) = &mut self.capture else { return self.emulator.copy(dst, src, bytes) };
        graph.push(Command::Copy { dst, src, bytes });
        Ok(())
    }

    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> Result<()> {
        let Some(graph) = &mut self.capture else { return self.emulator.set_bytes(dst, value, bytes) };
        graph.push(Command::SetBytes { dst, value, bytes });
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.ensure_no_capture("waiting for the device")
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.ensure_no_capture("another graph")?;
        self.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph> {
        self.graphs.push(self.capture.take().context("no graph was begun")?);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn launch_graph(&mut self, graph: Graph) -> Result<()> {
        self.ensure_no_capture("another graph")?;
        let emulator = &mut self.emulator;
        self.graphs[graph.0].iter().try_for_each(|command| match command {
            Command::Launch { kernel, launch, args } => {
                let args: Vec<Arg> = args.iter().map(Value::arg).collect();
                emulator.launch(kernel, *launch, &args)
            }
            Command::Copy { dst, src, bytes } => emulator.copy(*dst, *src, *bytes),
            Command::SetBytes { dst, value, bytes } => emulator.set_bytes(*dst, *value, *bytes),
        })
    }

    fn lend(&mut self, address: u64, bytes: usize) -> (u64, Place) {
        self.ensure_no_capture("lending").expect("a graph without collectives");
        (self.emulator.lend(address, bytes).expect("memory that was planned"), Place::Host)
    }

    fn reclaim(&mut self, address: u64, bytes: usize) {
        self.emulator.reclaim(address, bytes);
    }

    fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        self.emulator.take_counts()
    }

    fn start_timer(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop_timer(&mut self) -> Result<Option<f32>> {
        Ok(None)
    }

    fn stamp(&mut self) -> Result<()> {
        self.stamps.stamp();
        Ok(())
    }

    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        Ok(self.stamps.take())
    }
}
