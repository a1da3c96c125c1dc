//! The probes as nvcc compiled them, in a list of their own: no other program contains these
//! fatbins.

use kernel_build::ptxas;
use warpsmith::device::cuda::fatbins::Fatbin;

/// CUDA's loader reads an image word by word, as in the library.
#[allow(dead_code)] // in builds without images
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/probe_fatbins.rs"));

const FILES: [&str; 3] = ["probes.cu", "probes_hopper.cu", "probes_stores.cu"];

#[test]
#[cfg_attr(not(has_kernels), ignore = "needs nvcc (make nvcc)")]
fn they_compile_for_every_architecture_without_spills_or_warnings() {
    assert_eq!(FATBINS.iter().map(|f| (f.file, f.floatx)).collect::<Vec<_>>(), FILES.map(|f| (f, "bf16")));
    for fatbin in FATBINS {
        assert_eq!(fatbin.image.as_ptr() as usize % 64, 0, "{}", fatbin.file);
    }
    let report = ptxas::parse(include_str!(concat!(env!("OUT_DIR"), "/probe_ptxas.log")));
    let mut arches: Vec<&str> = report.kernels.iter().map(|u| u.arch.trim_start_matches("sm_")).collect();
    arches.sort_unstable();
    arches.dedup();
    println!("{} kernels for sm_{}", report.kernels.len() / arches.len(), arches.join(", sm_"));
    let faults = ptxas::faults(&report, &FILES, &["bf16"], &arches);
    // As for the library's kernels: another compiler may allocate registers differently.
    assert!(faults.is_empty() || NVCC_VERSION != (13, 0), "\n{}\n", faults.join("\n"));
}

#[test]
fn no_other_program_contains_them() {
    for fatbin in warpsmith::device::cuda::fatbins::FATBINS {
        assert!(!FILES.contains(&fatbin.file), "{} is in the library", fatbin.file);
    }
}
