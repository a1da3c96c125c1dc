//! The CUDA device: one op layer over hand-written kernels, and two drivers under it, NVIDIA's and
//! the emulated device. Both share launch geometry, alignment and argument lists.
//!
//! Each operation has one file, named like its kernels: `layernorm.rs` launches what is in
//! `kernels/layernorm.cu`.

pub mod disassembler;
pub mod driver;
pub mod emulated;
pub mod fatbins;
pub mod kernel;
pub mod launches;
pub mod matmul_library;
pub mod memory;
pub mod nvidia;
pub mod nvml;

mod adamw;
mod add;
mod attention;
mod classifier;
mod dropout;
mod encoder;
mod gelu;
mod graphs;
mod layernorm;
#[cfg(all(test, emulated))]
mod logged;
mod matmul;
mod muon;
mod reduce;
mod scale;

use crate::libraries::Missing;
use crate::ops::*;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
pub use attention::BackwardKernels;
pub use cuda_emulator::tensor_map;
use driver::{Counts, Driver};
use graphs::Graphs;
use kernel::{KernelSpec, Launch};
use memory::Memory;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The choices that a CUDA device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Type of parameters, activations and gradients: Bf16, F16 or F32.
    pub dtype: Dtype,
    /// Whether f32 matmuls may round operands to TF32.
    pub tf32: bool,
    /// GELU in the epilogue of matmuls: 0 = never, 1 = forward, 2 = forward and backward, [`AUTO`]
    /// = where it is faster.
    pub gelu_fusion: i32,
    /// Choose kernels without timing them, and none that adds with atomics, so that every run has
    /// the same bits. Of the others each single one always gives the same bits.
    pub deterministic: bool,
    pub matmul: MatmulChoice,
    /// Queue lists of operations that repeat as CUDA graphs.
    pub graphs: bool,
}

impl CudaOptions {
    /// Names the format that matmuls multiply in.
    fn matmul_format(self) -> &'static str {
        match self.dtype {
            Dtype::F32 if self.tf32 => "tf32",
            dtype => dtype.name(),
        }
    }
}

/// Fuse GELU where that is faster on this device for the shape, forward and backward. Where nothing
/// is timed (on the emulated device, with [`CudaOptions::deterministic`], and for the tile of a
/// [`MatmulChoice`]), it is fused on compute capability 9.0 only. llm.c uses the same number for a
/// default of its own, which is not to fuse.
pub const AUTO: i32 = -1;

/// The kernels that matmuls may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum MatmulChoice {
    /// The fastest on this device for the shape.
    Fastest,
    Own,
    Cublaslt,
    /// Our kernels of this tile, with the sum in `splits` parts. Tests, benchmarks and
    /// [`launches`](launches::launches) ask for it; no flag does.
    #[value(skip)]
    Tile {
        M: usize,
        N: usize,
        splits: usize,
    },
    /// The same with our kernels for Hopper, whose tiles are `M` x 256, and with the work in `runs`
    /// runs, one for each tile if `None`.
    #[value(skip)]
    Hopper {
        M: usize,
        runs: Option<usize>,
    },
}

/// `fastest`, or `tiles of 64 x 64 in 3 splits`.
impl fmt::Display for MatmulChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MatmulChoice::Fastest => f.write_str("fastest"),
            MatmulChoice::Own => f.write_str("own"),
            MatmulChoice::Cublaslt => f.write_str("cublaslt"),
            MatmulChoice::Tile { M, N, splits } => write!(f, "tiles of {M} x {N} in {splits} splits"),
            MatmulChoice::Hopper { M, runs: None } => write!(f, "Hopper's tiles of {M} x 256"),
            MatmulChoice::Hopper { M, runs: Some(runs) } => {
                write!(f, "Hopper's tiles of {M} x 256 in {runs} runs")
            }
        }
    }
}

/// A device that runs our kernels.
pub struct Cuda {
    driver: Box<dyn Driver>,
    memory: Memory,
    options: CudaOptions,
    matmul_plans: matmul::Plans,
    attention: attention::Choices,
    graphs: Graphs,
}

impl Cuda {
    /// `driver` has the kernels for `options.dtype`.
    pub fn new(driver: Box<dyn Driver>, options: CudaOptions) -> Self {
        Cuda {
            driver,
            memory: Memory::new(options.dtype),
            options,
            matmul_plans: matmul::Plans::default(),
            attention: attention::Choices::default(),
            graphs: Graphs::default(),
        }
    }

    /// Returns what each kernel did since the last call, by name; empty on a device that does not
    /// count.
    pub fn take_counts(&mut self) -> BTreeMap<&'static str, Counts> {
        self.driver.take_counts()
    }

    /// Returns the milliseconds that everything queued by `work` takes on the device. `None` on a
    /// device whose times mean nothing. The first matmul of its kind and size is tuned with the
    /// same timer, so run it once before.
    ///
    /// # Errors
    /// If `work` fails, or the device does.
    pub fn time(&mut self, work: impl FnOnce(&mut Cuda) -> Result<()>) -> Result<Option<f32>> {
        self.driver.start_timer()?;
        work(self)?;
        self.driver.stop_timer()
    }

    /// Sets the kernels that matmuls may use from now on. Plans of earlier choices are kept.
    pub fn choose_matmul(&mut self, matmul: MatmulChoice) {
        self.options.matmul = matmul;
        self.graphs.clear();
    }

    /// Sets the kernels of attention's backward pass, where Hopper has none of its own; `None` is
    /// the fastest. It belongs before memory is planned, which depends on it.
    pub fn choose_attention(&mut self, backward: Option<BackwardKernels>) {
        self.attention.forced = backward;
        self.graphs.clear();
    }

    /// Returns the matmul plans that were measured or verified since the last call: a line per
    /// shape with kernel, milliseconds, TFLOP/s, and the milliseconds of others.
    pub fn take_matmul_plans(&mut self) -> Vec<String> {
        self.matmul_plans.take_lines()
    }

    /// Computes `dinp`, one half of [`Ops::matmul_backward`].
    ///
    /// # Errors
    /// As [`Ops::matmul_backward`].
    pub fn matmul_dgrad(&mut self, args: MatmulBackward) -> Result<()> {
        matmul::dgrad(self, args)
    }

    /// Computes `dweight` and `dbias`, the other half of [`Ops::matmul_backward`].
    ///
    /// # Errors
    /// As [`Ops::matmul_backward`].
    pub fn matmul_wgrad(&mut self, args: MatmulBackward) -> Result<()> {
        matmul::wgrad(self, args)
    }

    /// Elements of `floatX` in the 128 bits that a thread loads or stores at once.
    fn pack(&self) -> usize {
        16 / self.options.dtype.size()
    }

    /// A launch with one thread per pack of the first tensor's type. Checks that all tensors have
    /// one length, a multiple of the pack, and start at a multiple of 16 bytes.
    fn launch_by_packs(&self, what: &str, tensors: &[Tensor]) -> Launch {
        const THREADS: usize = 256;
        let (n, pack) = (tensors[0].len, 16 / tensors[0].dtype.size());
        assert!(n.is_multiple_of(pack), "{what} of {n} elements, which is not a multiple of {pack}");
        for &tensor in tensors {
            assert_eq!(tensor.len, n, "{what}: tensors of one length");
            let aligned = self.memory.address(tensor).is_multiple_of(16);
            assert!(aligned, "{what}: {tensor:?} does not start at a multiple of 16 bytes");
        }
        // A grid has at least one block, which may have nothing to do.
        Launch::new((n / pack).div_ceil(THREADS).max(1), THREADS as u32)
    }
}

/// Returns every kernel of every operation.
pub fn kernels() -> Vec<&'static KernelSpec> {
    let [attention_forward, attention_backward, atomic_attention, hopper_forward, hopper_backward] =
        attention::KERNELS;
    let [matmul, exact_matmul, hopper_matmul] = matmul::KERNELS;
    [
        adamw::KERNELS,
        add::KERNELS,
        attention_forward,
        attention_backward,
        atomic_attention,
        hopper_forward,
        hopper_backward,
        classifier::KERNELS,
        dropout::KERNELS,
        encoder::KERNELS,
        gelu::KERNELS,
        layernorm::KERNELS,
        matmul,
        exact_matmul,
        hopper_matmul,
        muon::KERNELS,
        reduce::KERNELS,
        scale::KERNELS,
    ]
    .concat()
}

impl Device for Cuda {
    fn describe(&self) -> String {
        let info = self.driver.info();
        let CudaOptions { dtype, tf32, .. } = self.options;
        let matmuls = if dtype == Dtype::F32 && tf32 { " (TF32 matmuls)" } else { "" };
        format!("{}, {dtype}{matmuls}", info.name)
    }

    fn libraries(&mut self) -> Result<Vec<(&'static str, String)>> {
        let (asked, wanted) = match self.options.matmul {
            MatmulChoice::Cublaslt => (true, true),
            MatmulChoice::Fastest => (false, !self.options.deterministic && !self.driver.info().emulated),
            _ => (false, false),
        };
        if !wanted {
            return Ok(Vec::new());
        }
        let row = match self.driver.matmul_library() {
            Ok(library) => library.describe(),
            Err(why) if !asked && matches!(why.downcast_ref(), Some(Missing::Nowhere(_))) => {
                log::info!("{why:#}");
                "not found: all matmuls are ours".to_owned()
            }
            Err(why) => return Err(why.context("--matmul")),
        };
        Ok(vec![("cuBLASLt", row)])
    }

    fn float_dtype(&self) -> Dtype {
        self.options.dtype
    }

    fn scratch_bytes(&self, limits: &Limits) -> Result<usize> {
        let needs = [
            layernorm::scratch_bytes(self, limits),
            attention::scratch_bytes(self, limits)?,
            matmul::scratch_bytes(self, limits),
            reduce::scratch_bytes(self, limits),
        ];
        Ok(needs.into_iter().max().unwrap_or_default())
    }

    /// Returns 1/32 of the memory, within 256 to 1600 MiB. The latter is 16,675 rows of GPT-2's
    /// logits in 16 bits, so 65,536 rows go in equal pieces of 16,384: few enough for reading and
    /// writing the embedding's gradient to hide behind its GEMMs.
    fn logits_bytes(&self) -> usize {
        (self.driver.info().memory_bytes / 32).clamp(256 << 20, 1600 << 20)
    }

    fn allocate(&mut self, plan: &MemoryPlan) -> Result<()> {
        let flags = matmul::flags(self.driver.info().sm_count);
        self.memory.allocate(self.driver.as_mut(), plan, flags)
    }

    fn upload(&mut self, dst: Tensor, src: &[u8]) -> Result<()> {
        assert_eq!(dst.size_bytes(), src.len());
        self.driver.upload(self.memory.address(dst), src)
    }

    fn download(&mut self, dst: &mut [u8], src: Tensor) -> Result<()> {
        assert_eq!(src.size_bytes(), dst.len());
        self.driver.download(dst, self.memory.address(src))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.driver.synchronize()
    }

    fn copy(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        assert_eq!((dst.dtype, dst.len), (src.dtype, src.len), "a copy keeps type and length");
        let bytes = dst.size_bytes();
        let apart = dst.arena != src.arena || dst.offset.abs_diff(src.offset) >= bytes;
        assert!(apart, "a copy from {src:?} to {dst:?}, which overlap");
        self.driver.copy(self.memory.address(dst), self.memory.address(src), bytes)
    }

    fn lend(&mut self, tensor: Tensor) -> Buffer {
        let (address, place) = self.driver.lend(self.memory.address(tensor), tensor.size_bytes());
        Buffer { address, len: tensor.len, dtype: tensor.dtype, place }
    }

    fn reclaim(&mut self, tensor: Tensor) {
        self.driver.reclaim(self.memory.address(tensor), tensor.size_bytes());
    }

    fn stamp(&mut self) -> Result<()> {
        self.driver.stamp()
    }

    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        self.driver.take_stamps()
    }

    fn record_for_profiler(&mut self, on: bool) -> Result<()> {
        self.driver.record_for_profiler(on)
    }

    fn gpu_memory(&mut self) -> Option<GpuMemory> {
        self.driver.memory()
    }

    fn gpu_state(&mut self) -> Result<String> {
        self.driver.state()
    }

    fn gpu(&self) -> Option<Gpu> {
        let info = self.driver.info();
        let operands = self.options.matmul_format();
        (!info.emulated).then(|| Gpu { name: info.name.clone(), memory_bytes: info.memory_bytes, operands })
    }
}

impl Ops for Cuda {
    fn encoder_forward(&mut self, args: EncoderForward) -> Result<()> {
        encoder::forward(self, args)
    }

    fn encoder_backward(&mut self, args: EncoderBackward) -> Result<()> {
        encoder::backward(self, args)
    }

    fn layernorm_forward(&mut self, args: LayernormForward) -> Result<()> {
        layernorm::forward(self, args)
    }

    fn layernorm_backward(&mut self, args: LayernormBackward) -> Result<()> {
        layernorm::backward(self, args)
    }

    fn matmul_forward(&mut self, args: MatmulForward) -> Result<()> {
        matmul::forward(self, args)
    }

    /// Our GEMMs add the residual in their epilogue. The library does that less well than it adds a
    /// bias, so there, and with dropout, the residual is added by our layernorm, which has to read
    /// the sum anyway.
    fn matmul_residual_layernorm(
        &mut self,
        matmul: MatmulForward,
        dropout: Option<Dropout>,
        norm: LayernormForward,
    ) -> Result<()> {
        match matmul.epilogue {
            Epilogue::BiasResidual { bias, residual }
                if dropout.is_some() || self.options.matmul == MatmulChoice::Cublaslt =>
            {
                let (product, epilogue) = (norm.out, Epilogue::Bias { bias });
                matmul::forward(self, MatmulForward { out: product, epilogue, ..matmul })?;
                layernorm::residual_forward(self, norm, residual, product, dropout)
            }
            epilogue => {
                assert!(dropout.is_none(), "dropout between a matmul and {epilogue:?}");
                matmul::forward(self, matmul)?;
                layernorm::forward(self, norm)
            }
        }
    }

    fn dropout_backward(&mut self, dinp: Tensor, dout: Tensor, C: usize, dropout: Dropout) -> Result<()> {
        dropout::backward(self, dinp, dout, C, dropout)
    }

    fn matmul_backward(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_dgrad(args)?;
        self.matmul_wgrad(args)
    }

    fn attention_forward(&mut self, args: AttentionForward) -> Result<()> {
        attention::forward(self, args)
    }

    fn attention_backward(&mut self, args: AttentionBackward) -> Result<()> {
        attention::backward(self, args)
    }

    fn attention_decode(&mut self, out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims) -> Result<()> {
        attention::decode(self, out, qkv, t, dims)
    }

    fn gelu_recompute(&mut self, out: Tensor, kept: Tensor) -> Result<()> {
        gelu::recompute(self, out, kept)
    }

    fn classifier(&mut self, args: Classifier) -> Result<()> {
        classifier::fused(self, args)
    }

    fn adamw(&mut self, args: AdamW) -> Result<()> {
        adamw::update(self, args)
    }

    fn muon_momentum(&mut self, args: MuonMomentum) -> Result<()> {
        muon::momentum(self, args)
    }

    fn newton_schulz(&mut self, args: NewtonSchulz) -> Result<()> {
        muon::newton_schulz(self, args)
    }

    fn muon_step(&mut self, args: MuonStep) -> Result<()> {
        muon::step(self, args)
    }

    fn add(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        add::add(self, dst, src)
    }

    fn scale(&mut self, dst: Tensor, factor: f32) -> Result<()> {
        scale::scale(self, dst, factor)
    }

    fn norm_squared(&mut self, out: Tensor, src: &[Tensor]) -> Result<()> {
        reduce::norm_squared(self, out, src)
    }

    fn sum(&mut self, out: Tensor, src: Tensor) -> Result<()> {
        reduce::sum(self, out, src)
    }

    fn fill(&mut self, dst: Tensor, value: f32) -> Result<()> {
        reduce::fill(self, dst, value)
    }

    fn replay(&mut self, key: GraphKey, work: &mut Work) -> Result<()> {
        graphs::replay(self, key, work)
    }
}
