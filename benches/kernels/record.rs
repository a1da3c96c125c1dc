//! Records of measurements, as described in `benches/record/README.md`, and measurements of other
//! implementations.

use crate::args::Args;
use crate::bench::{Outcome, Times};
use crate::report::Row;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use warpsmith::device::cuda::AUTO;
use warpsmith::roofline::gpu::Gpu;
use warpsmith::roofline::record::FILE_SUFFIX;

/// The time of another implementation.
#[derive(Clone, Debug, Deserialize)]
pub struct Peer {
    pub kernel: String,
    pub shape: String,
    pub us: f64,
    /// Name of the implementation: `torch sdpa cudnn`.
    pub peer: String,
}

#[derive(Deserialize)]
struct Peers {
    kernels: Vec<Peer>,
}

/// Reads `--peers`.
///
/// # Errors
/// One line that names the file.
pub fn read_peers(paths: &[PathBuf]) -> Result<Vec<Peer>> {
    let mut all = Vec::new();
    for path in paths {
        let read = || -> Result<Peers> { Ok(serde_json::from_str(&fs::read_to_string(path)?)?) };
        let file = read().with_context(|| {
            format!("--peers {}: expected a record of dev/bench_attention.py", path.display())
        })?;
        all.extend(file.kernels);
    }
    for Peer { kernel, shape, us, .. } in &all {
        ensure!(
            *us > 0.0 && us.is_finite(),
            "--peers: {kernel} {shape}: expected microseconds above 0, found {us}"
        );
    }
    Ok(all)
}

/// The measured device.
pub struct Device {
    pub name: String,
    /// One line per library: `cuBLASLt 13.0.2 from /usr/local/cuda/lib64/libcublasLt.so.13`.
    pub libraries: Vec<String>,
}

/// Returns the head of a record and its measured rows, without wrong ones.
pub fn record(args: &Args, device: &Device, rows: &[Row]) -> Value {
    json!({
        "gpu": device.name,
        "libraries": device.libraries,
        "date": today(),
        "commit": commit(),
        "dtype": args.dtype.name(),
        "gelu_fusion": gelu_fusion(args.gelu_fusion),
        "reps": args.reps,
        "kernels": rows.iter().flat_map(entries).collect::<Vec<_>>(),
    })
}

/// Returns the entry of a kernel: `us` is the time in training; matmuls also have ours and
/// cuBLASLt's.
fn entries(row: &Row) -> Vec<Value> {
    let Outcome::Right(measured) = &row.outcome else { return Vec::new() };
    let kernel = &row.case.kernel;
    let mut entry = Map::new();
    let mut set = |key: &str, value: Value| entry.insert(key.to_owned(), value);
    set("kernel", kernel.name.into());
    set("shape", kernel.shape.clone().into());
    let Some(times) = measured.runs.first().and_then(|run| run.times) else { return Vec::new() };
    set_times(&mut set, times);
    set("model_flops", kernel.flops.into());
    set("model_bytes", kernel.bytes.into());
    if let Some(floor) = row.floor_us {
        set("floor_us", floor.into());
    }
    for (name, us) in [("own_us", row.own_us()), ("cublaslt_us", row.cublaslt_us())] {
        if let Some(us) = us {
            set(name, us.into());
        }
    }
    if !measured.plans.is_empty() {
        entry.insert("plans".to_owned(), measured.plans.clone().into());
    }
    vec![Value::Object(entry)]
}

/// The value of the flag.
fn gelu_fusion(level: i32) -> Value {
    if level == AUTO { "auto".into() } else { level.into() }
}

fn set_times(set: &mut impl FnMut(&str, Value) -> Option<Value>, times: Times) {
    for (key, us) in
        [("us", times.median), ("min_us", times.min), ("p10_us", times.p10), ("p90_us", times.p90)]
    {
        set(key, us.into());
    }
}

/// Path of a GPU's record: `--out`, or a file in the GPU's folder.
pub fn path(args: &Args, gpu: &str) -> PathBuf {
    let short = Gpu::of_device(gpu).map_or_else(|| slug(gpu), |gpu| gpu.name.to_owned());
    args.out.clone().unwrap_or_else(|| args.record.join(short).join(format!("{}{FILE_SUFFIX}", today())))
}

/// Writes a record.
///
/// # Errors
/// One line that names the file.
pub fn write(path: &Path, record: &Value) -> Result<()> {
    let mut text = serde_json::to_string(record)?;
    // One entry per line, for readable diffs.
    text = text.replace("[{", "[\n{").replace("},{", "},\n{").replace("}]", "}\n]") + "\n";
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.with_context(|| format!("{}: cannot write", path.display()))
}

/// Returns a name such as `nvidia-rtx-a6000`.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// The commit of the source tree, if there is one.
fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Today's date in UTC: `2026-03-01`.
fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date((since.as_secs() / 86_400) as i64)
}

/// The date `days` after 1 January 1970, computed from 400-year cycles that start on 1 March.
fn date(days: i64) -> String {
    let days = days + 719_468;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, every five months have 153 days.
    let month = (5 * day + 2) / 153;
    let in_month = day - (153 * month + 2) / 5 + 1;
    let (month, carried) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{in_month:02}", 400 * cycle + year + carried)
}

/// Tests the functions that benchmark runs do not verify.
pub fn check() {
    for (days, expected) in
        [(0, "1970-01-01"), (11_016, "2000-02-29"), (11_017, "2000-03-01"), (20_818, "2026-12-31")]
    {
        assert_eq!(date(days), expected);
    }
    assert_eq!(slug("NVIDIA RTX A6000"), "nvidia-rtx-a6000");
}
