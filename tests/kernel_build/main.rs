//! The gate on kernels compiled for GPUs. It needs nvcc and its disassembler, and is skipped
//! without them unless `REQUIRE_KERNELS` is set (`make kernels-check`).

mod clocks;
mod gate;
mod mutants;
mod texts;

use kernel_build::budget::{self, Budget};
use kernel_build::nvcc::{self, ARCHES};
use kernel_build::ptxas;
use kernel_build::sass::{self, SASS_ARCHES};
use std::path::Path;
use warpsmith::device::cuda::fatbins::{FATBINS, NVCC_VERSION, WHY_NONE};

const FLOATX: [&str; 3] = ["bf16", "f16", "f32"];
/// Set by `make kernels-budget`.
const UPDATE: &str = "UPDATE_KERNEL_BUDGET";

/// Every kernel is there for every architecture, without spills, with the instructions it is
/// written for and the numbers of the budget.
#[test]
fn the_kernels_pass_the_gate() {
    if FATBINS.is_empty() {
        return gate::skip(WHY_NONE);
    }
    let files = kernel_files();
    for (file, floatx) in files.iter().flat_map(|file| FLOATX.map(|x| (file, x))) {
        let has = FATBINS.iter().any(|f| f.file == file && f.floatx == floatx);
        assert!(has, "no fatbin of {file} for {floatx}");
    }
    let (arches, _) = nvcc::arches(std::env::var("KERNEL_ARCHES").ok().as_deref()).unwrap();
    let [files, arches] = [&files, &arches].map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
    let report = ptxas::parse(include_str!(concat!(env!("OUT_DIR"), "/ptxas.log")));
    let sass_arches = disassembled(&arches);
    let images: Vec<_> = FATBINS.iter().map(|f| (f.file, f.floatx, f.image)).collect();
    let code = match sass_arches.is_empty() {
        true => Vec::new(),
        false => gate::disassemble(&images, &sass_arches),
    };
    let found = budget::measure(&report, &code);
    gate::print_table(&found);
    let mut faults = ptxas::faults(&report, &files, &FLOATX, &arches);
    faults.extend(sass::faults(&code));
    if std::env::var(UPDATE).is_ok_and(|v| v == "1") {
        assert!(faults.is_empty(), "no budget can allow this:\n{}\n", faults.join("\n"));
        return update(&found, &arches, &sass_arches);
    }
    if gate::is_pinned(&gate::nvcc()) {
        let budgeted: Vec<&str> = arches.into_iter().filter(|arch| ARCHES.contains(arch)).collect();
        faults.extend(budget::differences(&gate::budget().unwrap(), &found, &budgeted, &sass_arches));
    } else {
        println!(
            "skipped: {} holds for the nvcc that `make nvcc` installs, and this is another",
            budget::FILE
        );
    }
    // Another compiler may allocate registers differently: its users get kernels that are slower,
    // not wrong.
    assert!(faults.is_empty() || NVCC_VERSION != (13, 0), "\n{}\n", faults.join("\n"));
}

/// The architectures of `arches` to disassemble; none without a disassembler.
fn disassembled(arches: &[&str]) -> Vec<&'static str> {
    match gate::cuobjdump() {
        Ok(_) => SASS_ARCHES.into_iter().filter(|arch| arches.contains(arch)).collect(),
        Err(why) => {
            gate::skip(&format!("the machine code was not checked: {why}"));
            Vec::new()
        }
    }
}

/// Rewrites the budget, and prints how it differs from the old one.
fn update(found: &Budget, arches: &[&str], sass_arches: &[&str]) {
    let pinned = gate::is_pinned(&gate::nvcc());
    assert!(pinned, "{UPDATE}: the budget holds for the nvcc that `make nvcc` installs; NVCC selects it");
    assert_eq!(arches, ARCHES, "{UPDATE}: a budget covers all architectures: unset KERNEL_ARCHES");
    assert_eq!(sass_arches, SASS_ARCHES, "{UPDATE}: a budget needs the disassembler: `make nvcc`");
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
