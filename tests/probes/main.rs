//! Probes: a tiny kernel for each function of `kernels/ptx.cuh` and `kernels/hopper.cuh`, which
//! have all inline PTX. The output is compared with the definition of the instruction, written here
//! in Rust, and with golden files: the output of a GPU for the same inputs. So where there is no
//! GPU the emulated device is held to hardware, and hardware is held to the definitions that the
//! kernels rely on.
//!
//! On a machine with a GPU, `WARPSMITH_TEST_DEVICE=cuda` probes it, and
//! `WARPSMITH_RECORD_PROBES=tests/probes/golden` in addition records it; see `golden/README.md`.

mod case;
mod clusters;
mod compiled;
mod conversions;
mod copies;
mod coverage;
mod device;
mod golden;
#[path = "../common/gpus.rs"]
mod gpus;
mod matrices;
mod memory;
mod mma;
mod stores;
mod tma;
mod wgmma;

use case::Case;
use device::Device;
use golden::{Golden, Recorder};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Every probe, by the name of its golden file.
const PROBES: [&str; 47] = [
    "addresses",
    "bf16",
    "bulk_copies",
    "bulk_reduce_add",
    "cluster_barriers",
    "copy_u128",
    "cp_async",
    "dependencies",
    "descriptors",
    "descriptors_narrow",
    "exp2",
    "f16",
    "f32",
    "flags",
    "ldmatrix",
    "max2",
    "mbarrier",
    "mma_bf16",
    "mma_f16",
    "mma_tf32",
    "named_barriers",
    "opaque",
    "pack2",
    "red",
    "registers",
    "roots",
    "stmatrix",
    "store_async",
    "tanh",
    "tf32",
    "tma",
    "tma_multicast",
    "tma_narrow",
    "tma_store",
    "tma_store_narrow",
    "turns",
    "wgmma_bf16",
    "wgmma_bf16_64",
    "wgmma_f16",
    "wgmma_f16_64",
    "wgmma_groups",
    "wgmma_rs_bf16",
    "wgmma_rs_f16",
    "wgmma_rs_shapes_bf16",
    "wgmma_rs_shapes_f16",
    "wgmma_shapes_bf16",
    "wgmma_shapes_f16",
];

/// Golden files are read in diffs and kept for good.
const MOST_BYTES_OF_ONE: usize = 40_000;
const MOST_BYTES_OF_ALL: u64 = 300_000;

/// The capability that a probe needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Any,
    Hopper,
}

/// The root of the repository; the current directory for a program that was carried to another
/// machine.
fn root() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built_in.is_dir() { built_in.to_owned() } else { PathBuf::from(".") }
}

fn golden_dir() -> PathBuf {
    root().join("tests/probes/golden")
}

/// Reports a probe that cannot run here as the test harness reports ignored tests, for
/// `dev/test.sh`. The harness would keep what `println` prints to itself.
fn report_not_run(name: &str, why: &str) {
    writeln!(std::io::stderr(), "\ntest the probe {name} ... ignored, {why}").expect("an open stderr");
}

/// Runs a probe on every device, records it if asked, and compares.
fn probe(name: &str, needs: Needs, run: impl Fn(&mut Device) -> Vec<Case>) {
    assert!(PROBES.contains(&name), "{name} is not in the list of probes");
    let mut faults = Vec::new();
    for mut device in device::under_test() {
        if needs == Needs::Hopper && !device.has_hopper_instructions() {
            let (major, minor) = device.driver.info().capability;
            report_not_run(name, &format!("needs capability 9.0, found {major}.{minor}"));
            continue;
        }
        let cases = run(&mut device);
        assert!(!cases.is_empty());
        // Recording comes first: the behavior of a GPU counts more than our expectation.
        if let Some((dir, by)) = &device.recording {
            let path = golden::record(dir, name, by, &cases).unwrap_or_else(|e| panic!("{e}"));
            println!("recorded {}", path.display());
        }
        for path in golden::files(&golden_dir(), Some(name)) {
            let golden = Golden::read(&path).unwrap_or_else(|e| panic!("{e}"));
            faults.extend(cases.iter().filter_map(|case| case.check_golden(&golden).err()));
        }
        faults.extend(cases.iter().filter_map(|case| case.check().err()));
        faults.extend(would_be_recorded(name, &cases));
        faults.iter_mut().for_each(|fault| *fault = format!("{name} on {}: {fault}", device.mode));
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }
}

/// The faults of a golden file of these cases, which must be small and compare as equal. So no GPU
/// is needed to know that a recording will be usable.
fn would_be_recorded(name: &str, cases: &[Case]) -> Vec<String> {
    let [gpu, arch, driver, date] = ["a GPU", "sm_90", "1", "today"].map(str::to_owned);
    let text = golden::text(name, &Recorder { gpu, arch, driver, date }, cases);
    let mut faults = match Golden::parse(Path::new("the recording"), &text) {
        Ok(golden) => cases.iter().filter_map(|case| case.check_golden(&golden).err()).collect(),
        Err(message) => vec![message],
    };
    println!("{name}: {} bytes of golden file", text.len());
    if text.len() > MOST_BYTES_OF_ONE {
        faults.push(format!("{} bytes of golden file, at most {MOST_BYTES_OF_ONE} are allowed", text.len()));
    }
    faults
}

#[test]
fn golden_files_are_of_probes_and_small() {
    let files = golden::files(&golden_dir(), None);
    let mut bytes = 0;
    for path in &files {
        Golden::read(path).unwrap_or_else(|e| panic!("{e}"));
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        assert!(PROBES.contains(&name), "{}: no probe has the name {name}", path.display());
        bytes += std::fs::metadata(path).unwrap().len();
    }
    println!("{} golden files of {bytes} bytes", files.len());
    assert!(
        bytes < MOST_BYTES_OF_ALL,
        "{bytes} bytes of golden files, at most {MOST_BYTES_OF_ALL} are allowed"
    );
}

#[test]
fn the_emulated_device_is_not_recorded() {
    let message = device::not_recorded(Path::new("out"));
    assert_eq!(
        message,
        "WARPSMITH_RECORD_PROBES=out: expected a GPU to record, found the emulated device; set WARPSMITH_TEST_DEVICE=cuda"
    );
    // In a process of its own, with the variable set.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child
        .args(["--exact", "memory::opaque"])
        .env("WARPSMITH_RECORD_PROBES", "out")
        .env_remove("WARPSMITH_TEST_DEVICE");
    let output = child.current_dir(root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains(&message), "{said}");
}
