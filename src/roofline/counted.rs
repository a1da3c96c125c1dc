//! What the emulated device counted of kernels at small shapes, and what that says of large ones: files
//! `benches/record/emulated/*-kernels.json`, written by the micro-benchmarks.
//!
//! What carries over:
//! - of a kernel that streams, sectors and turns of shared memory for each byte that it must move;
//! - of a product, the sectors of operands for each FLOP of a tile, which the tile's shape decides; and turns for each FLOP and for
//!   each output, told apart by two lengths of K. Each program by itself, and only for the tile that is predicted;
//! - of attention, sectors and turns for each FLOP and for each output, told apart by two lengths of T.
//!
//! What does not: the edges of a matrix (FLOPs are counted by whole tiles, so shapes of whole tiles say most), waves, launches,
//! what a multiprocessor's own cache saves, and which of its programs a GPU would choose.

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

/// A call of a kernel: `Counts` of the CUDA device, and what [`kernels`](super::kernels) says of it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Entry {
    kernel: String,
    shape: String,
    /// Of a product, the name of the device's kernel that multiplies: `matmul_forward_128x256`.
    program: Option<String>,
    sectors_read: f64,
    sectors_written: f64,
    bytes_read: f64,
    bytes_written: f64,
    shared_turns: f64,
    tensor_flops: f64,
    model_bytes: f64,
}

/// An entry that was understood.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    entry: Entry,
    dims: Vec<usize>,
    /// Rows and columns that the program computes at a time.
    tile: Option<(usize, usize)>,
}

/// All that was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted(Vec<Sample>);

impl Counted {
    /// Adds the entries of a file; one for the same kernel, shape and program replaces the one that was there.
    ///
    /// # Errors
    /// If the text is not such a file, or an entry lacks what it needs.
    pub fn add(&mut self, json: &str) -> Result<()> {
        let file: File = serde_json::from_str(json).context("expected a record of the emulated device")?;
        for entry in file.kernels {
            let sample = Sample::new(entry)?;
            let key = |s: &Sample| (s.entry.kernel.clone(), s.dims.clone(), s.entry.program.clone());
            self.0.retain(|old| key(old) != key(&sample));
            self.0.push(sample);
        }
        Ok(())
    }

    /// What a call takes of the L2 cache and of shared memory, as far as that was counted. `tiles` are those predicted.
    pub fn limits(&self, kernel: &Kernel, tiles: Option<Tiles>, gpu: &Gpu) -> Option<Limits> {
        let traffic = match kernel.work {
            Work::Stream { .. } => self.stream(kernel),
            Work::Product { m, n, k, .. } => self.product(kernel, (m, n, k), tiles?.size, gpu),
            Work::Attention { T, .. } => self.attention(kernel, T),
        }?;
        let seconds = |turns: f64| turns / (gpu.SMs as f64 * gpu.boost_ghz * 1e9);
        Some(Limits {
            l2_us: traffic.l2_bytes.map(|bytes| 1e6 * bytes / (gpu.l2_tbs * 1e12)),
            shared_us: traffic.turns.map(|turns| 1e6 * seconds(turns)),
            moved_share: traffic.moved_share,
        })
    }

    /// Of the largest shape, where edges matter least.
    fn stream(&self, kernel: &Kernel) -> Option<Traffic> {
        let samples = self.0.iter().filter(|s| s.entry.kernel == kernel.name);
        let sample = samples.max_by(|a, b| a.entry.model_bytes.total_cmp(&b.entry.model_bytes))?;
        let scale = kernel.bytes / sample.entry.model_bytes;
        Some(Traffic {
            l2_bytes: Some(sample.l2_bytes() * scale),
            turns: Some(sample.entry.shared_turns * scale),
            moved_share: sample.moved_share(),
        })
    }

    fn product(
        &self,
        kernel: &Kernel,
        (m, n, k): (usize, usize, usize),
        tile: (usize, usize),
        gpu: &Gpu,
    ) -> Option<Traffic> {
        let fits = |s: &&Sample| {
            let for_hopper = s.entry.program.as_ref().is_some_and(|program| program.contains("hopper"));
            s.tile == Some(tile) && for_hopper == gpu.wgmma && pass(&s.entry.kernel) == pass(kernel.name)
        };
        let samples: Vec<&Sample> = self.0.iter().filter(fits).collect();
        let padding = |s: &&&Sample| s.entry.tensor_flops / s.model_flops();
        let fullest = samples.iter().min_by(|a, b| padding(a).total_cmp(&padding(b)))?;
        let operands = |[m, n, k]: [usize; 3]| 2.0 * (m * k + n * k) as f64;
        let [sample_m, sample_n, sample_k] = fullest.dims[..] else { return None };
        // Results, and what is read beside them, are touched once; operands once for each tile.
        let beside = fullest.entry.model_bytes - operands([sample_m, sample_n, sample_k]);
        let per_flop = (fullest.l2_bytes() - beside) / fullest.entry.tensor_flops;
        Some(Traffic {
            l2_bytes: Some(per_flop * kernel.flops + kernel.bytes - operands([m, n, k])),
            turns: per_flop_and_output(&samples, (m * n) as f64, kernel.flops, |s| s.entry.shared_turns),
            moved_share: fullest.moved_share(),
        })
    }

    fn attention(&self, kernel: &Kernel, T: usize) -> Option<Traffic> {
        let on_tensor_cores = |s: &&Sample| s.entry.kernel == kernel.name && s.entry.tensor_flops > 0.0;
        let samples: Vec<&Sample> = self.0.iter().filter(on_tensor_cores).collect();
        let longest = samples.iter().max_by_key(|s| s.dims.get(2))?;
        let Work::Attention { B, NH, HS, .. } = kernel.work else { return None };
        let (outputs, flops) = ((B * NH * T * HS) as f64, kernel.flops * masked(T));
        Some(Traffic {
            l2_bytes: per_flop_and_output(&samples, outputs, flops, Sample::l2_bytes),
            turns: per_flop_and_output(&samples, outputs, flops, |s| s.entry.shared_turns),
            moved_share: longest.moved_share(),
        })
    }
}

/// Of a call. None for what too few shapes were counted for.
struct Traffic {
    l2_bytes: Option<f64>,
    turns: Option<f64>,
    moved_share: f64,
}

impl Sample {
    fn new(entry: Entry) -> Result<Self> {
        let Entry { kernel, shape, program, tensor_flops, model_bytes, .. } = &entry;
        let fault = || format!("{kernel} {shape}");
        let dims: Vec<usize> =
            shape.split('x').map(str::parse).collect::<Result<_, _>>().with_context(fault)?;
        ensure!(*model_bytes > 0.0, "{kernel} {shape}: expected model_bytes above 0, found {model_bytes}");
        let tile = program.as_deref().and_then(tile_of);
        if dims.len() == 3 {
            ensure!(
                tile.is_some(),
                "{kernel} {shape}: expected in program the device's kernel that multiplies, matmul_..._128x256, found {}",
                program.as_deref().unwrap_or("none")
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

    /// Bytes that it touches at all, beside those of the model.
    fn moved_share(&self) -> f64 {
        (self.entry.bytes_read + self.entry.bytes_written) / self.entry.model_bytes
    }

    fn outputs(&self) -> f64 {
        // M x N of M x N x K; all of B x NH x T x HS.
        let of_product = if self.dims.len() == 3 { &self.dims[..2] } else { &self.dims[..] };
        of_product.iter().map(|&d| d as f64).product()
    }
}

/// `forward`, `dgrad` or `wgrad`.
fn pass(kernel: &str) -> Option<&str> {
    kernel.rsplit(' ').next()
}

/// 128 and 256 of `matmul_forward_128x256`.
fn tile_of(program: &str) -> Option<(usize, usize)> {
    let (rows, columns) = program.rsplit('_').next()?.split_once('x')?;
    Some((rows.parse().ok()?, columns.parse().ok()?))
}

/// What takes so much for each FLOP and so much for each output, by the two samples that differ most in how many FLOPs go with an
/// output. None if they hardly differ.
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

    fn entry(kernel: &str, shape: &str, program: &str, fields: &str) -> String {
        format!(
            r#"{{"kernels": [{{"kernel": "{kernel}", "shape": "{shape}", "program": "{program}", "launches": 1, {fields}}}]}}"#
        )
    }

    /// As `tests/emulator/shipped.rs` counts one tile of 128 x 256, with so many stages of 64.
    fn tile(stages: usize) -> String {
        let (k, out) = (stages * 64, 128 * 256 * 2);
        let operands = (128 + 256) * k * 2;
        let fields = format!(
            r#""sectors_read": {}, "sectors_written": {}, "bytes_read": {operands}, "bytes_written": {out},
            "shared_turns": {}, "tensor_flops": {}, "model_bytes": {}"#,
            operands / 32,
            out / 32,
            stages * (128 + 256 + 640) + 8,
            2 * 128 * 256 * k,
            operands + out
        );
        entry("qkv forward", &format!("128x256x{k}"), HOPPER, &fields)
    }

    fn product(k: usize) -> Kernel {
        use crate::roofline::kernels::{Class, Tail};
        let (m, n) = (1280, 2560);
        Kernel {
            name: "fc forward",
            shape: String::new(),
            class: Class::BlockForward,
            work: Work::Product { m, n, k, tail: Tail::Plain },
            calls: 1,
            launches: 1,
            flops: 2.0 * (m * n * k) as f64,
            bytes: 2.0 * (m * k + n * k + m * n) as f64,
        }
    }

    /// 100 tiles of 12 stages, from tiles of one and of four.
    #[test]
    fn a_tile_tells_of_many_and_longer_ones() {
        let gpu = Gpu::named("h200").unwrap();
        let (kernel, tiles) = (product(768), Tiles { size: (128, 256), count: 100, waves: 1.0 });
        let mut counted = Counted::default();
        assert_eq!(counted.limits(&kernel, Some(tiles), gpu), None);
        counted.add(&tile(1)).unwrap();
        let limits = counted.limits(&kernel, Some(tiles), gpu).unwrap();
        let l2_bytes = 100.0 * 2.0 * (12.0 * 64.0 * 384.0 + 128.0 * 256.0);
        assert!((limits.l2_us.unwrap() / (l2_bytes / gpu.l2_tbs / 1e6) - 1.0).abs() < 1e-9, "{limits:?}");
        assert_eq!((limits.shared_us, limits.moved_share), (None, 1.0));

        counted.add(&tile(4)).unwrap();
        let limits = counted.limits(&kernel, Some(tiles), gpu).unwrap();
        let turns = 100.0 * (12.0 * 1024.0 + 8.0);
        let want = turns / (132.0 * gpu.boost_ghz * 1e3);
        assert!((limits.shared_us.unwrap() / want - 1.0).abs() < 1e-9, "{limits:?}");

        // Neither of another tile, nor of a GPU that does not run this program.
        let other = Tiles { size: (128, 128), ..tiles };
        assert_eq!(counted.limits(&kernel, Some(other), gpu), None);
        assert_eq!(counted.limits(&kernel, Some(tiles), Gpu::named("a100").unwrap()), None);
    }

    #[test]
    fn faults_are_named() {
        let mut counted = Counted::default();
        let fields = r#""sectors_read": 1, "sectors_written": 1, "bytes_read": 1, "bytes_written": 1,
            "shared_turns": 1, "tensor_flops": 0, "model_bytes": 1"#;
        let mut fault = |program: &str| {
            format!("{:#}", counted.add(&entry("fc forward", "1x2x3", program, fields)).unwrap_err())
        };
        assert!(fault("gemm").starts_with("fc forward 1x2x3: expected in program"));
        assert!(fault(HOPPER).ends_with("count with 16-bit numbers"));
        let error = format!("{:#}", counted.add("[]").unwrap_err());
        assert!(error.starts_with("expected a record of the emulated device"), "{error}");
    }
}
