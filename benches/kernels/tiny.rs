//! The part that `cargo test` runs: every case at tiny sizes on the emulated device.

use crate::args::Args;
use crate::bench::{self, Bench, Measured, Measurement, Outcome, Times};
use crate::cases::{self, Case};
use crate::counted;
use crate::record::{self, Device, Peer};
use crate::report::{self, Row};
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;
use warpsmith::device::cuda::MatmulChoice;
use warpsmith::roofline::gpu::{GPUS, Gpu};
use warpsmith::roofline::record::Records;
use warpsmith::tensor::Dtype;

/// The commands that write the records to compare with. The second has other lengths of sums and of
/// sequences, so that `warpsmith roofline` can separate costs per output from costs per FLOP. The
/// third has whole tiles of all matmuls.
const RUNS: [&str; 3] = [
    "cargo test --locked --bench kernels -- --bench --device emulated -e tiny -b 2 -t 64 --gelu-fusion 2",
    "cargo test --locked --bench kernels -- --bench --device emulated -e tiny -b 2 -t 256 --only attention,wgrad \
     --out benches/record/emulated/tiny-b2-t256-bf16-kernels.json",
    "cargo test --locked --bench kernels -- --bench --device emulated -e tiny-wide -b 4 -t 64 --only qkv,attproj,fc \
     --gelu-fusion 2",
];

/// Name of the test, for filters.
const NAME: &str = "tiny_kernels";

/// `argv` holds the arguments of a test program: options, and parts of test names.
pub fn main(argv: &[OsString]) -> ExitCode {
    let filters: Vec<_> =
        argv.iter().skip(1).filter_map(|arg| arg.to_str()).filter(|a| !a.starts_with('-')).collect();
    if argv.iter().any(|arg| arg == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter)) {
        return ExitCode::SUCCESS;
    }
    record::check();
    counted::check();
    tables_are_filled();
    a_library_may_round_a_product_that_it_adds();
    if !cfg!(emulated) {
        println!("{NAME}: no emulated device here: skipped");
        return ExitCode::SUCCESS;
    }
    faults_are_noticed();
    // All run before the verdict: anyone who renews records wants to see all differences.
    let failures = RUNS.map(failures).concat();
    if failures.is_empty() {
        println!("test {NAME} ... ok");
        return ExitCode::SUCCESS;
    }
    println!("test {NAME} ... FAILED\n\nfailures:\n\n{failures}\ntest result: FAILED.");
    ExitCode::FAILURE
}

/// Runs a command; returns a text that is empty if all kernels are correct and their counts match
/// the record.
fn failures(command: &str) -> String {
    let args = args_of(command);
    let (_, rows) = crate::measure(&args).expect("an emulated device");
    let wrong = rows.iter().filter(|row| !matches!(row.outcome, Outcome::Right(_))).count();
    let differences =
        counted::differences(&counted::path(&args), &rows).unwrap_or_else(|e| vec![format!("{e:#}")]);
    println!("{NAME}: {} kernels, {wrong} wrong, {} differ from the record", rows.len(), differences.len());
    if wrong == 0 && differences.is_empty() {
        return String::new();
    }
    println!("\n{}", report::counted(&rows));
    let lines: String = differences.iter().map(|line| format!("{line}\n")).collect();
    format!("{}{lines}to accept changed counts: {command}\n", report::faults(&rows))
}

/// Parses the flags of a command.
fn args_of(command: &str) -> Args {
    Args::parse_from(command.split(' ').skip_while(|word| *word != "--"))
}

/// Fills the table and the record of a GPU with invented times: every kernel of the four sizes has
/// a row, and `warpsmith roofline` finds it.
fn tables_are_filled() {
    let args = Args::parse_from(["kernels"]);
    let peer = Peer {
        kernel: "attention forward".into(),
        shape: "64x12x1024x64".into(),
        us: 80.0,
        peer: "torch".into(),
    };
    let mut all = Vec::new();
    for (config, shape) in args.steps().expect("four models") {
        all.extend(cases::cases(&config, &shape));
    }
    let row = |case: &Case| {
        Row::new(case.clone(), made_up(case), Some(&GPUS[0]), true, std::slice::from_ref(&peer))
    };
    let rows: Vec<Row> = all.iter().map(row).collect();
    let table = report::timed(&rows, true);
    assert_eq!(table.lines().count(), 2 + rows.len());
    let line = |start: &str| table.lines().find(|line| line.starts_with(start)).expect("a row");
    let expected =
        "| 100.0 | 90.0 | 120.0 | 80.0 | 4062.0 | 2319.3 | 293.6 | 294 % | 110.0 | 100.0 | 1.10 | - |";
    assert_eq!(line("| qkv forward |"), format!("| qkv forward | 65536x2304x768 {expected}"));
    assert!(line("| attention forward |").ends_with("| - | - | - | 80.0 torch (1.25) |"), "{table}");

    let plans = report::plans(&rows);
    assert!(
        plans.starts_with("\nqkv forward: a plan, and others\n") && !plans.contains("attention"),
        "{plans}"
    );

    let mut found = Records::default();
    let device =
        Device { name: "NVIDIA H200".to_owned(), libraries: vec!["cuBLASLt 13.0.2 from /usr".to_owned()] };
    let record = record::record(&args, &device, &rows);
    assert_eq!(record["libraries"][0], "cuBLASLt 13.0.2 from /usr");
    let plans_of = |kernel: &str| {
        let entries = record["kernels"].as_array().expect("entries");
        entries.iter().find(|entry| entry["kernel"] == kernel).expect("an entry")["plans"].clone()
    };
    assert_eq!(plans_of("qkv forward"), serde_json::json!(["a plan, and others"]));
    assert_eq!(plans_of("attention forward"), serde_json::Value::Null);
    found.add(&record.to_string()).expect("a record that is read");
    for case in &all {
        assert_eq!(found.us(case.kernel.name, &case.kernel.shape), Some(100.0), "{}", case.kernel.name);
    }
    assert_eq!(Gpu::of_device("NVIDIA H200"), Some(&GPUS[0]));
}

fn made_up(case: &Case) -> Outcome {
    let run = |matmul, median| {
        let times = Times { median, min: 0.8 * median, p10: 0.9 * median, p90: 1.2 * median };
        Measurement { matmul, times: Some(times), counted: None }
    };
    let mut runs = vec![run(MatmulChoice::Fastest, 100.0)];
    if case.is_matmul() {
        runs.extend([run(MatmulChoice::Own, 110.0), run(MatmulChoice::Cublaslt, 100.0)]);
    }
    let plans = if case.is_matmul() { vec!["a plan, and others".to_owned()] } else { Vec::new() };
    Outcome::Right(Measured { runs, missing: None, plans })
}

/// On an H100 cuBLASLt's gradients of weights were off by up to 2.3 roundings where it added to
/// them. Ours are held to one, and so is the library in everything else.
fn a_library_may_round_a_product_that_it_adds() {
    use MatmulChoice::{Cublaslt, Fastest, Own};
    let (config, shape) = args_of(RUNS[0]).steps().expect("a model").remove(0);
    let all = cases::cases(&config, &shape);
    let roundings = |kernel: &str, choice| -> Vec<f64> {
        let case = all.iter().find(|case| case.kernel.name == kernel).expect("a case");
        let relative = bench::tolerances(&case.operands(Dtype::Bf16), Dtype::Bf16, choice);
        relative.into_iter().map(|tolerance| (tolerance * 256.0).floor()).collect()
    };
    // The gradients of the weight and of the bias.
    for (choice, expected) in [(Own, [1.0, 1.0]), (Cublaslt, [4.0, 1.0]), (Fastest, [4.0, 1.0])] {
        assert_eq!(roundings("qkv wgrad", choice), expected, "{choice}");
    }
    for kernel in ["qkv forward", "qkv dgrad", "layernorm forward"] {
        assert_eq!(roundings(kernel, Cublaslt), roundings(kernel, Own), "{kernel}");
    }
}

/// Spoils the output of a matmul before it is checked.
fn faults_are_noticed() {
    let args = Args { only: vec!["fc forward".to_owned()], ..args_of(RUNS[0]) };
    let cases = crate::wanted(&args).expect("a case");
    let mut bench = Bench::open(&args, &cases).expect("an emulated device");
    for (value, expected) in [(0.0, " of 32 is 0e0, want "), (f32::NAN, ": an element is NaN")] {
        let found = bench.check_spoiled(&cases[0], value).expect_err("it is wrong").to_string();
        assert!(found.starts_with("out: ") && found.contains(expected), "{found}");
    }
}
