//! The driver for NVIDIA's GPUs, run against stand-ins for NVIDIA's libraries: everything that can
//! be missing is reported in one line, copies wait for what they must, kernels get their arguments,
//! and cuBLASLt computes what was meant.
//!
//! The loader finds the stand-ins as it finds the real libraries, so each case runs in a process of
//! its own.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/gpus.rs"]
mod gpus;
mod profiler;
mod programs;
mod tuning;
mod version;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use warpsmith::device::cuda::driver::Driver;
use warpsmith::device::cuda::fatbins::{FATBINS, Fatbin};
use warpsmith::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher};
use warpsmith::device::cuda::matmul_library::{BlasEpilogue, BlasGemm, Operands};
use warpsmith::device::cuda::nvidia::{Nvidia, Problem, probe};
use warpsmith::tensor::Dtype;

/// The start of a fat binary, aligned as CUDA's loader reads it.
#[repr(align(64))]
struct Image([u8; 64]);

static IMAGE: Image = {
    let mut bytes = [0; 64];
    let [a, b, c, d] = 0xba55_ed50_u32.to_le_bytes();
    (bytes[0], bytes[1], bytes[2], bytes[3]) = (a, b, c, d);
    Image(bytes)
};

const fn fatbin(file: &'static str, floatx: &'static str) -> Fatbin {
    Fatbin { file, floatx, image: &IMAGE.0 }
}

/// Images for the stand-in, which has its own kernels whatever the images hold.
static OF_THE_STAND_IN: [Fatbin; 5] = [
    fatbin("layernorm.cu", "bf16"),
    fatbin("reduce.cu", "bf16"),
    fatbin("reduce.cu", "f32"),
    fatbin("gelu.cu", "f32"),
    fatbin("matmul_f32.cu", "f32"),
];

/// Compiles the stand-ins into a new directory.
fn stand_ins() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvidia");
    let cuda = dir.path().join("libcuda.so.1");
    for (source, library, needs) in
        [("libcuda.c", "libcuda.so.1", None), ("libcublasLt.c", "libcublasLt.so.13", Some(&cuda))]
    {
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
            .arg(format!("-Wl,-soname,{library}"));
        let output = cc
            .arg(sources.join(source))
            .args(needs)
            .arg("-o")
            .arg(dir.path().join(library))
            .arg("-lm")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    dir
}

/// Runs one of the cases below in a process that finds libraries in `dir`, and returns its output.
fn run(case: &str, dir: &Path, settings: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", case, "--ignored", "--nocapture", "--test-threads=1"]);
    child.env_remove("CUDA_VISIBLE_DEVICES").env_remove("WARPSMITH_LOG").env_remove("RUST_LOG");
    child.env("LD_LIBRARY_PATH", dir).envs(settings.iter().copied());
    let output = child.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_open() {
    let ordinal = std::env::var("ORDINAL").map_or(0, |n| n.parse().unwrap());
    let opened = match std::env::var("SHIPPED") {
        Ok(_) => Nvidia::open(ordinal, Dtype::Bf16),
        Err(_) => Nvidia::with_fatbins(&OF_THE_STAND_IN, ordinal, Dtype::Bf16),
    };
    match opened {
        Ok(nvidia) => println!("opened: {:?} at {}.", nvidia.info(), nvidia.pci_bus_id().unwrap()),
        Err(e) => println!("refused: {e:#}."),
    }
}

#[test]
fn what_is_missing_is_one_line() {
    let dir = stand_ins();
    let expect = |settings: &[(&str, &str)], line: &str| {
        let said = run("case_open", dir.path(), settings);
        assert!(said.contains(&format!("refused: {line}")), "{settings:?}: expected {line}, found\n{said}");
    };
    let cuda = std::fs::canonicalize(dir.path()).unwrap().join("libcuda.so.1");
    let old = format!("the NVIDIA driver ({}) is for CUDA 12.4; expected 1", cuda.display());
    expect(&[("STUB_VERSION", "12040")], &old);
    let stub = format!(
        "libcuda of a toolkit's stubs folder was loaded ({}), which is not a driver; remove .../stubs from LD_LIBRARY_PATH.",
        cuda.display()
    );
    expect(&[("STUB_INIT", "34")], &stub);
    let other = "reduce.cu in this program was not compiled for GPU 1 (Stand-in, sm_80); build again without KERNEL_ARCHES";
    let ampere = [("STUB_BINARY", "0"), ("STUB_CAPABILITY", "8"), ("ORDINAL", "1"), ("STUB_DEVICES", "2")];
    expect(&ampere, other);
    expect(&[("STUB_DEVICES", "0")], "no NVIDIA GPU: the driver found none.");
    let hidden = [("STUB_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "7")];
    expect(&hidden, "no NVIDIA GPU: the driver found none (CUDA_VISIBLE_DEVICES=7).");
    expect(&[("ORDINAL", "2"), ("STUB_DEVICES", "2")], "GPU 2: this machine shows 2, numbered from 0.");
    expect(
        &[("STUB_CAPABILITY", "7")],
        "GPU 0 (Stand-in, sm_70) has compute capability 7.0; expected 8.0 or newer.",
    );
    if FATBINS.is_empty() {
        let why = warpsmith::device::cuda::fatbins::WHY_NONE;
        expect(&[("SHIPPED", "1")], &format!("this program has no kernels for GPUs ({why})"));
    }
    let empty = tempfile::tempdir().unwrap();
    if probe() == Err(Problem::NoDriver) {
        let said = run("case_open", empty.path(), &[]);
        let line = "refused: no NVIDIA driver: libcuda.so.1 was not found; install NVIDIA's driver.";
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn a_gpu_is_described() {
    let opened = |settings: &[(&str, &str)]| {
        let said = run("case_open", stand_ins().path(), settings);
        said.lines().find(|line| line.contains("opened: ")).expect("a GPU").to_owned()
    };
    let said = opened(&[]);
    if !FATBINS.is_empty() {
        assert_eq!(opened(&[("SHIPPED", "1")]), said);
    }
    for part in [
        "name: \"Stand-in\"",
        "capability: (9, 0)",
        "sm_count: 132",
        "shared_bytes: 232448",
        "at 0000:65:00.0.",
    ] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
}

fn open() -> Nvidia {
    Nvidia::with_fatbins(&OF_THE_STAND_IN, 0, Dtype::Bf16).unwrap()
}

fn noise(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|i| ((i + seed).wrapping_mul(2654435761) >> 13) as u8).collect()
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_copies() {
    let mut gpu = open();
    let bytes = (37 << 20) + 12345;
    let address = gpu.allocate(bytes).unwrap();
    let mut found = vec![1; bytes];
    gpu.download(&mut found, address).unwrap();
    assert!(found.iter().all(|b| *b == 0), "memory is zeroed");
    // More pieces than there are buffers, and the source changes as soon as the call returns.
    let mut source = noise(bytes, 0);
    gpu.upload(address, &source).unwrap();
    source.fill(0);
    for i in 0..100 {
        let mut batch = noise(999, i);
        gpu.upload(address + 1000 * i as u64, &batch).unwrap();
        batch.fill(0);
    }
    gpu.clear(address + 5_000_000, 77).unwrap();
    // Queued after the write of its source and before the next one.
    gpu.copy(address + 7_000_000, address + 1000, 3000).unwrap();
    gpu.copy(address + 8_000_000, address, 0).unwrap();
    gpu.upload(address + 1000, &[3; 10]).unwrap();
    gpu.download(&mut found, address).unwrap();
    let mut expected = noise(bytes, 0);
    for i in 0..100 {
        expected[1000 * i..][..999].copy_from_slice(&noise(999, i));
    }
    expected[5_000_000..][..77].fill(0);
    expected.copy_within(1000..4000, 7_000_000);
    expected[1000..1010].fill(3);
    assert!(found == expected);
    gpu.allocate(0).unwrap();
    let error = format!("{:#}", gpu.allocate(2 << 30).unwrap_err());
    assert_eq!(error, "out of GPU memory: 512 of 1024 MiB are free");
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_graphs() {
    let mut gpu = open();
    let [a, b, c] = [0; 3].map(|_| gpu.allocate(100).unwrap());
    let fill = |gpu: &mut Nvidia, value| gpu.upload(a, &[value; 100]).unwrap();
    let held = |gpu: &mut Nvidia| {
        let mut found = [[9u8; 100]; 2];
        gpu.download(&mut found[0], b).unwrap();
        gpu.download(&mut found[1], c).unwrap();
        found.map(|bytes| (bytes[0], bytes[99]))
    };
    let capture = |gpu: &mut Nvidia, value| {
        gpu.begin_capture().unwrap();
        gpu.copy(b, a, 100).unwrap();
        gpu.set_bytes(c, value, 50).unwrap();
        gpu.copy(c + 50, b, 50).unwrap();
    };
    fill(&mut gpu, 1);
    capture(&mut gpu, 7);
    let one = gpu.end_capture().unwrap();
    capture(&mut gpu, 8);
    let other = gpu.end_capture().unwrap();
    assert_eq!(held(&mut gpu), [(0, 0); 2], "nothing ran yet");
    for (value, graph, set) in [(2, one, 7), (3, one, 7), (4, other, 8), (5, one, 7)] {
        fill(&mut gpu, value);
        gpu.launch_graph(graph).unwrap();
        assert_eq!(held(&mut gpu), [(value, value), (set, value)]);
    }
    // Waiting cannot be captured, and the GPU goes on after the error.
    gpu.begin_capture().unwrap();
    let error = format!("{:#}", gpu.synchronize().unwrap_err());
    assert!(error.starts_with("waiting for the GPU"), "{error}");
    gpu.end_capture().unwrap();
    assert_eq!(held(&mut gpu), [(5, 5), (7, 5)]);
    assert!(gpu.end_capture().is_err());
    // A graph can have a kernel.
    gpu.begin_capture().unwrap();
    gpu.launch(&KERNEL, Launch::new(3, 32), &[]).unwrap();
    gpu.end_capture().unwrap();
}

#[test]
fn graphs_repeat_what_was_captured() {
    run("case_graphs", stand_ins().path(), &[]);
}

static KERNEL: KernelSpec = KernelSpec { name: "layernorm_forward", file: "layernorm.cu", params: &[] };
static ABSENT: KernelSpec = KernelSpec { name: "absent", file: "layernorm.cu", params: &[] };
static NO_FILE: KernelSpec = KernelSpec { name: "kernel", file: "nowhere.cu", params: &[] };

#[test]
#[ignore = "runs in a process of its own"]
fn case_launches() {
    let mut gpu = open();
    let (a, b, c) = (0x1234_5678_9abc_u64, -7i32, 1.5f32);
    let args = [Arg::new(&a), Arg::new(&b), Arg::new(&c)];
    gpu.launch(&KERNEL, Launch::grid([5, 6, 7], 128).programmatic(), &args).unwrap();
    gpu.launch(&KERNEL, Launch::new(3, 64).shared(100 << 10), &args).unwrap();
    gpu.launch(&KERNEL, Launch::new(3, 64).shared(60 << 10), &args).unwrap();
    for (kernel, args, error) in [
        (
            &ABSENT,
            &args[..],
            "absent: looking for it in layernorm.cu: CUDA_ERROR_NOT_FOUND (named symbol not found)",
        ),
        (&NO_FILE, &args[..], "kernel: nowhere.cu was not compiled for bf16"),
    ] {
        let found = format!("{:#}", gpu.launch(kernel, Launch::new(1, 32), args).unwrap_err());
        assert_eq!(found, error);
    }
    gpu.start_timer().unwrap();
    gpu.launch(&KERNEL, Launch::new(1, 32), &args).unwrap();
    assert_eq!(gpu.stop_timer().unwrap(), Some(0.0));
    gpu.stamp().unwrap();
    gpu.set_bytes(0x1000, 0, 0).unwrap();
    gpu.stamp().unwrap();
    assert_eq!(gpu.take_stamps().unwrap(), [Duration::ZERO; 2]);
    assert_eq!(gpu.take_stamps().unwrap(), []);
    gpu.synchronize().unwrap();
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_wrong_arguments() {
    let mut gpu = open();
    let found = format!(
        "{:#}",
        gpu.launch(&KERNEL, Launch::new(1, 32), &[Arg::new(&1u64), Arg::new(&1u64)]).unwrap_err()
    );
    assert_eq!(found, "layernorm_forward: its parameters have [8, 4] bytes, the arguments [8, 8]");
}

#[test]
fn copies_keep_their_order() {
    run("case_copies", stand_ins().path(), &[]);
}

#[test]
fn kernels_get_their_geometry_and_arguments() {
    let dir = stand_ins();
    let said = run("case_launches", dir.path(), &[("STUB_PARAMS", "844")]);
    let values = format!("{} {} {}", 0x1234_5678_9abc_u64, -7i32 as u32, 1.5f32.to_bits());
    let mut expected = String::new();
    let _ = writeln!(expected, "layernorm_forward <<<5 6 7, 128 1 1, 0>>> early {values}");
    let _ = writeln!(expected, "layernorm_forward attribute 9 = 100");
    let _ = writeln!(expected, "layernorm_forward attribute 8 = 102400");
    let _ = writeln!(expected, "layernorm_forward <<<3 1 1, 64 1 1, 102400>>> {values}");
    let _ = writeln!(expected, "layernorm_forward <<<3 1 1, 64 1 1, 61440>>> {values}");
    let _ = writeln!(expected, "layernorm_forward <<<1 1 1, 32 1 1, 0>>> {values}");
    assert!(said.contains(&expected), "expected\n{expected}found\n{said}");
    run("case_wrong_arguments", dir.path(), &[("STUB_PARAMS", "84")]);
}

/// Opens GPUs as the hundreds of cases of a test program do, each in a thread of its own.
#[test]
#[ignore = "runs in a process of its own"]
fn case_one_after_another() {
    let use_one = |dtype| {
        let mut gpu = gpus::take(dtype, || Nvidia::open(0, dtype)).unwrap();
        let address = gpu.allocate(1000).unwrap();
        gpu.upload(address, &[1; 1000]).unwrap();
        let mut found = [1; 1000];
        gpu.download(&mut found, address).unwrap();
        assert_eq!(found, [1; 1000]);
        gpu.launch(&KERNEL, Launch::new(1, 32), &[]).unwrap();
    };
    for _ in 0..20 {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            std::thread::scope(|scope| scope.spawn(|| use_one(dtype)).join().unwrap());
        }
    }
    let _at_once = [open_idle(), open_idle()];
}

fn open_idle() -> gpus::Gpu {
    gpus::take(Dtype::Bf16, || Nvidia::open(0, Dtype::Bf16)).unwrap()
}

/// Making a context of a real GPU takes a fifth of a second, and loading its kernels as long again.
#[test]
#[cfg_attr(not(has_kernels), ignore = "needs nvcc (make nvcc)")]
fn a_test_program_has_one_context_for_a_type() {
    let said = run("case_one_after_another", stand_ins().path(), &[("STUB_TELL", "1")]);
    let count = |words: &str| said.matches(words).count();
    // One per type, and one for a case that has two at once.
    assert_eq!(count("context of GPU 0"), 4, "{said}");
    // Each loads one module when it is opened, and all but the last that of the launched kernel.
    assert_eq!(count("module loaded"), 4 + 3, "{said}");
    assert_eq!(count("layernorm_forward <<<"), 60, "{said}");
}

/// Returns D of a GEMM by its definition.
fn reference(p: &BlasGemm, [a, b, c, bias]: [&[f32]; 4]) -> Vec<f32> {
    let mut d = Vec::new();
    for i in 0..p.m {
        for j in 0..p.n {
            let a_at = |l: usize| if p.a_transposed { a[l * p.m + i] } else { a[i * p.k + l] };
            let b_at = |l: usize| if p.b_transposed { b[j * p.k + l] } else { b[l * p.n + j] };
            let mut sum: f32 = (0..p.k).map(|l| a_at(l) * b_at(l)).sum();
            sum += if p.adds_c { c[i * p.n + j] } else { 0.0 };
            d.push(match p.epilogue {
                BlasEpilogue::None => sum,
                BlasEpilogue::Bias => sum + bias[j],
            });
        }
    }
    d
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_gemms() {
    let mut gpu = open();
    println!("cuBLASLt {}.", gpu.matmul_library().unwrap().describe());
    let (m, n, k) = (5, 8, 3);
    let random = |len: usize, seed: usize| -> Vec<f32> {
        noise(len, seed).into_iter().map(|b| f32::from(b) / 128.0 - 1.0).collect()
    };
    let host = [m * k, k * n, m * n, n].map(|len| random(len, len));
    let mut put = |values: &[f32]| {
        let address = gpu.allocate(values.len() * 4).unwrap();
        gpu.upload(address, bytemuck::cast_slice(values)).unwrap();
        address
    };
    let [a, b, c, bias] = [0, 1, 2, 3].map(|i| put(&host[i]));
    let d = put(&vec![f32::NAN; m * n]);
    let epilogues = [BlasEpilogue::None, BlasEpilogue::Bias];
    for case in 0..16 {
        let bit = |n: usize| case >> n & 1 == 1;
        let (a_transposed, b_transposed, adds_c) = (bit(0), bit(1), bit(2));
        let (dtype, tf32, epilogue) = (Dtype::F32, bit(0), epilogues[case / 8]);
        let p = BlasGemm { m, n, k, a_transposed, b_transposed, dtype, tf32, adds_c, epilogue };
        gpu.synchronize().unwrap();
        let operands = Operands { d, a, b, c: if adds_c { c } else { 0 }, bias };
        let library = gpu.matmul_library().unwrap();
        library.matmul(&p, &operands).unwrap();
        let expected = reference(&p, [0, 1, 2, 3].map(|i| &host[i][..]));
        let mut found = vec![0.0f32; m * n];
        gpu.download(bytemuck::cast_slice_mut(&mut found), d).unwrap();
        let close = found.iter().zip(&expected).all(|(x, y)| (x - y).abs() <= 1e-3);
        assert!(close, "{p}:\n{found:?}\n{expected:?}");
        assert!(gpu.matmul_library().unwrap().tune(&p, &operands).unwrap() >= 0.0);
        gpu.matmul_library().unwrap().matmul(&p, &operands).unwrap();
    }
    let (dtype, tf32, epilogue) = (Dtype::F16, false, BlasEpilogue::None);
    let [a_transposed, b_transposed, adds_c] = [false; 3];
    let p = BlasGemm { m, n, k, a_transposed, b_transposed, dtype, tf32, adds_c, epilogue };
    let operands = Operands { d, a, b, ..Operands::default() };
    let error = gpu.matmul_library().unwrap().matmul(&p, &operands).unwrap_err().to_string();
    assert!(error.contains("no algorithm") && error.contains("NOT_SUPPORTED"), "{error}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_no_cublaslt() {
    println!("refused: {}.", open().matmul_library().err().expect("no library is there"));
}

/// Copies cuBLASLt to the folder of a Python where pip puts it, which no loader searches.
fn in_python(prefix: &Path, library: &Path) -> PathBuf {
    let folder = prefix.join("lib/python3.12/site-packages/nvidia/cu13/lib");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(library, folder.join("libcublasLt.so.13")).unwrap();
    folder.join("libcublasLt.so.13")
}

#[test]
fn cublaslt_computes_what_was_meant_wherever_it_is() {
    let dir = stand_ins();
    let root = fs::canonicalize(dir.path()).unwrap();
    let expect = |settings: &[(&str, &str)], path: &Path| {
        let said = run("case_gemms", &root, settings);
        let line = format!("cuBLASLt 13.0.2 from {}.", path.display());
        assert!(said.contains(&line), "{line} in\n{said}");
    };
    let loaders = root.join("libcublasLt.so.13");
    expect(&[], &loaders);
    // Named, as it is not on the loader's path.
    let named = root.join("elsewhere/libcublasLt.so.13");
    fs::create_dir(root.join("elsewhere")).unwrap();
    fs::rename(loaders, &named).unwrap();
    expect(&[("WARPSMITH_CUBLASLT", named.to_str().unwrap())], &named);
    let said = run("case_no_cublaslt", &root, &[("WARPSMITH_CUBLASLT", "/nowhere/libcublasLt.so.13")]);
    assert!(said.contains("refused: WARPSMITH_CUBLASLT=/nowhere/libcublasLt.so.13"), "{said}");
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let prefix = root.join(variable);
        let path = in_python(&prefix, &named);
        expect(&[(variable, prefix.to_str().unwrap())], &path);
    }
    // Neither variable names this Python, but a shell would find it; its packages are where its
    // link leads.
    let (base, venv) = (root.join("base"), root.join("venv"));
    let path = in_python(&base, &named);
    for bin in [base.join("bin"), venv.join("bin")] {
        fs::create_dir_all(bin).unwrap();
    }
    fs::write(base.join("bin/python3.12"), "").unwrap();
    symlink(base.join("bin/python3.12"), venv.join("bin/python3")).unwrap();
    let bin = venv.join("bin");
    expect(&[("PATH", bin.to_str().unwrap())], &path);
    let path = in_python(&venv, &named);
    expect(&[("PATH", bin.to_str().unwrap())], &path);
}

#[test]
fn another_cublaslt_is_named_with_its_version_and_path() {
    let dir = stand_ins();
    let path = fs::canonicalize(dir.path()).unwrap().join("libcublasLt.so.13");
    let refused = |settings: &[(&str, &str)], line: &str| {
        let said = run("case_no_cublaslt", dir.path(), settings);
        assert!(said.contains(&format!("refused: {line}")), "{line} in\n{said}");
    };
    let expected = "expected cuBLASLt 12.0.0 or newer, below 14.0.0; install it (pip install nvidia-cublas), or name another in \
                    WARPSMITH_CUBLASLT.";
    for (version, shown) in [("111103", "11.11.3"), ("140000", "14.0.0")] {
        let line = format!("{} is cuBLASLt {shown}: {expected}", path.display());
        refused(&[("STUB_CUBLASLT_VERSION", version)], &line);
    }
    let other = dir.path().join("libcuda.so.1").display().to_string();
    let line = format!("{other} has no cublasLtGetVersion: {expected}");
    refused(&[("WARPSMITH_CUBLASLT", &other)], &line);
    // With two that differ, the loader's would be called and the named one shown.
    fs::copy(&path, dir.path().join("libcublasLt.so")).unwrap();
    let named = path.to_str().unwrap();
    refused(&[("WARPSMITH_CUBLASLT", named)], &format!("{named} is not the cuBLASLt that the loader has"));
}
