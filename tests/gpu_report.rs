//! Runs `dev/gpu_report.sh` with stand-ins that hang, crash and fail as our programs may on an
//! unknown GPU. None stops the others, each is named, and earlier results are kept.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// All programs of the report in one script, which checks its name.
const PROGRAMS: &str = r#"#!/bin/bash
[ -z "${CALLS:-}" ] || echo "${0##*/} $*" >>"$CALLS"
case ${0##*/} in
timeout) shift 3; exec "$@" ;;
nvidia-smi) echo 'NVIDIA H200, 580.1, 143771 MiB, 700.00 W, 1980 MHz' ;;
probes) case $1 in
    --list) printf 'mma::f16: test\ngolden_files: test\nwgmma::bf16: test\nmma::bf16: test\n' ;;
    *) echo 'test result: ok. 3 passed; 0 failed; 0 ignored' ;;
    esac ;;
nccl) printf 'real: loaded: /usr/lib/libnccl.so.2 22707.\ntest result: ok. 1 passed; 0 failed; 9 ignored\n' ;;
kernels) case "${HANGS:+ $* }" in
    *" gelu:: "*) printf 'test gelu::extremes ... ok\ntest gelu::forward ... '; exec sleep 60 ;;
    *" reduce:: "*) printf 'test reduce::sum ... '; kill -SEGV $$ ;;
    esac
    case $1 in
    --list) printf 'adamw::step: test\nattention::one_token: test\nmatmul::bf16: test\nmatmul::hopper_tiles: test\nharness::tests::ok: test\n' ;;
    *) echo 'test result: ok. 2 passed; 0 failed; 0 ignored' ;;
    esac ;;
bench) echo "info: matmul forward, bias 64 x 64 x 192 bf16 (fastest): matmul_64x64, 0.010 ms"
    echo 'warning: matmul_hopper_dgrad_128x256 is left out for dgrad 65536 x 768 x 2304: its result is wrong: dinp' >&2
    printf 'NVIDIA H200, bf16; B 64, T 1024\ncuBLASLt 13.0.2 from /usr/lib\n\n'
    printf '| kernel | us |\n|---|--:|\n| qkv forward | 1 |\n\nWRONG: qkv dgrad\n'
    printf '\nqkv forward: matmul forward, bias 65536 x 768 x 2304 bf16 (fastest): matmul_128x256, 0.402 ms\n'; exit 1 ;;
warpsmith) [ "$1" != stories ] || { mkdir -p "$3"; touch "$3/stories_train_000001.bin"; }
    echo "warpsmith $*" ;;
train_gpt2*)
    while [ "$1" != -o ]; do shift; done
    mkdir -p "$2"
    touch "$2/model.bin"
    case $* in *--profile*) printf 'profile of steps 3:4\noperation  ms\n' >"$2/profile.txt" ;; esac
    printf 's:0 trl:10.5\ns:1 trl:10.25\n' >"$2/main.log"
    echo '| cuBLASLt              | 13.0.2 from /usr/lib                               |'
    echo "log level ${WARPSMITH_LOG:-none}"
    echo 'info: matmul forward, bias 65536 x 768 x 2304 bf16 (own): matmul_hopper_forward_128x256, 0.312 ms, 742.9 TFLOP/s' >&2
    echo 'info: matmul forward, bias, gelu 65536 x 768 x 3072 bf16 (own): GELU apart; fused 0.9 ms, apart 0.6 ms and GELU 0.2 ms' >&2
    echo 'warning: matmul_hopper_wgrad_128x256 is left out for wgrad, bias 65536 x 768 x 2304: it is refused: no' >&2
    for step in 1 2 3; do echo "step $step/3 | loss 10.$step (+nanz)| norm 3.5 (+nanz)| lr 5.00e-05 | 13$step.00 ms | n/a MFU | 7634 tok/s"; done ;;
esac
"#;

struct Report {
    dir: tempfile::TempDir,
}

impl Report {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, PROGRAMS).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for name in [
            "probes",
            "kernels",
            "nccl",
            "bench",
            "train_gpt2",
            "train_gpt2cu",
            "warpsmith",
            "nvidia-smi",
            "timeout",
            "compute-sanitizer",
        ] {
            symlink(&program, dir.path().join("bin").join(name)).unwrap();
        }
        Report { dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn command(&self, steps: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("dev/gpu_report.sh"));
        command.arg(self.out()).args(steps.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
            .env("BIN", self.dir.path().join("bin"))
            .env("DEVICE", "emulated")
            .env("PYTHON", "/nowhere/python")
            .env_remove("WARPSMITH_LOG");
        command.env("LIMIT_kernels", "20").env("LIMIT_sanitizer", "7");
        command
    }

    fn page(&self) -> String {
        fs::read_to_string(self.out().join("REPORT.md")).unwrap()
    }

    /// Returns the names in the archive of results, one per line.
    fn saved(&self) -> String {
        let output = Command::new("tar").arg("-tzf").arg(self.out().join("report.tgz")).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

#[track_caller]
fn assert_lines(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|found| found.starts_with(line)), "{line}\nin\n{page}");
    }
}

#[test]
fn a_part_that_hangs_or_crashes_is_named_and_the_rest_runs() {
    let report = Report::new();
    // The last five seconds are for processes that ignore the signal to end.
    let output = report.command("").env("HANGS", "1").env("LIMIT_kernels", "9").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("limits in seconds: machine 20, probes 20, kernels 9, bench 85"), "{said}");
    let page = report.page();
    assert_lines(
        &page,
        &[
            "| probes | ok |",
            "| kernels | FAILED |",
            "| kernels-gelu |  |  | FAILED, timed out after 4 s | ",
            "| kernels-reduce |  |  | FAILED, not run: kernels was out of time | 0 |",
            "Started but not finished: `gelu::forward`.",
            "| bench | FAILED |",
            "WRONG: qkv dgrad",
            "| parity | ok |",
            "| bf16 | 2 | 0.00e+00 | 1e-2 |",
            "| ge2 | 3 | 10.1 | 10.3 | 132.00 | 132.00 | 7634 | n/a |",
            "| cublaslt | not run: the emulated device has no cuBLASLt |",
            "| torch | absent |",
            "Not run: /nowhere/python has no PyTorch; set PYTHON to one that does.",
            "| probes-mma | 3 | 0 | ok |",
            "| probes-wgmma | 3 | 0 | ok |",
        ],
    );
    let saved = report.saved();
    assert!(saved.contains("./REPORT.md") && saved.contains("./kernels-gelu.log"), "{saved}");
    assert!(!saved.contains(".bin"), "{saved}");
}

#[test]
fn a_crash_is_not_laid_to_other_modules() {
    let report = Report::new();
    let output = report.command("kernels").env("HANGS", "1").env("KERNELS", "reduce adamw").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_lines(
        &report.page(),
        &[
            "| kernels-reduce |  |  | FAILED | 0 |",
            "Started but not finished: `reduce::sum`.",
            "| kernels-adamw | 2 | 0 | ok |",
        ],
    );
}

/// The programs that a report on a GPU starts, with their arguments.
fn expected_calls(out: &Path) -> Vec<String> {
    let data = |tokens| {
        let data = out.join("data").join(tokens);
        format!("-i {0}/*_train_*.bin -j {0}/*_val_*.bin", data.display())
    };
    let (out, small, large) = (out.display(), data("200000"), data("6000000"));
    let d12 = |name: &str, rest: &str| {
        format!(
            "train_gpt2cu {large} -o {out}/run-d12-{name} -v 0 -s 0 --device cuda -e d12 -b 64 -t 1024 -d 524288 -r 0 {rest}"
        )
    };
    let tiny = "--layers 2 --heads 2 --channels 128 -b 2 -t 64 -x 20 -l 3e-4";
    vec![
        "probes --list".to_owned(),
        "probes --test-threads 1 --exact mma::f16 mma::bf16".to_owned(),
        "probes --test-threads 1 --exact wgmma::bf16".to_owned(),
        "kernels --list".to_owned(),
        "kernels --test-threads 1 matmul::hopper".to_owned(),
        "kernels --test-threads 1 matmul_waves::hopper".to_owned(),
        "kernels --test-threads 1 attention:: --skip hopper".to_owned(),
        "kernels --test-threads 1 matmul:: --skip hopper".to_owned(),
        "nccl --ignored --test-threads 1 one_rank".to_owned(),
        format!(
            "bench --bench --device cuda -e d12 -b 64 -t 1024 --reps 10 --gelu-fusion 2 --record {out}/record"
        ),
        format!("warpsmith stories -o {out}/data/200000 --tokens 200000 --force"),
        format!("train_gpt2 {small} -o {out}/run-cpu -v 0 -s 0 {tiny}"),
        format!("train_gpt2cu {small} -o {out}/run-f32 -v 0 -s 0 --device cuda --dtype f32 -f 0 {tiny}"),
        format!("train_gpt2cu {small} -o {out}/run-fp16 -v 0 -s 0 --device cuda --dtype fp16 {tiny}"),
        format!("warpsmith stories -o {out}/data/6000000 --tokens 6000000 --force"),
        d12("default", "-x 20 -lg 5"),
        d12("no-graphs", "-x 10 --cuda-graphs 0 --profile 3:4"),
        d12("ge2", "-x 10 -ge 2"),
        d12("own", "-x 10 -ge 2 --matmul own"),
        d12("cublaslt", "-x 10 -ge 0 --matmul cublaslt"),
    ]
}

/// Uses programs that only record their arguments; nvidia-smi is one of them.
#[test]
fn on_a_gpu_each_step_calls_what_it_should() {
    let report = Report::new();
    let calls = report.dir.path().join("calls");
    let path = format!("{}:{}", report.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = report.command("");
    // These programs end at once, so the usual limits apply.
    command.env_remove("LIMIT_kernels").env_remove("LIMIT_sanitizer");
    let output = command.env("DEVICE", "cuda").env("PATH", path).env("CALLS", &calls).output().unwrap();
    let calls = fs::read_to_string(calls).unwrap();
    // In this order, possibly with other calls in between.
    let mut rest = calls.lines();
    for call in &expected_calls(&fs::canonicalize(report.out()).unwrap()) {
        assert!(rest.any(|line| line == call), "expected next\n{call}\nfound\n{calls}");
    }
    let sanitizer = ["memcheck", "synccheck", "racecheck"]
        .map(|tool| format!("compute-sanitizer --error-exitcode 1 --tool {tool} "));
    for call in sanitizer {
        assert!(calls.lines().any(|line| line.starts_with(&call) && line.contains("heads_of_64")), "{calls}");
    }
    // The stand-in for bench reports a wrong kernel.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_lines(
        &report.page(),
        &[
            "# GPU report: NVIDIA H200, 580.1, 143771 MiB, 700.00 W, 1980 MHz",
            "| kernels-matmul-hopper | 2 | 0 | ok |",
            "| kernels-nccl | 1 | 0 | ok |",
            "| bench | FAILED |",
            "| train | ok |",
            "    profile of steps 3:4",
            "Timeline for ui.perfetto.dev: `run-d12-no-graphs/profile.json`.",
            "| cublaslt | 3 | 10.1 | 10.3 |",
            "| racecheck | no fault |",
        ],
    );
    let said = String::from_utf8_lossy(&output.stdout);
    let seconds = |before: &str, text: &str| -> u32 {
        let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{before:?} in {text}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let parts = calls.lines().filter(|line| line.starts_with("timeout ") && line.contains("time_steps"));
    // The last five seconds of a step are for a part that ignores the signal to end.
    assert_eq!(parts.map(|line| seconds("timeout -k 5 ", line)).sum::<u32>() + 5, seconds("train ", &said));
    assert!(seconds("; ", &said) < 600, "{said}");
}

/// A step that runs only if it is named, and needs a tool that few machines have.
#[test]
fn nsight_systems_records_two_steps_where_it_is_installed() {
    let report = Report::new();
    let system = ["/usr/bin", "/bin"];
    if !system.iter().any(|dir| Path::new(dir).join("nsys").exists()) {
        let output = report.command("nsys").env("PATH", system.join(":")).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_lines(&report.page(), &["| nsys | absent |", "Not run: nsys not found."]);
    }

    let tools = report.dir.path().join("tools");
    fs::create_dir(&tools).unwrap();
    let nsys = "#!/bin/bash\n[ $1 = stats ] && echo \"table: $*\" && exit\n\
                [ \"${*:2:7}\" = \"-t cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop -f true -o\" ] || exit 1\n\
                exec \"${@:10}\"\n";
    fs::write(tools.join("nsys"), nsys).unwrap();
    fs::set_permissions(tools.join("nsys"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", tools.display());
    let output = report.command("nsys").env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let steps = report.out().join("steps.nsys-rep");
    let table = format!("    table: stats --report nvtx_gpu_proj_sum,cuda_gpu_kern_sum {}", steps.display());
    assert_lines(&report.page(), &["| nsys | ok |", "    step 3/3 | loss 10.3 ", &table]);
    assert!(report.out().join("run-nsys/profile.txt").exists());
}

/// The kernels that tuning rejected come first, then the chosen ones; the library is the one that
/// programs report.
#[test]
fn the_page_shows_warnings_then_plans() {
    let report = Report::new();
    let output = report.command("machine bench train").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let page = report.page();
    let shown = |part: &str, lines: &[&str]| {
        let section = format!("\nKernels in `{part}`:\n\n    {}\n", lines.join("\n    "));
        assert!(page.contains(&section), "{section}\nin\n{page}");
    };
    shown(
        "bench",
        &[
            "warning: matmul_hopper_dgrad_128x256 is left out for dgrad 65536 x 768 x 2304: its result is wrong: dinp",
            "qkv forward: matmul forward, bias 65536 x 768 x 2304 bf16 (fastest): matmul_128x256, 0.402 ms",
        ],
    );
    for part in ["train-default", "train-no-graphs", "train-ge2", "train-own"] {
        shown(
            part,
            &[
                "warning: matmul_hopper_wgrad_128x256 is left out for wgrad, bias 65536 x 768 x 2304: it is refused: no",
                "info: matmul forward, bias 65536 x 768 x 2304 bf16 (own): matmul_hopper_forward_128x256, 0.312 ms, 742.9 TFLOP/s",
                "info: matmul forward, bias, gelu 65536 x 768 x 3072 bf16 (own): GELU apart; fused 0.9 ms, apart 0.6 ms and GELU 0.2 ms",
            ],
        );
    }
    assert!(!page.contains("64 x 64 x 192"), "found a plan of the small sizes in\n{page}");
    let libraries = page.lines().filter(|line| line.starts_with("| cuBLASLt |"));
    assert_eq!(libraries.collect::<Vec<_>>(), ["| cuBLASLt | 13.0.2 from /usr/lib |"]);
    let log = fs::read_to_string(report.out().join("train-default.log")).unwrap();
    assert!(log.contains("log level info"), "{log}");
}

/// The script changes to its own folder, but given paths stay relative to the caller.
#[test]
fn paths_are_those_of_the_caller() {
    let report = Report::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("dev/gpu_report.sh");
    let mut command = Command::new(script);
    command.args(["here", "bench"]).current_dir(report.dir.path());
    command.envs([
        ("BIN", "bin"),
        ("SAVE", "saved.tgz"),
        ("DEVICE", "emulated"),
        ("PYTHON", "/nowhere/python"),
    ]);
    let output = command.output().unwrap();
    for file in ["here/REPORT.md", "here/bench.log", "saved.tgz"] {
        assert!(report.dir.path().join(file).is_file(), "no {file}: {output:?}");
    }
}

/// Simulates a machine that is taken away.
#[test]
fn a_report_that_is_killed_has_saved_all_steps_before() {
    let report = Report::new();
    let mut child =
        report.command("machine probes kernels").env("HANGS", "1").process_group(0).spawn().unwrap();
    let began = Instant::now();
    while !report.out().join("kernels-gelu.log").exists() {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
    child.wait().unwrap();
    let saved = report.saved();
    assert!(saved.contains("./machine.log") && saved.contains("./probes-mma.log"), "{saved}");
    assert_lines(
        &report.page(),
        &["| machine | ok |", "| probes | ok |", "| kernels | not run | |", "Not run."],
    );
}

#[test]
fn bad_words_are_one_line() {
    let report = Report::new();
    let refused = |command: &mut Command, line: &str| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(line), "{output:?}");
    };
    refused(&mut report.command("trian"), "gpu_report: trian: expected one of: machine probes kernels");
    refused(
        report.command("probes").env("LIMIT_probes", "long"),
        "gpu_report: LIMIT_probes=long: expected seconds",
    );
    refused(report.command("").env("BIN", "/nowhere"), "gpu_report: expected /nowhere/probes; make");
}
