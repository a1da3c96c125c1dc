//! The clocks of the shipped kernels are those of `kernels/clocks.tsv`, and the clocks of small
//! kernels are those worked out by hand.

use crate::{FLOATX, gate};
use kernel_build::nvcc;
use std::io::Write;
use std::process::Command;
use warpsmith::device::cuda::disassembler::disassemble;
use warpsmith::device::cuda::fatbins::FATBINS;
use warpsmith::device::cuda::launches::launches;
use warpsmith::roofline::clocks::epilogue::exposed_clocks;
use warpsmith::roofline::clocks::listing::{Listing, parse};
use warpsmith::roofline::clocks::machine::Machine;
use warpsmith::roofline::clocks::table::{self, Row};
use warpsmith::roofline::clocks::{self, Kernel, Launched, PARAMETERS_START};
use warpsmith::roofline::kernels::Tail;
use warpsmith::tensor::Dtype;

/// Set by `make kernels-clocks UPDATE=1`.
const UPDATE: &str = "UPDATE_KERNEL_CLOCKS";
pub const ARCH: &str = "90a";

fn listings(image: &[u8]) -> Vec<Listing> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    parse(&disassemble(&gate::cuobjdump(), file.path(), ARCH).unwrap_or_else(|e| panic!("{e}")))
}

/// The rows of a file's kernels for bf16, in the order of their names.
fn rows(file: &str, image: &[u8]) -> Vec<Row> {
    let (launches, machine) = (launches(Dtype::Bf16).unwrap(), Machine::default());
    let mut listings = listings(image);
    listings.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    // Kernels for f32 alone are empty here.
    let launched = listings.iter().filter_map(|listing| Some((listing, launches.get(&*listing.kernel)?)));
    launched
        .flat_map(|(listing, &(spec, launch))| {
            let parameters =
                spec.parameters(PARAMETERS_START).into_iter().map(|p| (p.address, p.name, p.is_pointer));
            let launched = Launched::new(launch.threads, launch.shared_bytes, parameters);
            let kernel = clocks::analyze(listing, &launched, &machine);
            table::rows(file, &kernel.unwrap_or_else(|e| panic!("{e:#}")))
        })
        .collect()
}

/// The differences between the kernels of an image and the table.
pub fn differences(file: &str, image: &[u8]) -> Vec<String> {
    let text = std::fs::read_to_string(gate::root().join(table::FILE)).unwrap();
    let mut expected = table::parse(&text).unwrap();
    expected.retain(|row| row.file == file);
    table::differences(&expected, &rows(file, image))
}

/// Finds epilogues of Hopper's matmuls that round numbers one by one, or expose more clocks than
/// they should: each load waiting for the last one would. Sums of 768 terms hide all of them where
/// consumers take turns.
fn slow_epilogues(rows: &[Row]) -> Vec<String> {
    let tails = [
        (Tail::Plain, "forward", 1300.0),
        (Tail::Bias, "forward", 2000.0),
        (Tail::Residual, "forward", 3200.0),
        (Tail::Gelu, "forward", 5000.0),
        (Tail::GeluAndGradient, "forward", 6000.0),
        (Tail::Plain, "dgrad", 1300.0),
        (Tail::GeluBackward, "dgrad", 2400.0),
        (Tail::Accumulate, "wgrad", 5500.0),
    ];
    let mut faults = Vec::new();
    for (tail, pass, most) in tails {
        for (tile_rows, most) in [(128, most), (64, 0.0)] {
            match exposed_clocks(rows, tail, pass, tile_rows, 768) {
                Some(clocks) if clocks > most => faults
                    .push(format!("{tail:?} of {pass} exposes {clocks} clocks in tiles of {tile_rows} rows")),
                None if pass != "wgrad" || tile_rows == 128 => {
                    faults.push(format!("{tail:?} of {pass} has no epilogue for tiles of {tile_rows} rows"));
                }
                _ => {}
            }
        }
    }
    let matmuls = rows.iter().filter(|row| row.kernel.starts_with("matmul_hopper_"));
    for Row { kernel, part, counts, .. } in matmuls.filter(|row| row.part.contains("(consumers)")) {
        if counts.conversions > 0 {
            faults.push(format!(
                "{kernel}, {part}, rounds {} numbers one by one: F2F is as slow as a tanh",
                counts.conversions
            ));
        }
    }
    faults
}

#[test]
#[cfg_attr(not(has_clocks), ignore = "needs the tools of the gate (make nvcc), and sm_90a")]
fn the_clocks_are_those_of_the_table() {
    let images = FATBINS.iter().filter(|fatbin| fatbin.floatx == FLOATX[0]);
    let rows: Vec<Row> = images.flat_map(|fatbin| rows(fatbin.file, fatbin.image)).collect();
    let path = gate::root().join(table::FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let update = std::env::var(UPDATE).is_ok_and(|v| v == "1");
    let old = table::parse(&text);
    let differences = table::differences(&if update { old.unwrap_or_default() } else { old.unwrap() }, &rows);
    for row in &rows {
        let Row { kernel, part, issue, latency, clocks, binds, mode, .. } = row;
        println!(
            "{kernel:36} {part:48} issue {issue:6} latency {latency:6} clocks {clocks:6} {binds:8} {mode}"
        );
    }
    let faults = slow_epilogues(&rows);
    assert!(faults.is_empty(), "no table can allow this:\n{}\n", faults.join("\n"));
    if update {
        std::fs::write(&path, table::to_text(&rows)).unwrap();
        println!("wrote {}; differences from before:\n{}", table::FILE, differences.join("\n"));
    } else {
        let hint = "if that is intended, `make kernels-clocks UPDATE=1` writes it";
        assert!(differences.is_empty(), "\n{}\n{hint}\n", differences.join("\n"));
    }
}

/// Small kernels, which are compiled with the flags of the shipped ones.
const SMALL: &str = r#"
__device__ float use(float x, float y) { return fmaf(x, y, x); }

// Sixteen additions, each of the previous result.
extern "C" __global__ void __launch_bounds__(128) fma_chain(float* x, int n) {
    float a = x[threadIdx.x];
#pragma unroll 1
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int j = 0; j < 16; j++) a = use(a, a);
    x[threadIdx.x] = a;
}
// Sixteen independent chains.
extern "C" __global__ void __launch_bounds__(128) fma_beside(float* x, int n) {
    float a[16];
    for (int j = 0; j < 16; j++) a[j] = x[threadIdx.x + 128 * j];
#pragma unroll 1
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int j = 0; j < 16; j++) a[j] = use(a[j], a[j]);
    for (int j = 0; j < 16; j++) x[threadIdx.x + 128 * j] = a[j];
}
extern "C" __global__ void __launch_bounds__(128) exponentials(float* x, int n) {
    float a[16];
    for (int j = 0; j < 16; j++) a[j] = x[threadIdx.x + 128 * j];
#pragma unroll 1
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int j = 0; j < 16; j++) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(a[j]));
    for (int j = 0; j < 16; j++) x[threadIdx.x + 128 * j] = a[j];
}
// Dependent loads, each of which returns the next address; then loads with known addresses.
extern "C" __global__ void __launch_bounds__(128) loads_in_turn(const int* p, int* out, int n) {
    int at = threadIdx.x;
#pragma unroll 1
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int j = 0; j < 16; j++) at = p[at];
    out[threadIdx.x] = at;
}
extern "C" __global__ void __launch_bounds__(128) loads_together(const int* p, int* out, int n) {
    int sum = 0;
#pragma unroll 1
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int j = 0; j < 16; j++) sum += p[(i * 16 + j) * 128 + threadIdx.x];
    out[threadIdx.x] = sum;
}
// A loop through shared memory inside one with an exponential, and the cost of a pointer that may
// be null.
extern "C" __global__ void __launch_bounds__(128) nested(float* x, const float* residual, int n, int m) {
    __shared__ float4 tile[128 * 4];
    float a = x[threadIdx.x];
#pragma unroll 1
    for (int i = 0; i < n; i++) {
#pragma unroll 1
        for (int k = 0; k < m; k++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const volatile float4* from = tile + threadIdx.x + 128 * j;
                a += from->x;
            }
        }
        if (residual != nullptr) a += residual[i * 128 + threadIdx.x];
        asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(a));
    }
    x[threadIdx.x] = a;
}
"#;

fn small_kernels() -> Vec<Kernel> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("kernels")).unwrap();
    std::fs::write(dir.path().join("small.cu"), SMALL).unwrap();
    let output = Command::new(gate::nvcc().path)
        .current_dir(dir.path())
        .args(nvcc::FLAGS.split(' '))
        .args(nvcc::gencode(&(vec![ARCH.to_string()], false)))
        .args(["-o", "small.fatbin", "small.cu"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // With this much shared memory one block occupies the SM: one warp on each scheduler.
    let launched = Launched::new(128, 200 << 10, [(0x210, "x", true), (0x218, "residual", true)]);
    let listings = listings(&std::fs::read(dir.path().join("small.fatbin")).unwrap());
    let analyzed = listings.iter().map(|listing| clocks::analyze(listing, &launched, &Machine::default()));
    analyzed.map(|kernel| kernel.unwrap_or_else(|e| panic!("{e:#}"))).collect()
}

/// Worked out by hand: the counter of a loop or the computation of an address adds less than 60
/// clocks.
#[test]
#[cfg_attr(not(has_clocks), ignore = "needs the tools of the gate (make nvcc), and sm_90a")]
fn small_kernels_take_the_clocks_worked_out_by_hand() {
    let kernels = small_kernels();
    let part = |kernel: &str, part: &str| {
        let kernel = kernels.iter().find(|k| k.name == kernel).unwrap_or_else(|| panic!("{kernel}"));
        let part = kernel.parts.iter().find(|p| p.place.to_string() == part);
        part.unwrap_or_else(|| panic!("{part:?}\n{kernel}")).variants.clone()
    };
    let turn = |kernel: &str| part(kernel, "loop 1")[0].clone();
    #[track_caller]
    fn within(found: f64, least: f64, counting: f64) {
        assert!(
            (least..=least + counting).contains(&found),
            "{found} clocks, expected {least} to {counting} more"
        );
    }
    within(turn("fma_chain").clocks, 16.0 * 4.0, 40.0);
    within(turn("fma_beside").clocks, 16.0, 40.0);
    within(turn("exponentials").clocks, 16.0 * 8.0, 40.0);
    // A round trip of 479 clocks each, the next address, and a slot of the port.
    within(turn("loads_in_turn").latency, 16.0 * 479.0, 16.0 * 20.0);
    within(turn("loads_together").latency, 479.0 + 15.0 * 8.0, 100.0);
    assert_eq!((turn("loads_in_turn").counts.loads, turn("loads_together").counts.loads), (16, 16));

    within(part("nested", "loop 1.1")[0].latency, 29.0 + 4.0 * 4.0, 40.0);
    let after = part("nested", "after loop 1.1 in loop 1");
    let modes: Vec<_> = after.iter().map(|v| (&*v.mode, v.counts.loads)).collect();
    assert_eq!(modes, [("!residual", 0), ("residual", 1)]);
    within(after[1].latency - after[0].latency, 479.0, 60.0);
}
