//! The GPUs whose steps can be predicted: data sheet values beside the peaks of
//! [`gpus`](crate::gpus), and the share of them that is reachable.

use crate::gpus::Peak;
use anyhow::{Result, anyhow};

/// Properties of a GPU that the prediction needs. Rates are TFLOP/s of dense bf16 matmuls with f32
/// accumulation; TB/s is 1e12 bytes/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Value of `--gpu`, and the name of the folder that holds its records.
    pub name: &'static str,
    pub full_name: &'static str,
    /// Streaming multiprocessors.
    pub SMs: usize,
    /// Size of the L2 cache.
    pub l2_mb: f64,
    /// Peak L2 bandwidth in TB/s.
    pub l2_tbs: f64,
    /// The clock at which the peak is reached; shared memory delivers 128 bytes per clock and SM.
    pub boost_ghz: f64,
    /// Whether it has Hopper's instructions and runs our kernels for them.
    pub wgmma: bool,
    /// MiB of memory, as nvidia-smi shows them.
    pub memory_mib: f64,
    /// Usual links within a machine and between machines, by the names of
    /// [`LINKS`](super::scaling::links::LINKS).
    pub links: [&'static str; 2],
    /// Memory bandwidth of the data sheet.
    pub peak_tbs: f64,
    /// Share of the peak that one large matmul (8192 cubed) sustains.
    pub matmul_share: f64,
    /// Share of the bandwidth that a large copy reaches.
    pub copy_share: f64,
    /// Rates of causal attention at long T for head sizes 64 and 128; the masked half is not
    /// counted.
    pub attention_forward: [f64; 2],
    pub attention_backward: [f64; 2],
}

/// All known GPUs. "Estimate" marks values that were neither measured by us nor published for such
/// shapes; records replace them.
///
/// Attention rates are those measured, scaled up by 1 + 128 / T of the measured T:
/// [`predict`](super::predict) takes this factor off again for the masked halves of diagonal tiles.
pub const GPUS: [Gpu; 6] = [
    Gpu {
        name: "h200",
        full_name: "NVIDIA H200 SXM",
        // NVIDIA H200 data sheet: 1,979 TFLOP/s bf16 with sparsity, half of that dense; 4.8 TB/s.
        // SMs and L2: H100 architecture paper.
        SMs: 132,
        l2_mb: 50.0,
        // The peak is 4,096 FLOPs per clock and SM at this clock. L2 bandwidth: Estimate, 5,120
        // bytes per clock as on A100.
        l2_tbs: 9.4,
        boost_ghz: 1.83,
        wgmma: true,
        memory_mib: 143_771.0,
        links: ["nvlink4", "ndr"],
        peak_tbs: 4.8,
        // Measured: 770-798 TFLOP/s for 8192 cubed in PyTorch; 4.3 TB/s for a copy on the device.
        matmul_share: 790.0 / 989.4,
        copy_share: 4.3 / 4.8,
        // cuDNN 9.19 on H200 (NVIDIA/cudnn-frontend, benchmark/sdpa_benchmark_training), head size
        // 64: forward 310, 336, 358 and backward 264, 289, 299 at T = 2k, 4k, 32k; head size 128:
        // 484 and 370 at 2k. FlashAttention 3 on H100, head size 64: 265 and 371 forward at 1k and
        // 2k.
        attention_forward: [349.0, 514.0],
        attention_backward: [304.0, 393.0],
    },
    Gpu {
        name: "h100",
        full_name: "NVIDIA H100 SXM",
        // NVIDIA H100 data sheet and architecture paper.
        SMs: 132,
        l2_mb: 50.0,
        // As on the H200.
        l2_tbs: 9.4,
        boost_ghz: 1.83,
        wgmma: true,
        memory_mib: 81_559.0,
        links: ["nvlink4", "ndr"],
        peak_tbs: 3.35,
        // fast.cu reports 716 (4096 cubed) and 795 (8192 cubed) for cuBLAS; QuACK reports 3.0 TB/s
        // for softmax and cross-entropy.
        matmul_share: 780.0 / 989.4,
        copy_share: 0.9,
        // The same processor as the H200.
        attention_forward: [349.0, 514.0],
        attention_backward: [304.0, 393.0],
    },
    Gpu {
        name: "a100",
        full_name: "NVIDIA A100 SXM 80 GB",
        // NVIDIA A100 data sheet.
        SMs: 108,
        l2_mb: 40.0,
        // NVIDIA A100 architecture paper: 5,120 bytes per clock from L2, at 1.41 GHz.
        l2_tbs: 7.2,
        boost_ghz: 1.41,
        wgmma: false,
        memory_mib: 81_920.0,
        links: ["nvlink3", "hdr"],
        peak_tbs: 2.039,
        // Estimates: cuBLAS sustains about 265 TFLOP/s, a copy about 1.79 TB/s.
        matmul_share: 0.85,
        copy_share: 0.88,
        // Estimates after the FlashAttention 2 paper's figures for A100.
        attention_forward: [180.0, 205.0],
        attention_backward: [150.0, 185.0],
    },
    Gpu {
        name: "b200",
        full_name: "NVIDIA B200",
        // NVIDIA Blackwell data sheet: 4.5 PFLOP/s bf16 with sparsity, half of that dense; 8 TB/s.
        SMs: 148,
        l2_mb: 126.0,
        // The peak is 8,192 FLOPs per clock and SM at this clock. L2 bandwidth: Estimate.
        l2_tbs: 12.0,
        boost_ghz: 1.86,
        wgmma: false,
        memory_mib: 183_359.0,
        links: ["nvlink5", "ndr"],
        peak_tbs: 8.0,
        // Estimates.
        matmul_share: 0.75,
        copy_share: 0.9,
        // FlashAttention 4 (pull request 2605): 457-542 forward, head size 64, T = 1024. The others
        // are estimates.
        attention_forward: [562.0, 1000.0],
        attention_backward: [420.0, 750.0],
    },
    Gpu {
        name: "4090",
        full_name: "NVIDIA GeForce RTX 4090",
        // NVIDIA Ada architecture paper: 165.2 TFLOP/s with f32 accumulation, 1,008 GB/s.
        SMs: 128,
        l2_mb: 72.0,
        // Boost clock: the same paper. L2 bandwidth: Estimate.
        l2_tbs: 5.0,
        boost_ghz: 2.52,
        wgmma: false,
        memory_mib: 24_564.0,
        links: ["pcie4", "hdr"],
        peak_tbs: 1.008,
        // Estimates.
        matmul_share: 0.95,
        copy_share: 0.92,
        // apache/tvm, tl_doc/flash_perf.md: head size 64 at T = 2k 142-152 forward, 97-106
        // backward. Head size 128: estimates.
        attention_forward: [156.0, 158.0],
        attention_backward: [108.0, 115.0],
    },
    Gpu {
        name: "5090",
        full_name: "NVIDIA GeForce RTX 5090",
        // NVIDIA RTX Blackwell architecture paper: 209.5 TFLOP/s with f32 accumulation, 1,792 GB/s.
        SMs: 170,
        l2_mb: 96.0,
        // Boost clock: the same paper. L2 bandwidth: Estimate.
        l2_tbs: 6.0,
        boost_ghz: 2.407,
        wgmma: false,
        memory_mib: 32_607.0,
        links: ["pcie5", "ndr"],
        peak_tbs: 1.792,
        // Estimates; published whole steps of llm.kittens reach 81 % of this peak.
        matmul_share: 0.97,
        copy_share: 0.92,
        // Estimates: the 4090's, scaled by the ratio of peaks.
        attention_forward: [198.0, 200.0],
        attention_backward: [137.0, 146.0],
    },
];

/// Memory that is not ours to plan: the driver's context, NVIDIA's libraries and their workspaces,
/// NCCL's buffers, and scratch memory of kernels. Estimate.
const RESERVED_MIB: f64 = 1536.0;

impl Gpu {
    /// Finds a GPU by its short name.
    ///
    /// # Errors
    /// If it is not in the table; the message lists those that are.
    pub fn named(name: &str) -> Result<&'static Gpu> {
        let wanted = name.to_ascii_lowercase();
        GPUS.iter().find(|gpu| gpu.name == wanted).ok_or_else(|| {
            let known = GPUS.map(|gpu| gpu.name).join(", ");
            anyhow!("expected one of {known}, found {name}")
        })
    }

    /// Finds a GPU by the name its driver reports, such as `NVIDIA A100-SXM4-80GB`. Returns `None`
    /// for cards with the same chip but other clocks.
    pub fn of_device(name: &str) -> Option<&'static Gpu> {
        let peak = Peak::of_device(name)?;
        GPUS.iter().find(|gpu| gpu.peak() == peak)
    }

    /// # Panics
    /// If a GPU was added that has no row in the table of peaks.
    fn peak(&self) -> &'static Peak {
        Peak::of_device(self.full_name).expect("each GPU has a peak")
    }

    /// Peak of the data sheet; MFU is relative to it.
    pub fn peak_tflops(&self) -> f64 {
        self.peak().tflops("bf16")
    }

    /// Bytes available for parameters, gradients, state and activations.
    pub fn usable_bytes(&self) -> f64 {
        (self.memory_mib - RESERVED_MIB) * f64::from(1 << 20)
    }

    /// FLOP/s of a large matmul.
    pub fn matmul_ceiling(&self) -> f64 {
        self.peak_tflops() * 1e12 * self.matmul_share
    }

    /// Bytes/s of a large copy.
    pub fn copy_ceiling(&self) -> f64 {
        self.peak_tbs * 1e12 * self.copy_share
    }

    /// FLOP/s of causal attention with head size `HS`; `backward` selects the rate of the five
    /// matmuls of the backward pass.
    pub fn attention_rate(&self, HS: usize, backward: bool) -> f64 {
        let [at64, at128] = if backward { self.attention_backward } else { self.attention_forward };
        let HS = HS as f64;
        // Below 64 the exponentials limit the rate: there is one per HS multiplications.
        let rate = match HS {
            ..64.0 => at64 * HS / 64.0,
            64.0..128.0 => at64 + (at128 - at64) * (HS - 64.0) / 64.0,
            _ => at128,
        };
        rate * 1e12
    }
}
