//! The gate on kernels compiled for GPUs. It needs the nvcc and the disassembler of `make nvcc`;
//! `make kernels-check` fails without them.

mod clocks;
mod gate;
mod mutants;
mod texts;

use kernel_build::budget::{self, Budget};
use kernel_build::nvcc::{self, ARCHES};
use kernel_build::ptxas;
use kernel_build::sass::{self, SASS_ARCHES};
use std::path::Path;
use warpsmith::device::cuda::fatbins::{FATBINS, NVCC_VERSION};

const FLOATX: [&str; 3] = ["bf16", "f16", "f32"];
/// Set by `make kernels-budget`.
const UPDATE: &str = "UPDATE_KERNEL_BUDGET";

/// The architectures of this build.
fn arches() -> Vec<String> {
    nvcc::arches(std::env::var("KERNEL_ARCHES").ok().as_deref()).unwrap().0
}

/// The compiler's report on this build.
fn report() -> ptxas::Report {
    ptxas::parse(include_str!(concat!(env!("OUT_DIR"), "/ptxas.log")))
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

#[test]
#[cfg_attr(not(has_kernels), ignore = "needs nvcc (make nvcc)")]
fn every_kernel_compiles_without_spills() {
    let (files, arches) = (kernel_files(), arches());
    for (file, floatx) in files.iter().flat_map(|file| FLOATX.map(|x| (file, x))) {
        let has = FATBINS.iter().any(|f| f.file == file && f.floatx == floatx);
        assert!(has, "no fatbin of {file} for {floatx}");
    }
    let faults = ptxas::faults(&report(), &strs(&files), &FLOATX, &strs(&arches));
    // Another compiler may allocate registers differently: its users get kernels that are slower,
    // not wrong.
    assert!(faults.is_empty() || NVCC_VERSION != (13, 0), "\n{}\n", faults.join("\n"));
}

/// Every kernel has the instructions it is written for and the numbers of the budget.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn the_kernels_keep_to_the_budget() {
    let (report, arches) = (report(), arches());
    let arches = strs(&arches);
    let sass_arches: Vec<&str> = SASS_ARCHES.into_iter().filter(|arch| arches.contains(arch)).collect();
    let images: Vec<_> = FATBINS.iter().map(|f| (f.file, f.floatx, f.image)).collect();
    let code = gate::disassemble(&images, &sass_arches);
    let found = budget::measure(&report, &code);
    gate::print_table(&found);
    let mut faults = sass::faults(&code);
    if std::env::var(UPDATE).is_ok_and(|v| v == "1") {
        assert!(faults.is_empty(), "no budget can allow this:\n{}\n", faults.join("\n"));
        return update(&found, &arches, &sass_arches);
    }
    let budgeted: Vec<&str> = arches.into_iter().filter(|arch| ARCHES.contains(arch)).collect();
    faults.extend(budget::differences(&gate::budget().unwrap(), &found, &budgeted, &sass_arches));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Rewrites the budget, and prints how it differs from the old one.
fn update(found: &Budget, arches: &[&str], sass_arches: &[&str]) {
    assert_eq!(arches, ARCHES, "{UPDATE}: a budget covers all architectures: unset KERNEL_ARCHES");
    let old = gate::budget().unwrap_or_default();
    let differences = budget::differences(&old, found, arches, sass_arches);
    std::fs::write(gate::root().join(budget::FILE), budget::to_text(found)).unwrap();
    println!("wrote {}; differences from before:", budget::FILE);
    differences.iter().for_each(|line| println!("{line}"));
}

#[test]
fn images_are_aligned() {
    for fatbin in FATBINS {
        assert_eq!(fatbin.image.as_ptr() as usize % 64, 0, "{}", fatbin.file);
        assert!(!fatbin.image.is_empty());
    }
}

fn kernel_files() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".cu")).collect()
}
