//! The rows of `--version` about GPUs.

use super::{run, stand_ins};
use warpsmith::device::about;
use warpsmith::device::cuda::nvidia::{Problem, probe};

#[test]
#[ignore = "runs in a process of its own"]
fn case_about() {
    about::here().iter().for_each(|(name, value)| println!("{name}: {value}."));
}

#[test]
fn driver_gpus_and_cublaslt_are_shown_with_the_version() {
    let dir = stand_ins();
    let expect = |settings: &[(&str, &str)], lines: &[&str]| {
        let said = run("version::case_about", dir.path(), settings);
        lines.iter().for_each(|line| assert!(said.contains(line), "{settings:?}: {line} in\n{said}"));
    };
    let path = std::fs::canonicalize(dir.path()).unwrap();
    let (cuda, cublaslt) = (path.join("libcuda.so.1"), path.join("libcublasLt.so.13"));
    let driver = |version: &str| format!("for CUDA {version} ({}).", cuda.display());
    let cublaslt = format!(" from {}.", cublaslt.display());
    let two = "GPUs: Stand-in (sm_90), Stand-in (sm_90).";
    expect(&[("STUB_DEVICES", "2")], &["NVIDIA driver: ", &driver("13.0"), two, "cuBLASLt: 13.", &cublaslt]);
    expect(&[("STUB_DEVICES", "0")], &[&driver("13.0"), "GPUs: no NVIDIA GPU: the driver found none."]);
    expect(&[("STUB_VERSION", "12040")], &[&driver("12.4"), "is for CUDA 12.4; expected 1"]);
    let empty = tempfile::tempdir().unwrap();
    if probe() == Err(Problem::NoDriver) {
        let said = run("version::case_about", empty.path(), &[]);
        assert!(said.contains("NVIDIA driver: not found.\nGPUs: not known.\n"), "{said}");
    }
}
