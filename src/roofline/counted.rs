//! Counts of the emulated device for kernels at small shapes, extrapolated to large ones. The files
//! are `benches/record/emulated/*-kernels.json`, written by the micro-benchmarks.
//!
//! Transferable to other shapes:
//! - for a kernel that streams, sectors and shared-memory wavefronts per byte that it must move;
//! - for a matmul, the sectors of operands per FLOP of a tile, which the tile's shape decides, and
//!   wavefronts per FLOP and per output, separated by two lengths of K. This holds per device
//!   kernel, and only for the predicted tile;
//! - for attention, sectors and wavefronts per FLOP and per output, separated by two lengths of T.
//!
//! Not transferable: the edges of a matrix (FLOPs are counted in whole tiles, so shapes of whole
//! tiles are the most accurate), waves, launches, savings of an SM's own cache, and the kernel that
//! a GPU would choose.

use super::clocks::epilogue::CLUSTER_ROWS;
use super::gpu::Gpu;
use super::kernels::{Kernel, Work};
use super::predict::{Limits, Tiles, masked};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const SECTOR_BYTES: f64 = 32.0;

#[derive(Deserialize)]
struct File {
    kernels: Vec<Entry>,
}

/// A call of a kernel: the CUDA device's `Counts`, and the work that [`calls`](super::calls)
/// states.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Entry {
    kernel: String,
    shape: String,
    /// For a matmul, the device kernel that multiplies: `matmul_forward_128x256`.
    #[serde(alias = "program")] // its name in older records
    device_kernel: Option<String>,
    sectors_read: f64,
    sectors_written: f64,
    bytes_read: f64,
    bytes_written: f64,
    #[serde(alias = "shared_turns")] // its name in older records
    shared_wavefronts: f64,
    tensor_flops: f64,
    model_bytes: f64,
}

/// A validated entry.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    entry: Entry,
    dims: Vec<usize>,
    /// Rows and columns that the device kernel computes at a time.
    tile: Option<(usize, usize)>,
}

/// All counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted(Vec<Sample>);

impl Counted {
    /// Adds the entries of a file. An entry for the same kernel, shape and device kernel replaces
    /// the earlier one.
    ///
    /// # Errors
    /// If the text is not such a file, or an entry lacks what it needs.
    pub fn add(&mut self, json: &str) -> Result<()> {
        let file: File = serde_json::from_str(json).context("expected a record of the emulated device")?;
        for entry in file.kernels {
            let sample = Sample::new(entry)?;
            let key = |s: &Sample| (s.entry.kernel.clone(), s.dims.clone(), s.entry.device_kernel.clone());
            self.0.retain(|old| key(old) != key(&sample));
            self.0.push(sample);
        }
        Ok(())
    }

    /// Time that a call needs in the L2 cache and in shared memory, as far as it was counted.
    /// `tiles` are the predicted ones.
    pub fn limits(&self, kernel: &Kernel, tiles: Option<Tiles>, gpu: &Gpu) -> Option<Limits> {
        let traffic = match kernel.work {
            Work::Stream { .. } => self.stream(kernel),
            Work::Matmul { m, n, k, .. } => self.matmul(kernel, (m, n, k), tiles?.size, gpu),
            Work::Attention { T, .. } => self.attention(kernel, T, gpu),
        }?;
        let seconds = |wavefronts: f64| wavefronts / (gpu.SMs as f64 * gpu.boost_ghz * 1e9);
        Some(Limits {
            l2_us: traffic.l2_bytes.map(|bytes| 1e6 * bytes / (gpu.l2_tbs * 1e12)),
            shared_us: traffic.wavefronts.map(|wavefronts| 1e6 * seconds(wavefronts)),
            bytes_ratio: traffic.bytes_ratio,
        })
    }

    /// Scales the largest counted shape, where edges matter least.
    fn stream(&self, kernel: &Kernel) -> Option<Traffic> {
        let samples = self.0.iter().filter(|s| s.entry.kernel == kernel.name);
        let sample = samples.max_by(|a, b| a.entry.model_bytes.total_cmp(&b.entry.model_bytes))?;
        let scale = kernel.bytes / sample.entry.model_bytes;
        Some(Traffic {
            l2_bytes: Some(sample.l2_bytes() * scale),
            wavefronts: Some(sample.entry.shared_wavefronts * scale),
            bytes_ratio: sample.bytes_ratio(),
        })
    }

    fn matmul(
        &self,
        kernel: &Kernel,
        (m, n, k): (usize, usize, usize),
        tile: (usize, usize),
        gpu: &Gpu,
    ) -> Option<Traffic> {
        let fits = |s: &&Sample| {
            s.tile == Some(tile) && s.on_hopper() == gpu.wgmma && pass(&s.entry.kernel) == pass(kernel.name)
        };
        let all: Vec<&Sample> = self.0.iter().filter(fits).collect();
        let whole: Vec<&Sample> = all.iter().copied().filter(|s| s.has_whole_tiles()).collect();
        let samples = if whole.is_empty() { all } else { whole };
        let padding = |s: &&&Sample| s.entry.tensor_flops / s.model_flops();
        let fullest = samples.iter().min_by(|a, b| padding(a).total_cmp(&padding(b)))?;
        let operands = |[m, n, k]: [usize; 3]| 2.0 * (m * k + n * k) as f64;
        let [sample_m, sample_n, sample_k] = fullest.dims[..] else { return None };
        // Results, and what the epilogue reads, are touched once; operands once per tile.
        let beside = fullest.entry.model_bytes - operands([sample_m, sample_n, sample_k]);
        let per_flop = (fullest.l2_bytes() - beside) / fullest.entry.tensor_flops;
        Some(Traffic {
            l2_bytes: Some(per_flop * kernel.flops + kernel.bytes - operands([m, n, k])),
            wavefronts: per_flop_and_output(&samples, (m * n) as f64, kernel.flops, |s| {
                s.entry.shared_wavefronts
            }),
            bytes_ratio: fullest.bytes_ratio(),
        })
    }

    fn attention(&self, kernel: &Kernel, T: usize, gpu: &Gpu) -> Option<Traffic> {
        let Work::Attention { B, NH, HS, .. } = kernel.work else { return None };
        // Which kernels Hopper has depends on the head size.
        let fits = |s: &&Sample| {
            let same = s.on_hopper() == gpu.wgmma && (!gpu.wgmma || s.dims.get(3) == Some(&HS));
            same && s.entry.kernel == kernel.name && s.entry.tensor_flops > 0.0
        };
        let samples: Vec<&Sample> = self.0.iter().filter(fits).collect();
        let longest = samples.iter().max_by_key(|s| s.dims.get(2))?;
        let (outputs, flops) = ((B * NH * T * HS) as f64, kernel.flops * masked(T));
        Some(Traffic {
            l2_bytes: per_flop_and_output(&samples, outputs, flops, Sample::l2_bytes),
            wavefronts: per_flop_and_output(&samples, outputs, flops, |s| s.entry.shared_wavefronts),
            bytes_ratio: longest.bytes_ratio(),
        })
    }
}

/// Traffic of a call. `None` where too few shapes were counted.
struct Traffic {
    l2_bytes: Option<f64>,
    wavefronts: Option<f64>,
    bytes_ratio: f64,
}

impl Sample {
    /// Whether it is a matmul of whole tiles, on Hopper those of a cluster of two blocks.
    fn has_whole_tiles(&self) -> bool {
        let (Some((rows, columns)), [m, n, _]) = (self.tile, &self.dims[..]) else { return false };
        let height = if self.on_hopper() { CLUSTER_ROWS } else { rows };
        m.is_multiple_of(height) && n.is_multiple_of(columns)
    }

    /// Whether the kernel is one of those for Hopper alone.
    fn on_hopper(&self) -> bool {
        self.entry.device_kernel.as_ref().is_some_and(|device_kernel| device_kernel.contains("hopper"))
    }

    fn new(entry: Entry) -> Result<Self> {
        let Entry { kernel, shape, device_kernel, tensor_flops, model_bytes, .. } = &entry;
        let fault = || format!("{kernel} {shape}");
        let dims: Vec<usize> =
            shape.split('x').map(str::parse).collect::<Result<_, _>>().with_context(fault)?;
        ensure!(*model_bytes > 0.0, "{kernel} {shape}: expected model_bytes above 0, found {model_bytes}");
        let tile = device_kernel.as_deref().and_then(tile_of);
        if dims.len() == 3 {
            ensure!(
                tile.is_some(),
                "{kernel} {shape}: expected the kernel that multiplies (matmul_..._128x256) in device_kernel, found {}",
                device_kernel.as_deref().unwrap_or("none")
            );
            ensure!(
                *tensor_flops > 0.0,
                "{kernel} {shape}: expected tensor_flops above 0, found {tensor_flops}: count with 16-bit numbers"
            );
        }
        Ok(Sample { dims, tile, entry })
    }

    fn l2_bytes(&self) -> f64 {
        SECTOR_BYTES * (self.entry.sectors_read + self.entry.sectors_written)
    }

    fn model_flops(&self) -> f64 {
        2.0 * self.dims.iter().map(|&d| d as f64).product::<f64>()
    }

    /// Bytes touched divided by those of the model.
    fn bytes_ratio(&self) -> f64 {
        (self.entry.bytes_read + self.entry.bytes_written) / self.entry.model_bytes
    }

    fn outputs(&self) -> f64 {
        // M x N of M x N x K; all of B x NH x T x HS.
        let output_dims = if self.dims.len() == 3 { &self.dims[..2] } else { &self.dims[..] };
        output_dims.iter().map(|&d| d as f64).product()
    }
}

/// Returns `forward`, `dgrad` or `wgrad`.
fn pass(kernel: &str) -> Option<&str> {
    kernel.rsplit(' ').next()
}

/// Returns 128 and 256 for `matmul_forward_128x256`.
fn tile_of(device_kernel: &str) -> Option<(usize, usize)> {
    let (rows, columns) = device_kernel.rsplit('_').next()?.split_once('x')?;
    Some((rows.parse().ok()?, columns.parse().ok()?))
}

/// Fits `cost = a * flops + b * outputs` through the two samples whose FLOPs per output differ
/// most, and evaluates it. `None` if they hardly differ.
fn per_flop_and_output(
    samples: &[&Sample],
    outputs: f64,
    flops: f64,
    of: impl Fn(&Sample) -> f64,
) -> Option<f64> {
    let place = |s: &&Sample| s.outputs() / s.entry.tensor_flops;
    let longest = samples.iter().copied().min_by(|a, b| place(a).total_cmp(&place(b)))?;
    let shortest = samples.iter().copied().max_by(|a, b| place(a).total_cmp(&place(b)))?;
    let [x1, x2] = [longest, shortest].map(|s| place(&s));
    if x2 < 1.25 * x1 {
        return None;
    }
    let [y1, y2] = [longest, shortest].map(|s| of(s) / s.entry.tensor_flops);
    let per_output = ((y2 - y1) / (x2 - x1)).max(0.0);
    Some((y1 - per_output * x1) * flops + per_output * outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPPER: &str = "matmul_hopper_forward_128x256";

    fn entry(kernel: &str, shape: &str, device_kernel: &str, fields: &str) -> String {
        format!(
            r#"{{"kernels": [{{"kernel": "{kernel}", "shape": "{shape}", "device_kernel": "{device_kernel}", "launches": 1, {fields}}}]}}"#
        )
    }

    /// The counts that `tests/emulator/shipped.rs` checks for one tile of 128 x 256, with `stages`
    /// stages of 64.
    fn tile(stages: usize) -> String {
        let (k, out) = (stages * 64, 128 * 256 * 2);
        let operands = (128 + 256) * k * 2;
        let fields = format!(
            r#""sectors_read": {}, "sectors_written": {}, "bytes_read": {operands}, "bytes_written": {out},
            "shared_wavefronts": {}, "tensor_flops": {}, "model_bytes": {}"#,
            operands / 32,
            out / 32,
            stages * (128 + 256 + 640) + 8,
            2 * 128 * 256 * k,
            operands + out
        );
        entry("qkv forward", &format!("128x256x{k}"), HOPPER, &fields)
    }

    fn matmul(k: usize) -> Kernel {
        use crate::roofline::kernels::{Class, Tail};
        let (m, n) = (1280, 2560);
        Kernel {
            name: "fc forward",
            shape: String::new(),
            class: Class::BlockForward,
            work: Work::Matmul { m, n, k, tail: Tail::Plain },
            calls: 1,
            launches: 1,
            flops: 2.0 * (m * n * k) as f64,
            bytes: 2.0 * (m * k + n * k + m * n) as f64,
        }
    }

    /// Predicts 100 tiles of 12 stages from tiles of one and of four.
    #[test]
    fn a_tile_tells_of_many_and_longer_ones() {
        let gpu = Gpu::named("h200").unwrap();
        let (kernel, tiles) = (matmul(768), Tiles { size: (128, 256), count: 100, waves: 1.0 });
        let mut counted = Counted::default();
        assert_eq!(counted.limits(&kernel, Some(tiles), gpu), None);
        counted.add(&tile(1)).unwrap();
        let limits = counted.limits(&kernel, Some(tiles), gpu).unwrap();
        let l2_bytes = 100.0 * 2.0 * (12.0 * 64.0 * 384.0 + 128.0 * 256.0);
        assert!((limits.l2_us.unwrap() / (l2_bytes / gpu.l2_tbs / 1e6) - 1.0).abs() < 1e-9, "{limits:?}");
        assert_eq!((limits.shared_us, limits.bytes_ratio), (None, 1.0));

        counted.add(&tile(4)).unwrap();
        let limits = counted.limits(&kernel, Some(tiles), gpu).unwrap();
        let wavefronts = 100.0 * (12.0 * 1024.0 + 8.0);
        let want = wavefronts / (132.0 * gpu.boost_ghz * 1e3);
        assert!((limits.shared_us.unwrap() / want - 1.0).abs() < 1e-9, "{limits:?}");

        // Nothing carries over to another tile, or to a GPU that does not run this kernel.
        let other = Tiles { size: (128, 128), ..tiles };
        assert_eq!(counted.limits(&kernel, Some(other), gpu), None);
        assert_eq!(counted.limits(&kernel, Some(tiles), Gpu::named("a100").unwrap()), None);
    }

    /// Other GPUs, and heads of other sizes, run other kernels.
    #[test]
    fn attention_for_hopper_tells_of_hopper_alone() {
        use crate::roofline::kernels::Class;
        let mut counted = Counted::default();
        for T in [64, 128] {
            let fields = format!(
                r#""sectors_read": 900, "sectors_written": 300, "bytes_read": 9000, "bytes_written": 3000,
                "shared_wavefronts": 1000, "tensor_flops": {}, "model_bytes": 9000"#,
                T * T * 128
            );
            let shape = format!("2x2x{T}x64");
            counted
                .add(&entry("attention forward", &shape, "attention_hopper_forward_hs64", &fields))
                .unwrap();
        }
        let kernel = |HS| Kernel {
            name: "attention forward",
            shape: String::new(),
            class: Class::AttentionForward,
            work: Work::Attention { B: 1, NH: 1, T: 1024, HS, backward: false },
            calls: 1,
            launches: 1,
            flops: 1e9,
            bytes: 1e6,
        };
        let limits = |HS, gpu| counted.limits(&kernel(HS), None, Gpu::named(gpu).unwrap());
        assert!(limits(64, "h100").is_some_and(|limits| limits.l2_us.is_some()));
        assert_eq!(limits(64, "a100"), None);
        assert_eq!(limits(128, "h100"), None);
    }

    #[test]
    fn faults_are_named() {
        let mut counted = Counted::default();
        let fields = r#""sectors_read": 1, "sectors_written": 1, "bytes_read": 1, "bytes_written": 1,
            "shared_wavefronts": 1, "tensor_flops": 0, "model_bytes": 1"#;
        let mut fault = |device_kernel: &str| {
            format!("{:#}", counted.add(&entry("fc forward", "1x2x3", device_kernel, fields)).unwrap_err())
        };
        assert!(fault("gemm").starts_with("fc forward 1x2x3: expected the kernel that multiplies"));
        assert!(fault(HOPPER).ends_with("count with 16-bit numbers"));
        let error = format!("{:#}", counted.add("[]").unwrap_err());
        assert!(error.starts_with("expected a record of the emulated device"), "{error}");
    }
}
