//! `train_gpt2cu` with the stand-ins: it reports what it finds, and exits with 2 where they do not
//! serve.

use super::common::{Corpus, TRAIN_GPT2CU};
use super::stand_ins;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn train(corpus: &Corpus, libraries: &Path, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(TRAIN_GPT2CU);
    command.current_dir(corpus.dir.path()).env("LD_LIBRARY_PATH", libraries);
    for variable in
        ["CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "RUST_LOG"]
    {
        command.env_remove(variable);
    }
    command.env("HOME", libraries).env("PATH", libraries).env("WARPSMITH_LOG", "warn");
    command.envs(settings.iter().copied()).args(["-i", "x_train_*.bin", "-j", "x_val_*.bin"]);
    command.args("--layers 2 --heads 2 --channels 64 -b 2 -t 16 -v 0 -s 0 -x 1".split(' '));
    command.output().unwrap()
}

/// Checks for exit code 2 and one line on standard error that starts with `line`.
#[track_caller]
fn assert_refused(output: &Output, line: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with(&format!("train_gpt2cu: {line}")), "{line}, found\n{said}");
    assert_eq!((said.lines().count(), output.status.code()), (1, Some(2)), "{said}");
}

#[test]
fn a_machine_that_will_not_do_is_one_line_and_exit_code_2() {
    let (corpus, libraries) = (Corpus::new(), stand_ins());
    let path = fs::canonicalize(libraries.path()).unwrap().join("libcuda.so.1").display().to_string();
    for (name, value, line) in [
        (
            "STUB_VERSION",
            "12040",
            format!("--device cuda: the NVIDIA driver ({path}) is for CUDA 12.4; expected 1"),
        ),
        (
            "STUB_INIT",
            "34",
            format!("--device cuda: libcuda of a toolkit's stubs folder was loaded ({path})"),
        ),
        (
            "STUB_CAPABILITY",
            "7",
            "--device cuda: GPU 0 (Stand-in, sm_70) has compute capability 7.0".to_owned(),
        ),
    ] {
        assert_refused(&train(&corpus, libraries.path(), &[(name, value)]), &line);
    }
}

#[test]
#[cfg_attr(not(has_kernels), ignore = "needs nvcc (make nvcc)")]
fn kernels_or_a_library_that_will_not_do_are_one_line_and_exit_code_2() {
    let (corpus, libraries) = (Corpus::new(), stand_ins());
    let output = train(&corpus, libraries.path(), &[("STUB_BINARY", "0")]);
    assert_refused(
        &output,
        "--device cuda: reduce.cu in this program was not compiled for GPU 0 (Stand-in, sm_90)",
    );
    let library = fs::canonicalize(libraries.path()).unwrap().join("libcublasLt.so.13");
    let output = train(&corpus, libraries.path(), &[("STUB_CUBLASLT_VERSION", "111103")]);
    assert_refused(
        &output,
        &format!("--matmul: {} is cuBLASLt 11.11.3: expected cuBLASLt 12", library.display()),
    );
}

/// The kernels of this GPU do nothing, so the run itself may end in any way.
#[test]
#[cfg_attr(not(has_kernels), ignore = "needs nvcc (make nvcc)")]
fn the_start_up_table_says_which_cublaslt_there_is() {
    let (corpus, libraries) = (Corpus::new(), stand_ins());
    let table = |settings: &[(&str, &str)]| {
        String::from_utf8_lossy(&train(&corpus, libraries.path(), settings).stdout).into_owned()
    };
    let library = fs::canonicalize(libraries.path()).unwrap().join("libcublasLt.so.13");
    let row = |value: &str| format!("| {:<21} | {:<50} |", "cuBLASLt", value);
    let found = table(&[]);
    assert!(found.contains(&row(&format!("13.0.2 from {}", library.display()))), "{found}");
    fs::remove_file(library).unwrap();
    let found = table(&[]);
    if !found.contains(" from /usr/") {
        assert!(found.contains(&row("not found: all matmuls are ours")), "{found}");
    }
}
