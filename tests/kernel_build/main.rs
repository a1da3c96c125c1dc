//! The compilation of kernels for GPUs: that nvcc is found where it should be, and that what it made is good. The second half
//! needs nvcc and its disassembler, and is skipped without them unless `REQUIRE_KERNELS` is set (`make kernels-check`).

#[path = "../../kernels/build/budget.rs"]
mod budget;
mod clocks;
mod gate;
mod mutants;
#[allow(dead_code)]
#[path = "../../kernels/build/nvcc.rs"]
mod nvcc;
#[path = "../../kernels/build/ptxas.rs"]
mod ptxas;
#[path = "../../kernels/build/sass.rs"]
mod sass;
mod texts;

use budget::Budget;
use nvcc::{ARCHES, Places};
use sass::SASS_ARCHES;
use std::path::{Path, PathBuf};
use warpsmith::device::cuda::fatbins::{FATBINS, NVCC_VERSION, WHY_NONE};

const FLOATX: [&str; 3] = ["bf16", "f16", "f32"];
/// Set by `make kernels-budget`.
const UPDATE: &str = "UPDATE_KERNEL_BUDGET";

/// A directory with the file `bin/nvcc`.
fn toolkit(version: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let nvcc = dir.path().join("bin/nvcc");
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    std::fs::write(&nvcc, format!("Cuda compilation tools, release {version}, V{version}.88\n")).unwrap();
    (dir, nvcc)
}

/// The toolkits above are their own description.
fn read(nvcc: &Path) -> Result<String, String> {
    std::fs::read_to_string(nvcc).map_err(|e| e.to_string())
}

#[test]
fn nvcc_is_found_in_this_order() {
    let [(home, in_home), (path, in_path), (own, in_own)] = ["12.8", "12.9", "13.0"].map(toolkit);
    let mut places = Places {
        asked_for: Some(in_own.clone().into()),
        homes: vec!["/nowhere".into(), home.path().into()],
        path: std::env::join_paths([Path::new("/nowhere"), &path.path().join("bin")]).unwrap(),
        others: vec![own.path().join("bin/nvcc")],
    };
    let mut expect = |change: &dyn Fn(&mut Places), file: &Path, version| {
        change(&mut places);
        let found = nvcc::find(&places, read).unwrap().unwrap();
        assert_eq!((found.path.as_path(), found.version), (file, version));
    };
    expect(&|_| {}, &in_own, (13, 0));
    expect(&|p| p.asked_for = Some("nvcc".into()), &in_path, (12, 9));
    expect(&|p| p.asked_for = None, &in_home, (12, 8));
    expect(&|p| p.homes.clear(), &in_path, (12, 9));
    expect(&|p| p.path.clear(), &in_own, (13, 0));
}

#[test]
fn an_old_nvcc_is_passed_over_or_refused() {
    let [(_a, old), (_b, new)] = ["12.4", "13.0"].map(toolkit);
    let mut places = Places { others: vec![old.clone(), new.clone()], ..Places::default() };
    assert_eq!(nvcc::find(&places, read).unwrap().unwrap().path, new);
    places.others.pop();
    let why = nvcc::find(&places, read).unwrap().unwrap_err();
    assert_eq!(why, format!("{} is nvcc 12.4, older than 12.8", old.display()));
    places.asked_for = Some(old.clone().into());
    let error = nvcc::find(&places, read).unwrap_err();
    assert!(error.contains("older than 12.8") && error.contains("make nvcc"), "{error}");
    places.asked_for = Some("/nowhere/nvcc".into());
    assert_eq!(nvcc::find(&places, read).unwrap_err(), "NVCC=/nowhere/nvcc: no such file");
    let nothing = nvcc::find(&Places::default(), read).unwrap();
    assert_eq!(nothing.unwrap_err(), "no nvcc was found");
}

#[test]
fn architectures_can_be_chosen() {
    let flags = |asked_for| nvcc::arches(asked_for).map(|arches| nvcc::gencode(&arches));
    assert_eq!(flags(Some("90a")).unwrap(), ["-gencode=arch=compute_90a,code=sm_90a"]);
    assert_eq!(flags(Some("80, 120f")).unwrap().len(), 2);
    assert_eq!(flags(Some("none")).unwrap().len(), 0);
    let all = flags(None).unwrap();
    assert_eq!(all.len(), ARCHES.len() + 1);
    assert_eq!(all.last().unwrap(), "-gencode=arch=compute_80,code=compute_80");
    for bad in ["sm_90", "75", "90x", "90,b"] {
        let error = flags(Some(bad)).unwrap_err();
        assert!(error.contains(bad), "{error}");
    }
}

/// Every kernel for every architecture, without spills, made of what it should be, as the budget says.
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
        assert!(faults.is_empty(), "no budget makes up for this:\n{}\n", faults.join("\n"));
        return update(&found, &arches, &sass_arches);
    }
    if gate::is_pinned(&gate::nvcc()) {
        let budgeted: Vec<&str> = arches.into_iter().filter(|arch| ARCHES.contains(arch)).collect();
        faults.extend(budget::differences(&gate::budget().unwrap(), &found, &budgeted, &sass_arches));
    } else {
        println!("skipped: {} is of the nvcc that `make nvcc` installs, and this is another", budget::FILE);
    }
    // Another compiler may allocate registers otherwise: its users get kernels that are slower, not wrong.
    assert!(faults.is_empty() || NVCC_VERSION != (13, 0), "\n{}\n", faults.join("\n"));
}

/// Of `arches`, those to disassemble; none without a disassembler.
fn disassembled(arches: &[&str]) -> Vec<&'static str> {
    match gate::cuobjdump() {
        Ok(_) => SASS_ARCHES.into_iter().filter(|arch| arches.contains(arch)).collect(),
        Err(why) => {
            gate::skip(&format!("the machine code was not looked at: {why}"));
            Vec::new()
        }
    }
}

/// Writes the budget anew, and says how it differs from the old one.
fn update(found: &Budget, arches: &[&str], sass_arches: &[&str]) {
    let pinned = gate::is_pinned(&gate::nvcc());
    assert!(pinned, "{UPDATE}: the budget is of the nvcc that `make nvcc` installs; NVCC chooses it");
    assert_eq!(arches, ARCHES, "{UPDATE}: a budget is of all architectures: unset KERNEL_ARCHES");
    assert_eq!(sass_arches, SASS_ARCHES, "{UPDATE}: a budget wants the disassembler: `make nvcc`");
    let old = gate::budget().unwrap_or_default();
    let differences = budget::differences(&old, found, arches, sass_arches);
    std::fs::write(gate::root().join(budget::FILE), budget::to_text(found)).unwrap();
    println!("wrote {}; what differs from before:", budget::FILE);
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
