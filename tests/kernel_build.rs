//! The compilation of kernels for GPUs: that nvcc is found where it should be, and that what it made is good. The second half
//! needs nvcc, and is skipped without one unless `REQUIRE_KERNELS` is set (`make kernels-check`).

#[allow(dead_code)]
#[path = "../kernels/build/nvcc.rs"]
mod nvcc;
#[path = "../kernels/build/ptxas.rs"]
mod ptxas;

use nvcc::{ARCHES, Places};
use ptxas::{faults, parse};
use std::path::{Path, PathBuf};
use warpsmith::device::cuda::fatbins::{FATBINS, NVCC_VERSION, WHY_NONE};

const FLOATX: [&str; 3] = ["bf16", "f16", "f32"];

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

const GOOD_LOG: &str = "\
# layernorm.cu bf16
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layernorm_forward' for 'sm_80'
ptxas info    : Function properties for layernorm_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 4.023 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layernorm_forward' for 'sm_90a'
ptxas info    : Function properties for layernorm_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 128 bytes smem
";

fn faults_of(log: &str) -> Vec<String> {
    faults(&parse(log), &["layernorm.cu"], &["bf16"], &["80", "90a"])
}

#[test]
fn the_compilers_log_is_read() {
    let report = parse(GOOD_LOG);
    let read: Vec<_> = report.kernels.iter().map(|u| (&*u.kernel, &*u.arch, u.registers, u.shared)).collect();
    assert_eq!(read, [("layernorm_forward", "sm_80", 32, 128), ("layernorm_forward", "sm_90a", 30, 128)]);
    assert_eq!(faults_of(GOOD_LOG), [""; 0]);
}

#[test]
fn the_gate_names_what_it_refuses() {
    let edit = |from: &str, to: &str| {
        assert!(GOOD_LOG.contains(from));
        faults_of(&GOOD_LOG.replacen(from, to, 1))
    };
    let on_80 = "layernorm_forward in layernorm.cu (bf16, sm_80)";
    let spills =
        edit("0 bytes spill stores, 0 bytes spill loads", "8 bytes spill stores, 16 bytes spill loads");
    assert_eq!(spills, [format!("{on_80} spills registers: 8 bytes of stores, 16 of loads")]);
    assert_eq!(edit("0 bytes stack", "624 bytes stack"), [format!("{on_80} uses 624 bytes of local memory")]);
    assert_eq!(
        edit("cmem[0]", "cmem[0], 40 bytes cumulative stack size"),
        [format!("{on_80} uses 40 bytes of local memory")]
    );
    let serialised =
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    assert_eq!(
        edit("ptxas info    : Compile time = 4.023 ms", serialised),
        [format!("layernorm.cu bf16: {serialised}")]
    );
    let warning = "kernels/layernorm.cu(3): warning #177-D: variable \"i\" was declared but never referenced";
    assert_eq!(edit("ptxas info    : 0 bytes gmem", warning), [format!("layernorm.cu bf16: {warning}")]);
    assert_eq!(
        edit("for 'sm_90a'", "for 'sm_90'"),
        ["layernorm_forward in layernorm.cu (bf16): not compiled for sm_90a"]
    );
    assert!(edit("Used 32 registers", "Used some registers")[0].contains("no number of registers"));
    assert_eq!(
        edit("# layernorm.cu bf16", "# layernorm.cu f16"),
        ["layernorm.cu (bf16): no kernel was compiled"]
    );
}

#[test]
fn every_kernel_is_compiled_for_every_architecture_without_spills() {
    if FATBINS.is_empty() {
        let required = std::env::var("REQUIRE_KERNELS").is_ok_and(|v| v != "0" && !v.is_empty());
        assert!(!required, "REQUIRE_KERNELS is set, but {WHY_NONE}");
        println!("skipped: {WHY_NONE}");
        return;
    }
    let files = kernel_files();
    for file in &files {
        for floatx in FLOATX {
            assert!(
                FATBINS.iter().any(|f| f.file == file && f.floatx == floatx),
                "no fatbin of {file} for {floatx}"
            );
        }
    }
    let chosen = std::env::var("KERNEL_ARCHES").ok();
    let (arches, _) = nvcc::arches(chosen.as_deref()).unwrap();
    let report = parse(include_str!(concat!(env!("OUT_DIR"), "/ptxas.log")));
    print_table(&report);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let arches: Vec<&str> = arches.iter().map(String::as_str).collect();
    let faults = faults(&report, &files, &FLOATX, &arches);
    // Another compiler may allocate registers otherwise: its users get kernels that are slower, not wrong.
    assert!(faults.is_empty() || NVCC_VERSION != (13, 0), "\n{}\n", faults.join("\n"));
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

/// The most that a kernel needs on any architecture.
fn print_table(report: &ptxas::Report) {
    println!("| kernel | floatX | registers | static shared memory |\n|---|---|--:|--:|");
    let mut rows: Vec<_> = report.kernels.iter().collect();
    rows.sort_by_key(|u| (&u.file, &u.kernel, &u.floatx));
    for same in rows.chunk_by(|a, b| (&a.kernel, &a.floatx) == (&b.kernel, &b.floatx)) {
        let most = |of: fn(&ptxas::Usage) -> usize| same.iter().map(|u| of(u)).max().unwrap_or_default();
        println!(
            "| {} | {} | {} | {} |",
            same[0].kernel,
            same[0].floatx,
            most(|u| u.registers),
            most(|u| u.shared)
        );
    }
}
