//! The printed tables of results.

use crate::bench::{Counted, Measurement, Outcome, Times};
use crate::cases::Case;
use crate::record::Peer;
use std::fmt::Write;
use warpsmith::device::cuda::MatmulChoice;
use warpsmith::roofline::gpu::Gpu;
use warpsmith::roofline::predict::predict;

/// A case with its outcome and its references.
pub struct Row {
    pub case: Case,
    pub outcome: Outcome,
    /// Lower bound for this GPU model; `None` for GPUs that are not in the table, and for types
    /// that the list does not count.
    pub floor_us: Option<f64>,
    /// The fastest other implementation.
    pub peer: Option<Peer>,
}

impl Row {
    /// `gpu` is its table entry; `sixteen` says that elements have 16 bits, as the byte counts
    /// assume.
    pub fn new(case: Case, outcome: Outcome, gpu: Option<&Gpu>, sixteen: bool, peers: &[Peer]) -> Self {
        let floor_us = gpu.filter(|_| sixteen).map(|gpu| predict(&case.kernel, gpu, |_| None).floor_us);
        let same = |peer: &&Peer| peer.kernel == case.kernel.name && peer.shape == case.kernel.shape;
        let peer = peers.iter().filter(same).min_by(|a, b| a.us.total_cmp(&b.us)).cloned();
        Row { case, outcome, floor_us, peer }
    }

    fn runs(&self) -> &[Measurement] {
        match &self.outcome {
            Outcome::Right(measured) => &measured.runs,
            _ => &[],
        }
    }

    /// The times in training.
    pub fn times(&self) -> Option<Times> {
        self.runs().first()?.times
    }

    fn median_of(&self, choice: MatmulChoice) -> Option<f64> {
        Some(self.runs().iter().find(|run| run.matmul == choice)?.times?.median)
    }

    /// Our fastest kernel, where cuBLASLt is an alternative.
    pub fn own_us(&self) -> Option<f64> {
        self.median_of(MatmulChoice::Own)
    }

    pub fn cublaslt_us(&self) -> Option<f64> {
        self.median_of(MatmulChoice::Cublaslt)
    }
}

const HEADS: [&str; 14] = [
    "kernel",
    "shape",
    "us",
    "p10",
    "p90",
    "min",
    "GB/s",
    "TFLOP/s",
    "floor us",
    "of roofline",
    "own us",
    "cuBLASLt us",
    "own / cuBLASLt",
    "peer us (ours / peer)",
];

/// Formats times in Markdown: those in training, the share of the floor, ours next to cuBLASLt's,
/// and the fastest other implementation.
pub fn timed(rows: &[Row], sixteen: bool) -> String {
    let mut text = heads(&HEADS);
    for row in rows {
        let Some(times) = row.times() else { continue };
        let kernel = &row.case.kernel;
        let us = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.1}"));
        let ratio = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => format!("{:.2}", a / b),
            _ => "-".to_owned(),
        };
        let rate = |work: f64, unit: f64| match work > 0.0 {
            true => format!("{:.1}", work / (times.median * 1e-6) / unit),
            false => "-".to_owned(),
        };
        let peer = row.peer.as_ref().map_or("-".to_owned(), |peer| {
            format!("{:.1} {} ({:.2})", peer.us, peer.peer, times.median / peer.us)
        });
        let share =
            row.floor_us.map_or("-".to_owned(), |floor| format!("{:.0} %", 100.0 * floor / times.median));
        let cells = [
            us(Some(times.median)),
            us(Some(times.p10)),
            us(Some(times.p90)),
            us(Some(times.min)),
            if sixteen { rate(kernel.bytes, 1e9) } else { "-".to_owned() },
            rate(kernel.flops, 1e12),
            us(row.floor_us),
            share,
            us(row.own_us()),
            us(row.cublaslt_us()),
            ratio(row.own_us(), row.cublaslt_us()),
            peer,
        ];
        let _ = writeln!(text, "| {} | {} | {} |", kernel.name, kernel.shape, cells.join(" | "));
    }
    text
}

/// Formats counts next to the list's minimum: bytes between SMs and L2, minimum memory traffic,
/// shared-memory wavefronts and how many of them are due to bank conflicts, and tensor core work.
pub fn counted(rows: &[Row]) -> String {
    let mut text = heads(&[
        "kernel",
        "shape",
        "device kernel",
        "launches",
        "requests",
        "L2 KB",
        "memory KB",
        "model KB",
        "L2 / model",
        "shared wavefronts",
        "bank conflicts",
        "tensor MFLOP",
        "model MFLOP",
    ]);
    for (row, Counted { counts, device_kernel }) in rows.iter().flat_map(counted_of) {
        let kernel = &row.case.kernel;
        let by = device_kernel.unwrap_or("-");
        let l2 = 32 * (counts.sectors_read + counts.sectors_written);
        let conflicts = counts.shared_wavefronts - counts.shared_wavefronts_without_conflicts;
        let kb = |bytes: f64| format!("{:.1}", bytes / 1e3);
        let cells = [
            counts.launches.to_string(),
            counts.global_requests.to_string(),
            kb(l2 as f64),
            kb((counts.bytes_read + counts.bytes_written) as f64),
            kb(kernel.bytes),
            format!("{:.2}", l2 as f64 / kernel.bytes),
            counts.shared_wavefronts.to_string(),
            conflicts.to_string(),
            format!("{:.2}", counts.tensor_flops as f64 / 1e6),
            format!("{:.2}", kernel.flops / 1e6),
        ];
        let _ = writeln!(text, "| {} | {} | {by} | {} |", kernel.name, kernel.shape, cells.join(" | "));
    }
    text
}

/// Returns each counted call.
pub fn counted_of(row: &Row) -> impl Iterator<Item = (&Row, Counted)> {
    row.runs().iter().filter_map(move |run| Some((row, run.counted?)))
}

/// Formats the plan of each matmul with the times of alternatives, one line each; empty if nothing
/// was tuned.
pub fn plans(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let Outcome::Right(measured) = &row.outcome else { continue };
        for plan in &measured.plans {
            let start = if text.is_empty() { "\n" } else { "" };
            let _ = writeln!(text, "{start}{}: {plan}", row.case.kernel.name);
        }
    }
    text
}

/// Lists what the table lacks, one line each: wrong kernels, cases that are too large, matmuls that
/// cuBLASLt does not have.
pub fn faults(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let kernel = &row.case.kernel;
        let _ = match &row.outcome {
            Outcome::Wrong(why) => writeln!(text, "WRONG: {} {}: {why}", kernel.name, kernel.shape),
            Outcome::TooLarge(bytes) => {
                writeln!(
                    text,
                    "left out: {} {}: needs {} MiB on this device",
                    kernel.name,
                    kernel.shape,
                    bytes >> 20
                )
            }
            Outcome::Right(measured) => match &measured.missing {
                Some(why) => writeln!(text, "no cuBLASLt for {} {}: {why}", kernel.name, kernel.shape),
                None => Ok(()),
            },
        };
    }
    text
}

fn heads(heads: &[&str]) -> String {
    format!("| {} |\n|---|---|{}\n", heads.join(" | "), "--:|".repeat(heads.len() - 2))
}
