//! `--profile`: the file has the schema that viewers expect, and every operation of its steps. A
//! predicted step has the same format, and tools that NVTX reaches see the same names.

#[path = "../common/mod.rs"]
mod common;
mod nvtx;

use common::{
    Corpus, TRAIN_GPT2, TRAIN_GPT2CU, WARPSMITH, as_rank, forget_after, losses, refuse, signal, stderr,
    stdout, succeed, wait_for_steps,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::buckets::rows_by_token;
use warpsmith::data::loader::Batch;
use warpsmith::model::activations::Recompute;
use warpsmith::model::{BatchShape, ModelOptions};
use warpsmith::ops::Device;
use warpsmith::optim::optimizer::{HyperParams, OptimizerOptions};
use warpsmith::parallel::environment::Process;
use warpsmith::params::frozen::Frozen;
use warpsmith::recorder::{Event, Log};
use warpsmith::replica::peers::Peers;
use warpsmith::replica::{ReplicaOptions, ReplicaPlan};
use warpsmith::sharding::{Partition, Sharding, ZeroStage};
use warpsmith::tensor::Dtype;
use warpsmith::trace::{Names, Op};

/// That of `small.bin`.
const CONFIG: ModelConfig =
    ModelConfig { maxT: 64, V: 503, Vp: 512, L: 2, NH: 2, C: 128, qkv_bias: true, lora: None };
const SHAPE: BatchShape = BatchShape::new(1, 32);
const MICRO_STEPS: usize = 2;
const ROWS: [&str; 5] = ["step", "compute", "communication", "copies", "host"];
/// The row with bars that contain others.
const NESTED: &str = "step";

fn train(corpus: &Corpus, program: &str, flags: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(corpus.dir.path()).args("-i x_train_*.bin -j x_val_*.bin -v 0 -s 0".split(' '));
    command.args("-e small.bin -b 1 -t 32 -x 4 --threads 1".split(' ')).args(flags.split(' '));
    command
}

fn corpus() -> Corpus {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    corpus
}

/// The row and name of everything that a rank of `world_size` does in one step, by the recorder.
fn recorded(dtype: Dtype, world_size: usize, stage: ZeroStage) -> Vec<(String, String)> {
    let log = Log::default();
    let dev = log.device(dtype);
    let sharding = match world_size {
        1 => Sharding::NONE,
        _ => Sharding { stage, partition: Partition { index: 0, of: world_size } },
    };
    let BatchShape { B, T, .. } = SHAPE;
    let logits_bytes = dev.logits_bytes();
    let model = ModelOptions {
        B,
        T,
        min_rows: 0,
        recompute: Recompute::Gelu,
        dropout: DropoutRates::NONE,
        logits_bytes,
        sharding,
        frozen: Frozen::default(),
    };
    let hyper = HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, grad_clip: 1.0 };
    let options = ReplicaOptions {
        model,
        hyper,
        optimizer: OptimizerOptions::default(),
        use_master_weights: true,
        decode_context: None,
    };
    let plan = ReplicaPlan::new(CONFIG, options, &dev).unwrap();
    let memory = plan.memory.clone();
    let peers = match world_size {
        1 => Peers::alone(),
        _ => Peers::new(Process { world_size, ..Process::ALONE }, Box::new(log.communicator(0, world_size))),
    };
    let mut replica = plan.allocate(Box::new(dev), peers, false).unwrap();
    let next_batch = || {
        let tokens: Vec<i32> = (0..SHAPE.rows() as i32).collect();
        Ok(Batch {
            rows_by_token: rows_by_token(&tokens),
            targets: tokens.clone(),
            inputs: tokens,
            packed: None,
        })
    };
    let stats = replica
        .forward_backward(next_batch, SHAPE, MICRO_STEPS, MICRO_STEPS * SHAPE.rows(), 1.0, || 0.0)
        .unwrap();
    replica.update(1, 1e-3, stats.norm, 1.0).unwrap();
    replica.finish_params().unwrap();
    let (params, stored) = (replica.model.weights.params.clone(), replica.zero.params().clone());
    let names = Names { memory, params, stored };
    let shown = |event| {
        let op = match event {
            Event::Call(call) => Op::Call(Box::new(call)),
            Event::Copy { dst, src } => Op::Copy { dst, src },
            Event::Upload { dst, .. } => Op::Upload { dst },
            Event::Download { src } => Op::Download { src },
            Event::Start { operations, .. } => {
                return Some((ROWS[2].to_owned(), operations[0].collective.to_string()));
            }
            Event::Synchronize | Event::Lend(_) | Event::Reclaim(_) | Event::Wait(_) => return None,
        };
        let (row, name, _) = names.show(&op);
        Some((ROWS[row as usize].to_owned(), name))
    };
    log.take().into_iter().filter_map(shown).collect()
}

/// An event of the file.
#[derive(Debug)]
struct Shown {
    row: String,
    name: String,
    start_us: f64,
    duration_us: f64,
    args: Value,
}

/// Reads a timeline of `rank`, and checks what holds for any: fields, rows, no overlaps but of
/// bars that contain others, and that the steps `numbers` contain everything. Returns what is in
/// each step.
fn read(path: &Path, rank: usize, numbers: impl IntoIterator<Item = usize>) -> Vec<Vec<Shown>> {
    let (rows, shown) = events(&std::fs::read_to_string(path).unwrap(), rank);
    assert!(rows.values().eq(ROWS), "{rows:?}");
    for row in ROWS {
        let mut open: Vec<&Shown> = Vec::new();
        for bar in shown.iter().filter(|bar| bar.row == row) {
            // Times are rounded to nanoseconds.
            open.retain(|before| before.end_us() > bar.start_us + 0.002);
            let inside = open.iter().all(|outer| bar.end_us() <= outer.end_us() + 0.002);
            assert!(inside && (open.is_empty() || row == NESTED), "{bar:?} and {open:?}");
            open.push(bar);
        }
    }
    let is_step = |bar: &Shown| bar.row == "step" && bar.name.starts_with("step ");
    let (steps, mut shown): (Vec<_>, Vec<_>) = shown.into_iter().partition(is_step);
    assert!(steps.iter().map(|bar| bar.name.clone()).eq(numbers.into_iter().map(|n| format!("step {n}"))));
    assert_eq!(steps[0].start_us, 0.0);
    let mut contents = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let (inside, later) = shown.into_iter().partition(|bar| bar.end_us() <= step.end_us() + 0.002);
        let is_between = |bar: &Shown| i > 0 && bar.end_us() <= step.start_us;
        let (between, inside): (Vec<Shown>, Vec<Shown>) = Vec::into_iter(inside).partition(is_between);
        assert!(between.iter().all(|bar| bar.row == "host"), "{between:?}");
        assert!(inside.iter().all(|bar| bar.start_us >= step.start_us), "step {i}");
        let busy = |bar: &&Shown| bar.row == "compute" || bar.row == "copies";
        let busy: f64 = inside.iter().filter(busy).map(|bar| bar.duration_us).sum();
        assert!(busy > 0.0 && busy <= step.duration_us, "{busy} of {} us", step.duration_us);
        contents.push(inside);
        shown = later;
    }
    assert!(shown.iter().all(|bar| bar.row == "host"), "after the last step: {shown:?}");
    contents
}

/// Reads the names of rows, and the bars, by the rules of the Trace Event Format.
fn events(text: &str, rank: usize) -> (BTreeMap<u64, String>, Vec<Shown>) {
    let file: Value = serde_json::from_str(text).unwrap();
    assert_eq!(file["displayTimeUnit"], "ms");
    let (mut rows, mut shown, mut latest) = (BTreeMap::new(), Vec::new(), 0.0);
    for event in file["traceEvents"].as_array().unwrap() {
        let number = |field: &str| event[field].as_f64().unwrap_or_else(|| panic!("{field} of {event}"));
        let (name, tid) = (event["name"].as_str().unwrap(), event["tid"].as_u64().unwrap());
        let (start_us, args) = (number("ts"), event["args"].clone());
        assert_eq!(event["pid"].as_u64(), Some(rank as u64), "{event}");
        assert!(args.is_object() && !name.is_empty(), "{event}");
        match (event["ph"].as_str().unwrap(), name) {
            ("M", "thread_name") => {
                rows.insert(tid, args["name"].as_str().unwrap().to_owned());
            }
            ("M", "process_name") => assert_eq!(args["name"], format!("rank {rank}")),
            ("M", "process_labels") => assert!(!args["labels"].as_str().unwrap().is_empty()),
            ("M", "process_sort_index" | "thread_sort_index") => assert!(args["sort_index"].is_u64()),
            ("X", _) => {
                let (row, name, duration_us) = (rows[&tid].clone(), name.to_owned(), number("dur"));
                assert_eq!(event["cat"].as_str(), Some(&*row), "{event}");
                assert!(start_us >= latest && duration_us >= 0.0, "{event}");
                latest = start_us;
                shown.push(Shown { row, name, start_us, duration_us, args });
            }
            _ => panic!("{event}"),
        }
    }
    (rows, shown)
}

impl Shown {
    fn end_us(&self) -> f64 {
        self.start_us + self.duration_us
    }
}

/// Asserts that a trace has everything that the recorder sees: what the device does in order, and
/// the collectives in order.
#[track_caller]
fn assert_complete(shown: &[Shown], expected: &[(String, String)]) {
    for communication in [false, true] {
        let of = |row: &str| match row {
            "communication" => communication,
            "compute" | "copies" => !communication,
            _ => false,
        };
        let found: Vec<_> =
            shown.iter().filter(|bar| of(&bar.row)).map(|bar| (&*bar.row, &*bar.name)).collect();
        let expected: Vec<_> =
            expected.iter().map(|(row, name)| (&**row, &**name)).filter(|e| of(e.0)).collect();
        assert_eq!(found, expected);
    }
}

/// Asserts that the spans of a step are there in order, and that layers contain their operations.
#[track_caller]
fn assert_spans(shown: &[Shown]) {
    let layers = |layers: &mut dyn Iterator<Item = usize>| layers.map(|l| format!("layer {l}")).collect();
    let (up, down): (Vec<_>, Vec<_>) = (layers(&mut (0..CONFIG.L)), layers(&mut (0..CONFIG.L).rev()));
    let pass = |name: &str, layers: &[String]| [&[name.to_owned()], layers].concat();
    let micro_step = |number: usize| {
        let passes = [pass("forward", &up), pass("backward", &down)].concat();
        pass(&format!("micro-step {number}"), &passes)
    };
    let micro_steps: Vec<_> = (1..=MICRO_STEPS).flat_map(micro_step).collect();
    let update = [vec!["loss and norm".to_owned()], pass("optimizer", &up)].concat();
    let found: Vec<_> = shown.iter().filter(|bar| bar.row == "step").map(|bar| bar.name.clone()).collect();
    assert_eq!(found, [micro_steps, update].concat());
    for span in shown.iter().filter(|bar| bar.row == "step" && bar.name.starts_with("layer ")) {
        let within = |bar: &&Shown| bar.start_us >= span.start_us && bar.end_us() <= span.end_us();
        let computed: Vec<_> = shown.iter().filter(|bar| bar.row == "compute").filter(within).collect();
        let layer: u64 = span.name["layer ".len()..].parse().unwrap();
        assert!(computed.iter().all(|bar| bar.args["layer"] == layer), "{span:?}: {computed:?}");
        assert!(!computed.is_empty(), "{span:?}");
    }
    let attention = |bar: &&Shown| bar.name.starts_with("attention_");
    assert_eq!(shown.iter().filter(attention).count(), 2 * CONFIG.L * MICRO_STEPS);
    assert!(shown.iter().filter(attention).all(|bar| bar.args["layer"].is_u64()));
    let loads = shown.iter().filter(|bar| bar.row == "host" && bar.name == "load batch").count();
    assert_eq!(loads, MICRO_STEPS);
}

#[test]
fn steps_on_the_cpu_are_recorded_and_have_the_same_bits() {
    let corpus = corpus();
    let flags = "-d 64 -v 2 -m 1 -n 2";
    let output = succeed(train(&corpus, TRAIN_GPT2, flags).args(["--profile", "2:3", "-o", "profiled"]));
    succeed(train(&corpus, TRAIN_GPT2, flags).args(["-o", "plain"]));
    assert_eq!(losses(&corpus.path("profiled")), losses(&corpus.path("plain")));
    let path = corpus.path("profiled/profile.json");
    let steps = read(&path, 0, 2..=3);
    for shown in &steps {
        assert_complete(shown, &recorded(Dtype::F32, 1, ZeroStage::Zero0));
        assert_spans(shown);
    }
    let (_, all) = events(&std::fs::read_to_string(&path).unwrap(), 0);
    let between: Vec<_> = all.iter().filter(|bar| bar.row == "host" && bar.name != "load batch").collect();
    let names: Vec<_> = between.iter().map(|bar| &*bar.name).collect();
    assert_eq!(names, ["validation", "checkpoint"], "between steps 2 and 3");

    let qkv: Vec<_> = steps[1].iter().filter(|bar| bar.name == "matmul_forward qkvw").collect();
    assert_eq!(qkv.len(), CONFIG.L * MICRO_STEPS);
    let (N, C) = (SHAPE.rows(), CONFIG.C);
    let bytes = 4 * (N * C + 3 * C * C + 3 * C + N * 3 * C);
    let flops = 2 * N * C * 3 * C;
    let mut args = qkv[1].args.clone();
    for (rate, per_us) in [("TFLOP/s", flops as f64 / 1e6), ("GB/s", bytes as f64 / 1e3)] {
        let found = args.as_object_mut().unwrap().remove(rate).unwrap().as_f64().unwrap();
        let expected = per_us / qkv[1].duration_us;
        assert!((found / expected - 1.0).abs() < 1e-3, "{found} {rate}, expected {expected}");
    }
    assert_eq!(
        args,
        serde_json::json!({"N": N, "C": C, "OC": 3 * C, "bytes": bytes, "flops": flops, "layer": 1})
    );
    let table = std::fs::read_to_string(corpus.path("profiled/profile.txt")).unwrap();
    assert_table(&table, &steps);
    let console = stdout(&output);
    let title = table.lines().next().unwrap();
    assert!(title.starts_with("profile of steps 2:3 on CPU"), "{title}");
    assert!(console.contains(title) && console.contains("profiled/profile.json"), "{console}");
    assert!(
        std::fs::read_dir(corpus.path("profiled"))
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains(".tmp") })
    );
}

/// Asserts that the table has the time of each operation in the timeline.
#[track_caller]
fn assert_table(table: &str, steps: &[Vec<Shown>]) {
    let mut sums = BTreeMap::<&str, f64>::new();
    for bar in steps.iter().flatten().filter(|bar| bar.row == "compute" || bar.row == "copies") {
        *sums.entry(&bar.name).or_default() += bar.duration_us / 1e3 / steps.len() as f64;
    }
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(&format!("{name}  "))).expect(name);
        let columns = line[name.len()..].split_whitespace();
        columns.take(3).map(|column| column.parse::<f64>().unwrap()).collect::<Vec<_>>()
    };
    for (name, ms) in &sums {
        assert!((row(name)[1] - ms).abs() < 0.002, "{name}: {ms} ms, {:?}", row(name));
    }
    let [all, idle, step] = ["all operations", "idle", "whole step"].map(|name| row(name)[1]);
    assert!((all - sums.values().sum::<f64>()).abs() < 0.002, "{all}");
    assert!((all + idle - step).abs() < 0.003, "{all} + {idle} != {step}");
}

#[test]
fn a_step_on_the_emulated_device_is_recorded() {
    let corpus = corpus();
    let flags = "--device emulated -d 64 -x 3 --profile 2 -o log";
    succeed(&mut train(&corpus, TRAIN_GPT2CU, flags));
    let steps = read(&corpus.path("log/profile.json"), 0, [2]);
    assert_complete(&steps[0], &recorded(Dtype::Bf16, 1, ZeroStage::Zero0));
    assert_spans(&steps[0]);
    let table = std::fs::read_to_string(corpus.path("log/profile.txt")).unwrap();
    assert!(table.starts_with("profile of step 2 on emulated device, bf16, per step\n"), "{table}");
}

#[test]
fn each_rank_records_its_collectives() {
    for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
        let corpus = corpus();
        let flags = format!("-d 128 -z {} --profile 2:3 -o log", stage as usize);
        let rank = |rank: usize| {
            let mut command = train(&corpus, TRAIN_GPT2, &flags);
            as_rank(&mut command, rank, 2).stdout(Stdio::null()).spawn().unwrap()
        };
        for mut rank in [0, 1].map(rank) {
            assert!(rank.wait().unwrap().success());
        }
        read(&corpus.path("log/profile_rank1.json"), 1, 2..=3);
        for shown in read(&corpus.path("log/profile_rank0.json"), 0, 2..=3) {
            assert_complete(&shown, &recorded(Dtype::F32, 2, stage));
            assert_spans(&shown);
        }
        let table = std::fs::read_to_string(corpus.path("log/profile.txt")).unwrap();
        assert!(table.lines().any(|line| line.starts_with("all-gather ")), "{table}");
        assert!(!corpus.path("log/profile.json").exists());
    }
}

#[test]
fn forward_passes_alone_are_recorded() {
    let corpus = corpus();
    succeed(&mut train(&corpus, TRAIN_GPT2, "-d 64 --inference_only 1 --profile 4 -o log"));
    let steps = read(&corpus.path("log/profile.json"), 0, [4]);
    let passes = |name: &str| steps[0].iter().filter(|bar| bar.row == "step" && bar.name == name).count();
    assert_eq!((passes("forward"), passes("backward")), (MICRO_STEPS, 0));
}

#[test]
fn a_run_that_stops_early_writes_what_it_has() {
    let corpus = corpus();
    let mut command = train(&corpus, TRAIN_GPT2, "-x 100000 --profile 2:90000 -o log");
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&corpus.path("log"), 4);
    signal(child.id(), "TERM");
    let said = stderr(&child.wait_with_output().unwrap());
    assert!(said.contains("--profile 2:90000: the run stopped before step 90000"), "{said}");
    let text = std::fs::read_to_string(corpus.path("log/profile.json")).unwrap();
    let (_, shown) = events(&text, 0);
    let is_step = |bar: &&Shown| bar.row == "step" && bar.args["step"].is_u64();
    let recorded = shown.iter().filter(is_step).count();
    assert!(recorded >= 3, "{recorded} steps");
    read(&corpus.path("log/profile.json"), 0, 2..2 + recorded);

    let said = stderr(&succeed(&mut train(&corpus, TRAIN_GPT2, "-x 3 -o other")));
    assert_eq!(said, "", "nothing is said without the flag");
}

#[test]
fn a_resumed_run_records_the_steps_that_are_left() {
    let corpus = corpus();
    let flags = "-d 64 -n 2 -y 1 --profile 2:4 -o log";
    succeed(&mut train(&corpus, TRAIN_GPT2, flags));
    for (step, left) in [(2, Some(3..=4)), (4, None)] {
        forget_after(&corpus.path("log"), step);
        std::fs::remove_file(corpus.path("log/profile.json")).unwrap();
        let said = stderr(&succeed(&mut train(&corpus, TRAIN_GPT2, flags)));
        let warning = format!("--profile 2:4: the run resumes after step {step}");
        assert!(said.contains(&warning), "{said}");
        match left {
            Some(left) => drop(read(&corpus.path("log/profile.json"), 0, left)),
            None => assert!(!corpus.path("log/profile.json").exists()),
        }
    }
}

/// `warpsmith scaling` with a trace; more flags may follow.
fn scaling(dir: &Path, flags: &str) -> Command {
    let mut command = Command::new(WARPSMITH);
    command.current_dir(dir).args("scaling -e d12 --trace trace.json".split(' ')).args(flags.split(' '));
    command
}

#[test]
fn a_predicted_step_is_a_trace_too() {
    let dir = tempfile::tempdir().unwrap();
    for stage in ["0", "1", "2", "3"] {
        // The row of three GPUs has no times.
        let flags = format!("-b 4 -d 131072 --gpus 3,16 --zero {stage}");
        let table = stdout(&succeed(&mut scaling(dir.path(), &flags)));
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.into_iter().find(|row| row.starts_with(&[stage, "16"])).unwrap();
        let ms = |column: usize| row[column].parse::<f64>().unwrap();
        let near = |us: f64, ms: f64| assert!((us / 1e3 - ms).abs() < 0.03, "{us} us, {row:?}");

        let shown = read(&dir.path().join("trace.json"), 0, [2]).remove(0);
        let of = |row: &'static str| shown.iter().filter(move |bar| bar.row == row);
        let sum = |row| of(row).map(|bar| bar.duration_us).sum::<f64>();
        near(sum("compute") + sum("copies"), ms(3));
        near(sum("communication"), ms(4) + ms(5) + ms(6));
        let last = shown.iter().rfind(|bar| bar.row != "communication").unwrap();
        near(last.end_us(), ms(8));

        let qkv: Vec<_> = of("compute").filter(|bar| bar.name == "matmul_forward qkvw").collect();
        assert_eq!(qkv.len(), 12 * 2, "layers and micro-steps");
        let (N, C) = (4 * 1024, 768);
        let sizes = ["N", "C", "OC", "flops"].map(|size| qkv[0].args[size].as_u64().unwrap());
        assert_eq!(sizes, [N, C, 3 * C, 6 * N * C * C]);
        let sent = |name: &str| of("communication").filter(|bar| bar.name == name).count();
        let gathered = sent("all-gather");
        assert_eq!(gathered > 0, stage != "0", "{gathered}");
    }
}

#[test]
fn a_prediction_without_a_place_or_a_row_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    refuse(&mut scaling(dir.path(), "-b 4 --trace nowhere/trace.json"), &["--trace", "nowhere/trace.json"]);
    refuse(&mut scaling(dir.path(), "--gpus 3 -d 131072"), &["--trace", "a row with times", "--gpus"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
