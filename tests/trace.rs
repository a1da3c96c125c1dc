//! `--trace`: the file has the schema that viewers expect, and every operation of the step.

mod common;

use common::{Corpus, TRAIN_GPT2, TRAIN_GPT2CU, WARPSMITH, as_rank, losses, refuse, stdout, succeed};
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
const ROWS: [&str; 4] = ["step", "compute", "communication", "copies"];

fn train(corpus: &Corpus, program: &str, flags: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(corpus.dir.path()).args("-i x_train_*.bin -j x_val_*.bin -v 0 -s 0".split(' '));
    command.args("-e small.bin -b 1 -t 32 -x 3 --threads 1".split(' ')).args(flags.split(' '));
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
    let names = Names { memory, params: &replica.model.weights.params, stored: replica.zero.params() };
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

/// Reads a trace of `rank`, and checks what holds for any: fields, rows, no overlaps, and that the
/// step contains everything.
fn read(path: &Path, rank: usize) -> Vec<Shown> {
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut rows = BTreeMap::new();
    let mut shown = Vec::new();
    for event in file["traceEvents"].as_array().unwrap() {
        let number = |field: &str| event[field].as_f64().unwrap_or_else(|| panic!("{field} of {event}"));
        let (name, tid) = (event["name"].as_str().unwrap(), event["tid"].as_u64().unwrap());
        let (start_us, duration_us) = (number("ts"), number("dur"));
        assert_eq!(event["pid"].as_u64(), Some(rank as u64), "{event}");
        match event["ph"].as_str().unwrap() {
            "M" if name == "thread_name" => {
                rows.insert(tid, event["args"]["name"].as_str().unwrap().to_owned());
            }
            "M" => {}
            "X" => {
                let (row, name, args) = (rows[&tid].clone(), name.to_owned(), event["args"].clone());
                shown.push(Shown { row, name, start_us, duration_us, args });
            }
            _ => panic!("{event}"),
        }
    }
    assert!(rows.values().eq(ROWS), "{rows:?}");
    for row in ROWS {
        let bars: Vec<_> = shown.iter().filter(|bar| bar.row == row).collect();
        for pair in bars.windows(2) {
            // Times are rounded to nanoseconds.
            assert!(pair[0].start_us + pair[0].duration_us <= pair[1].start_us + 0.002, "{pair:?}");
        }
    }
    let step = shown.remove(0);
    assert_eq!((&*step.row, &*step.name, step.start_us), ("step", "step 2", 0.0));
    let compute: f64 = shown.iter().filter(|bar| bar.row == "compute").map(|bar| bar.duration_us).sum();
    assert!(compute > 0.0 && compute <= step.duration_us, "{compute} of {} us", step.duration_us);
    assert!(shown.iter().all(|bar| bar.start_us + bar.duration_us <= step.duration_us + 0.002));
    shown
}

/// Asserts that a trace has everything that the recorder sees: what the device does in order, and
/// the collectives in order.
#[track_caller]
fn assert_complete(shown: &[Shown], expected: &[(String, String)]) {
    for communication in [false, true] {
        let of = |row: &str| (row == "communication") == communication;
        let found: Vec<_> =
            shown.iter().filter(|bar| of(&bar.row)).map(|bar| (&*bar.row, &*bar.name)).collect();
        let expected: Vec<_> =
            expected.iter().map(|(row, name)| (&**row, &**name)).filter(|e| of(e.0)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_step_on_the_cpu_is_traced_and_has_the_same_bits() {
    let corpus = corpus();
    succeed(train(&corpus, TRAIN_GPT2, "-d 64 --trace trace.json").args(["-o", "traced"]));
    succeed(train(&corpus, TRAIN_GPT2, "-d 64").args(["-o", "plain"]));
    assert_eq!(losses(&corpus.path("traced")), losses(&corpus.path("plain")));
    let shown = read(&corpus.path("trace.json"), 0);
    assert_complete(&shown, &recorded(Dtype::F32, 1, ZeroStage::Zero0));
    let qkv: Vec<_> = shown.iter().filter(|bar| bar.name == "matmul_forward qkvw").collect();
    assert_eq!(qkv.len(), CONFIG.L * MICRO_STEPS);
    let (N, C) = (SHAPE.rows(), CONFIG.C);
    let bytes = 4 * (N * C + 3 * C * C + 3 * C + N * 3 * C);
    let flops = 2 * N * C * 3 * C;
    assert_eq!(
        qkv[1].args,
        serde_json::json!({"N": N, "C": C, "OC": 3 * C, "bytes": bytes, "flops": flops, "layer": 1})
    );
    assert!(
        std::fs::read_dir(corpus.dir.path())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains(".tmp") })
    );
}

#[test]
fn a_step_on_the_emulated_device_is_traced() {
    let corpus = corpus();
    succeed(&mut train(&corpus, TRAIN_GPT2CU, "--device emulated -d 64 --trace trace.json"));
    let shown = read(&corpus.path("trace.json"), 0);
    assert_complete(&shown, &recorded(Dtype::Bf16, 1, ZeroStage::Zero0));
}

#[test]
fn each_rank_traces_its_collectives() {
    for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
        let corpus = corpus();
        let flags = format!("-d 128 -z {} --trace trace.json", stage as usize);
        let rank = |rank: usize| {
            let mut command = train(&corpus, TRAIN_GPT2, &flags);
            as_rank(&mut command, rank, 2).stdout(Stdio::null()).spawn().unwrap()
        };
        for mut rank in [0, 1].map(rank) {
            assert!(rank.wait().unwrap().success());
        }
        let shown = read(&corpus.path("trace_rank0.json"), 0);
        read(&corpus.path("trace_rank1.json"), 1);
        assert_complete(&shown, &recorded(Dtype::F32, 2, stage));
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

        let shown = read(&dir.path().join("trace.json"), 0);
        let of = |row: &'static str| shown.iter().filter(move |bar| bar.row == row);
        let sum = |row| of(row).map(|bar| bar.duration_us).sum::<f64>();
        near(sum("compute") + sum("copies"), ms(3));
        near(sum("communication"), ms(4) + ms(5) + ms(6));
        let last = shown.iter().rfind(|bar| bar.row != "communication").unwrap();
        near(last.start_us + last.duration_us, ms(8));

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
