//! The record of the emulated device's counts. Kernels are deterministic, so `cargo test` compares
//! the record of the tiny sizes with new counts and finds extra traffic or bank conflicts without a
//! GPU.

use crate::args::Args;
use crate::bench::Counted;
use crate::report::{self, Row};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use warpsmith::roofline::record::FILE_SUFFIX;

/// Allowed relative difference of counts: host compilers differ by a few loads.
const ALLOWED: f64 = 0.02;

/// Counts of one call of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    kernel: String,
    shape: String,
    /// The kernel that multiplies; `None` where nothing is multiplied.
    #[serde(alias = "program")]
    device_kernel: Option<String>,
    launches: u64,
    global_requests: u64,
    sectors_read: u64,
    sectors_written: u64,
    bytes_read: u64,
    bytes_written: u64,
    #[serde(alias = "shared_turns")]
    shared_wavefronts: u64,
    #[serde(alias = "shared_turns_without_conflicts")]
    shared_wavefronts_without_conflicts: u64,
    tensor_flops: u64,
    model_flops: f64,
    model_bytes: f64,
}

#[derive(Deserialize)]
struct File {
    kernels: Vec<Entry>,
}

/// `benches/record/emulated/tiny-b2-t64-bf16-kernels.json`, for example.
pub fn path(args: &Args) -> PathBuf {
    let (models, B, T) = (args.models.join("-"), args.batch_size, args.sequence_length);
    let name = format!("{models}-b{B}-t{T}-{}{FILE_SUFFIX}", args.dtype);
    args.out.clone().unwrap_or_else(|| args.record.join("emulated").join(name))
}

pub fn record(args: &Args, rows: &[Row]) -> Value {
    json!({ "gpu": "emulated device", "dtype": args.dtype.name(), "kernels": entries(rows) })
}

fn entries(rows: &[Row]) -> Vec<Entry> {
    let entry = |(row, Counted { counts, device_kernel }): (&Row, Counted)| Entry {
        kernel: row.case.kernel.name.to_owned(),
        shape: row.case.kernel.shape.clone(),
        device_kernel: device_kernel.map(str::to_owned),
        launches: counts.launches,
        global_requests: counts.global_requests,
        sectors_read: counts.sectors_read,
        sectors_written: counts.sectors_written,
        bytes_read: counts.bytes_read,
        bytes_written: counts.bytes_written,
        shared_wavefronts: counts.shared_wavefronts,
        shared_wavefronts_without_conflicts: counts.shared_wavefronts_without_conflicts,
        tensor_flops: counts.tensor_flops,
        model_flops: row.case.kernel.flops,
        model_bytes: row.case.kernel.bytes,
    };
    rows.iter().flat_map(report::counted_of).map(entry).collect()
}

/// Returns a line for each kernel whose counts differ from the record.
///
/// # Errors
/// If the record cannot be read.
pub fn differences(recorded: &Path, rows: &[Row]) -> Result<Vec<String>> {
    let read = || -> Result<File> { Ok(serde_json::from_str(&fs::read_to_string(recorded)?)?) };
    let recorded = read().with_context(|| format!("{}: expected a record of counts", recorded.display()))?;
    Ok(compare(&recorded.kernels, &entries(rows)))
}

fn compare(recorded: &[Entry], found: &[Entry]) -> Vec<String> {
    let key = |e: &Entry| (e.kernel.clone(), e.shape.clone(), e.device_kernel.clone());
    let has = |all: &[Entry], e: &Entry| all.iter().any(|other| key(other) == key(e));
    let name = |e: &Entry| {
        format!("{} {} {}", e.kernel, e.shape, e.device_kernel.as_deref().unwrap_or("")).trim_end().to_owned()
    };
    let mut lines = Vec::new();
    for entry in found {
        match recorded.iter().find(|other| key(other) == key(entry)) {
            None => lines.push(format!("{}: is not in the record", name(entry))),
            Some(other) => {
                let changed = changes(other, entry);
                if !changed.is_empty() {
                    lines.push(format!("{}: {}", name(entry), changed.join(", ")));
                }
            }
        }
    }
    lines.extend(recorded.iter().filter(|e| !has(found, e)).map(|e| format!("{}: was not counted", name(e))));
    lines
}

/// Lists changes such as `shared_wavefronts 4096, recorded 2048`.
fn changes(recorded: &Entry, found: &Entry) -> Vec<String> {
    let numbers = |e: &Entry| match serde_json::to_value(e) {
        Ok(Value::Object(fields)) => {
            fields.into_iter().filter_map(|(field, value)| Some((field, value.as_f64()?))).collect::<Vec<_>>()
        }
        other => unreachable!("{other:?}"),
    };
    let both = numbers(recorded).into_iter().zip(numbers(found));
    both.filter(|((_, was), (_, is))| (is - was).abs() > ALLOWED * was)
        .map(|((field, was), (_, is))| format!("{field} {is}, recorded {was}"))
        .collect()
}

/// Tests what a run that matches its record does not exercise.
pub fn check() {
    let entry = |kernel: &str, device_kernel: &str, wavefronts| Entry {
        kernel: kernel.to_owned(),
        shape: "1x2".to_owned(),
        device_kernel: (!device_kernel.is_empty()).then(|| device_kernel.to_owned()),
        launches: 1,
        global_requests: 100,
        sectors_read: 0,
        sectors_written: 0,
        bytes_read: 0,
        bytes_written: 0,
        shared_wavefronts: wavefronts,
        shared_wavefronts_without_conflicts: 10,
        tensor_flops: 0,
        model_flops: 0.0,
        model_bytes: 1.5,
    };
    let recorded = [entry("a", "x", 100), entry("a", "y", 0), entry("b", "", 7)];
    let found = [entry("a", "x", 102), entry("a", "y", 1), entry("c", "", 7)];
    let expected =
        ["a 1x2 y: shared_wavefronts 1, recorded 0", "c 1x2: is not in the record", "b 1x2: was not counted"];
    assert_eq!(compare(&recorded, &found), expected);
    assert_eq!(compare(&recorded, &recorded), [""; 0]);
}
