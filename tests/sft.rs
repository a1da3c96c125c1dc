//! Supervised fine-tuning: the loss of answers alone, in documents that are packed, against
//! PyTorch, against the documents one by one, and for any split over micro-steps, ranks and ZeRO
//! stages.
//! `fixtures/README.md` says what was recorded. Faults are put in where batches come from, and must
//! change the result by far more than the tolerance.

mod common;

use common::{TRAIN_GPT2, stdout, succeed};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use warpsmith::checkpoint;
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::buckets::rows_by_token;
use warpsmith::data::loader::{Batch, DataLoader, LoaderOptions, PackedRows, Packing, Sample};
use warpsmith::data::mask::MaskedShardWriter;
use warpsmith::data::tokenizer::TokenizerId;
use warpsmith::device::compare::close;
use warpsmith::device::cpu::{Cpu, matmul::Precision};
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::model::activations::Recompute;
use warpsmith::model::{BatchShape, ModelOptions};
use warpsmith::ops::{IGNORED, Ops};
use warpsmith::optim::optimizer::{HyperParams, OptimizerOptions};
use warpsmith::parallel::environment::Process;
use warpsmith::parallel::queue::HostQueue;
use warpsmith::parallel::transport::testing::Threads;
use warpsmith::params::frozen::Frozen;
use warpsmith::params::{PARAMS, ParamLayout};
use warpsmith::replica::peers::Peers;
use warpsmith::replica::{ReplicaOptions, ReplicaPlan};
use warpsmith::sharding::{Partition, Sharding, ZeroStage};
use warpsmith::tensor::Dtype;

const T: usize = 16;

/// Twelve documents in shards, and the results of PyTorch.
struct Recorded {
    dir: TempDir,
    documents: Vec<(Vec<u32>, Vec<bool>)>,
    counted: usize,
    pytorch: Outcome,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2_tiny").join(name)
}

impl Recorded {
    fn new() -> Self {
        let bytes = std::fs::read(fixture("sft.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&bytes).unwrap();
        let f32s = |key: &str| bytemuck::pod_collect_to_vec::<u8, f32>(recorded.tensor(key).unwrap().data());
        let i32s = |key: &str| bytemuck::pod_collect_to_vec::<u8, i32>(recorded.tensor(key).unwrap().data());
        let (tokens, counts) = (i32s("tokens"), i32s("counts"));
        let mut start = 0;
        let document = |length: i32| {
            let range = start..start + length as usize;
            start = range.end;
            let document: Vec<u32> = tokens[range.clone()].iter().map(|&token| token as u32).collect();
            (document, counts[range].iter().map(|&counts| counts == 1).collect::<Vec<bool>>())
        };
        let documents: Vec<_> = i32s("lengths").into_iter().map(document).collect();
        let dir = TempDir::new().unwrap();
        let id = TokenizerId { vocab_size: 96, eot: 95, digest: 1 };
        for (index, documents) in documents.chunks(7).enumerate() {
            let path = dir.path().join(format!("{index}.bin"));
            let mut writer = MaskedShardWriter::create(&path, id).unwrap();
            documents.iter().for_each(|(tokens, counts)| writer.write(tokens, counts).unwrap());
            writer.seal().unwrap().into_iter().for_each(|file| file.publish().unwrap());
        }
        let grads: Vec<f32> = PARAMS.iter().flat_map(|spec| f32s(&format!("d{}", spec.name))).collect();
        let norm = grads.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32;
        let pytorch = Outcome { loss: f32s("loss")[0], norm, grads };
        let counted = i32s("counted")[0] as usize;
        Recorded { dir, documents, counted, pytorch }
    }

    fn loader(&self, B: usize, rank: usize, num_processes: usize) -> DataLoader {
        DataLoader::open(LoaderOptions {
            pattern: self.dir.path().join("*.bin").to_str().unwrap(),
            flag: "-i",
            B,
            T,
            rank,
            num_processes,
            sample: Sample::Sequence,
            shuffle: true,
            packing: Packing::default(),
            V: 96,
        })
        .unwrap()
    }

    /// The documents one after the other, each at the start of a sequence of its own, as text that
    /// is not packed.
    fn one_by_one(&self) -> Vec<Batch> {
        let batch = |(tokens, counts): &(Vec<u32>, Vec<bool>)| {
            let rows = (tokens.len() - 1).min(T);
            let (mut inputs, mut targets) = (vec![95; T], vec![IGNORED; T]);
            for row in 0..rows {
                inputs[row] = tokens[row] as i32;
                targets[row] = if counts[row + 1] { tokens[row + 1] as i32 } else { IGNORED };
            }
            Batch { rows_by_token: rows_by_token(&inputs), inputs, targets, packed: None }
        };
        self.documents.iter().map(batch).collect()
    }
}

/// A step over all documents, as often for each.
#[derive(Clone, Copy)]
struct Recipe<'a> {
    B: usize,
    world_size: usize,
    grad_accum_steps: usize,
    stage: ZeroStage,
    device: &'a (dyn Fn() -> Box<dyn Ops> + Sync),
    config: ModelConfig,
    /// Changes what a rank reads, and the number of rows that count.
    fault: &'a (dyn Fn(usize, &mut Batch) + Sync),
    counted: &'a (dyn Fn(usize) -> usize + Sync),
}

fn cpu() -> Box<dyn Ops> {
    Box::new(Cpu::new(Precision::F32).unwrap())
}

const TINY: ModelConfig =
    ModelConfig { maxT: T, V: 96, Vp: 128, L: 2, NH: 2, C: 32, qkv_bias: true, lora: None };

impl Recipe<'_> {
    fn new(B: usize, world_size: usize, grad_accum_steps: usize) -> Self {
        Recipe {
            B,
            world_size,
            grad_accum_steps,
            stage: ZeroStage::Zero0,
            device: &cpu,
            config: TINY,
            fault: &|_, _| {},
            counted: &|counted| counted,
        }
    }
}

/// Loss, norm of the gradient, and the gradient in the order of files.
#[derive(Clone)]
struct Outcome {
    loss: f32,
    norm: f32,
    grads: Vec<f32>,
}

/// Takes the step of one rank with batches of `next_batch`, of which `counted` rows count on all
/// ranks. Rank 0 gets the gradients.
fn rank(recipe: &Recipe, peers: Peers, next_batch: &mut dyn FnMut() -> Batch, counted: usize) -> Outcome {
    let Recipe { B, world_size, grad_accum_steps, stage, config, .. } = *recipe;
    let sharding = match world_size {
        1 => Sharding::NONE,
        of => Sharding { stage, partition: Partition { index: peers.process.rank, of } },
    };
    let (recompute, logits_bytes) = (Recompute::Gelu, 7 * 128 * 4);
    let (dropout, frozen) = (DropoutRates::NONE, Frozen::default());
    let model = ModelOptions { B, T, min_rows: 0, recompute, dropout, logits_bytes, sharding, frozen };
    let hyper = HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, grad_clip: 0.0 };
    let (optimizer, use_master_weights) = (OptimizerOptions::default(), false);
    let options = ReplicaOptions { model, hyper, optimizer, use_master_weights, decode_context: None };
    let dev = (recipe.device)();
    let plan = ReplicaPlan::new(config, options, dev.as_ref()).unwrap();
    let mut replica = plan.allocate(dev, peers, false).unwrap();
    if config == TINY {
        replica.load(&checkpoint::load_model(&fixture("model.bin")).unwrap().params).unwrap();
    } else {
        replica.initialize(42).unwrap();
    }
    let shape = BatchShape::new(B, T);
    let stats =
        replica.forward_backward(|| Ok(next_batch()), shape, grad_accum_steps, counted, 1.0, || 0.0).unwrap();
    let mut grads = vec![f32::NAN; ParamLayout::new(&config).len()];
    replica.gradients(0, &mut grads).unwrap();
    Outcome { loss: stats.loss, norm: stats.norm, grads }
}

/// Takes the step of all ranks, and returns the outcome of rank 0.
fn step(recipe: &Recipe, recorded: &Recorded) -> Outcome {
    let of_rank = |peers: Peers| {
        let index = peers.process.rank;
        let mut loader = recorded.loader(recipe.B, index, recipe.world_size);
        let counted = (recipe.counted)(loader.counted(recipe.grad_accum_steps * recipe.world_size));
        let next_batch = &mut || {
            let mut batch = loader.next_batch().unwrap();
            (recipe.fault)(index, &mut batch);
            batch
        };
        rank(recipe, peers, next_batch, counted)
    };
    if recipe.world_size == 1 {
        return of_rank(Peers::alone());
    }
    std::thread::scope(|scope| {
        let links = Threads::of(recipe.world_size, Duration::from_secs(60)).into_iter().enumerate();
        let ranks: Vec<_> = links
            .map(|(index, links)| {
                let process = Process { rank: index, world_size: recipe.world_size, ..Process::ALONE };
                let queue = HostQueue::new(links).unwrap();
                let of_rank = &of_rank;
                scope.spawn(move || of_rank(Peers::new(process, Box::new(queue))))
            })
            .collect();
        let all: Vec<Outcome> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        assert!(all.iter().all(|other| (other.loss, other.norm) == (all[0].loss, all[0].norm)));
        all.into_iter().next().unwrap()
    })
}

/// The distance between two vectors as a fraction of the length of the second. NaN if there is one.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    assert_eq!(got.len(), want.len());
    let mut differences = got.iter().zip(want).map(|(got, want)| f64::from(*got) - f64::from(*want));
    (squares(&mut differences) / squares(&mut want.iter().map(|x| f64::from(*x)))).sqrt()
}

/// Tolerance of f32 in a sum over these rows.
const TOLERANCE: f64 = 1e-6;

#[track_caller]
fn assert_is(what: &str, got: &Outcome, want: &Outcome) {
    for (name, got, want) in [("loss", got.loss, want.loss), ("norm", got.norm, want.norm)] {
        let error = (f64::from(got) / f64::from(want) - 1.0).abs();
        assert!(error <= TOLERANCE, "{what}: {name} {got}, expected {want}: off by {error:e}");
    }
    let error = distance(&got.grads, &want.grads);
    assert!(error <= TOLERANCE, "{what}: the gradient is off by {error:e}");
}

#[test]
fn masked_loss_and_gradients_of_packed_documents_are_pytorchs() {
    let recorded = Recorded::new();
    assert_eq!(recorded.loader(1, 0, 1).counted(6), recorded.counted);
    let want = &recorded.pytorch;
    // Six sequences hold all documents; twelve hold each of them twice.
    for (B, world_size, grad_accum_steps) in
        [(6, 1, 1), (2, 1, 3), (1, 1, 6), (3, 2, 1), (1, 2, 3), (1, 3, 2), (3, 4, 1), (1, 4, 3)]
    {
        for stage in ZeroStage::ALL.into_iter().take(if world_size == 1 { 1 } else { 4 }) {
            let recipe = Recipe { stage, ..Recipe::new(B, world_size, grad_accum_steps) };
            let what = format!("{B} x {grad_accum_steps} on {world_size}, {stage:?}");
            let mut found = step(&recipe, &recorded);
            if stage == ZeroStage::Zero1 {
                // Each rank has the sum of its own part alone.
                found.grads = want.grads.clone();
            }
            assert_is(&what, &found, want);
        }
    }
    // Element by element, relative to the tensor.
    let Outcome { grads, .. } = step(&Recipe::new(6, 1, 1), &recorded);
    let layout = ParamLayout::new(&TINY);
    for spec in &PARAMS {
        let range = layout.range(spec.param);
        close(&grads[range.clone()], &want.grads[range], 1e-5).expect(spec.name);
    }
}

#[test]
fn packed_documents_are_the_documents_one_by_one() {
    let recorded = Recorded::new();
    let mut batches = recorded.one_by_one().into_iter();
    let recipe = Recipe::new(1, 1, recorded.documents.len());
    let alone = rank(&recipe, Peers::alone(), &mut || batches.next().unwrap(), recorded.counted);
    assert_is("one by one", &alone, &recorded.pytorch);
    assert_is("packed", &step(&Recipe::new(2, 1, 3), &recorded), &alone);
}

/// Kernels agree with the CPU, and CUDA graphs change no bit.
#[test]
fn kernels_take_the_same_step() {
    let recorded = Recorded::new();
    let config = ModelConfig { maxT: T, V: 96, Vp: 128, L: 2, NH: 1, C: 64, qkv_bias: true, lora: None };
    let plain = Recipe { config, ..Recipe::new(2, 1, 3) };
    let want = step(&plain, &recorded);
    let device = |graphs| {
        let driver = emulated::open(Dtype::F32, EmulatorOptions::default()).unwrap();
        let (tf32, gelu_fusion, deterministic, matmul) = (false, 0, true, MatmulChoice::Own);
        let dtype = Dtype::F32;
        let options = CudaOptions { dtype, tf32, gelu_fusion, deterministic, matmul, graphs };
        Box::new(Cuda::new(driver, options)) as Box<dyn Ops>
    };
    let queued = step(&Recipe { device: &|| device(false), ..plain }, &recorded);
    assert!((queued.loss / want.loss - 1.0).abs() <= 1e-5, "{}, expected {}", queued.loss, want.loss);
    let error = distance(&queued.grads, &want.grads);
    assert!(error <= 1e-5, "the gradient is off by {error:e}");
    let graphs = step(&Recipe { device: &|| device(true), ..plain }, &recorded);
    assert!((graphs.loss, &graphs.grads) == (queued.loss, &queued.grads));
    let ranks = Recipe { device: &|| device(false), stage: ZeroStage::Zero3, config, ..Recipe::new(1, 2, 3) };
    let error = distance(&step(&ranks, &recorded).grads, &want.grads);
    assert!(error <= 1e-5, "on two ranks the gradient is off by {error:e}");
    let leaking = Recipe { device: &|| device(false), fault: &documents_leak, ..plain };
    assert!(distance(&step(&leaking, &recorded).grads, &want.grads) > 1e-2, "a leak goes unnoticed");
}

/// The target of each row, whether it counts or not: the next input, as far as it is in the batch.
fn all_targets(batch: &Batch) -> Vec<i32> {
    let next = batch.inputs[1..].iter().chain(&batch.inputs[..1]);
    batch.targets.iter().zip(next).map(|(target, next)| if *target < 0 { *next } else { *target }).collect()
}

fn shifted_by_one(_: usize, batch: &mut Batch) {
    let targets = all_targets(batch);
    let counts: Vec<bool> = batch.targets.iter().map(|target| *target >= 0).collect();
    for (row, target) in batch.targets.iter_mut().enumerate() {
        *target = if counts[(row + 1) % counts.len()] { targets[row] } else { IGNORED };
    }
}

fn lost_on_rank_1(rank: usize, batch: &mut Batch) {
    if rank == 1 {
        batch.targets = all_targets(batch);
    }
}

fn documents_leak(_: usize, batch: &mut Batch) {
    batch.packed = None;
}

/// One document in each sequence, whose positions run on.
fn borders_lost(_: usize, batch: &mut Batch) {
    let positions = (0..batch.inputs.len() as i32).map(|row| row % T as i32).collect();
    batch.packed = Some(PackedRows::new(positions));
}

/// A document begins one token late: the first one of the next is its last.
fn borders_shifted(_: usize, batch: &mut Batch) {
    let positions = &batch.packed.as_ref().unwrap().positions;
    let mut late: Vec<i32> = Vec::new();
    for row in 0..positions.len() {
        let starts = row % T == 0 || positions[row - 1] == 0 && row % T > 1;
        late.push(if starts { 0 } else { late[row - 1] + 1 });
    }
    batch.packed = Some(PackedRows::new(late));
}

#[test]
fn faults_are_far_beyond_the_tolerance() {
    let recorded = Recorded::new();
    let want = &recorded.pytorch;
    let plain = Recipe::new(3, 2, 1);
    let rows = &|_| 6 * T;
    let faults: [(&str, Recipe); 6] = [
        ("a mask shifted by one", Recipe { fault: &shifted_by_one, ..plain }),
        ("a mask lost on a rank", Recipe { fault: &lost_on_rank_1, ..plain }),
        ("a mean over all tokens", Recipe { counted: rows, ..plain }),
        ("documents that see each other", Recipe { fault: &documents_leak, ..plain }),
        ("documents without borders", Recipe { fault: &borders_lost, ..plain }),
        ("borders shifted by one", Recipe { fault: &borders_shifted, ..plain }),
    ];
    assert_is("no fault", &step(&plain, &recorded), want);
    for (what, recipe) in faults {
        let Outcome { loss, grads, .. } = step(&recipe, &recorded);
        let (of_loss, of_grads) = ((loss / want.loss - 1.0).abs(), distance(&grads, &want.grads));
        println!("{what}: loss off by {of_loss:.3}, gradient by {of_grads:.3}");
        assert!(f64::from(of_loss) > 1e3 * TOLERANCE && of_grads > 1e3 * TOLERANCE, "{what} goes unnoticed");
    }
}

/// Shards of short questions and answers, made by `warpsmith sft`.
fn tuning_data() -> TempDir {
    let dir = TempDir::new().unwrap();
    let line = |i: usize| {
        format!(
            "{{\"prompt\": \"{i} + {}?\", \"response\": \"It is {}.{}\"}}\n",
            i % 7,
            i + i % 7,
            " Really.".repeat(i % 5)
        )
    };
    std::fs::write(dir.path().join("sums.jsonl"), (0..60).map(line).collect::<String>()).unwrap();
    let mut sft = Command::new(common::WARPSMITH);
    let text = stdout(&succeed(sft.current_dir(dir.path()).args(["sft", "sums.jsonl", "-o", "."])));
    assert!(text.starts_with("training: 57 examples, ") && text.contains("validation: 3 examples"), "{text}");
    dir
}

/// A run of the trainer on those shards.
fn tune(dir: &TempDir, flags: &str) -> Command {
    let mut command = Command::new(TRAIN_GPT2);
    let shape = "--layers 1 --heads 2 --channels 16 --context 64 -t 32 -d 256 -l 1e-2 -v 3 -i sft_train_*.bin -j sft_val_*.bin";
    command.current_dir(dir.path()).args(shape.split(' ')).args(flags.split(' '));
    command
}

#[test]
fn a_run_is_the_same_for_any_batch_and_after_a_stop() {
    let dir = tuning_data();
    let whole = stdout(&succeed(&mut tune(&dir, "-b 8 -x 12 -o whole")));
    assert!(whole.contains("57 packed"), "{whole}");
    let losses = |run: &str| common::losses(&dir.path().join(run));
    let want = losses("whole");
    assert_eq!(want.len(), 12);
    // Gradient accumulation changes rounding alone.
    succeed(&mut tune(&dir, "-b 2 -x 12 -o split"));
    for ((step, split, _), (_, whole, _)) in losses("split").iter().zip(&want) {
        let [split, whole] = [split, whole].map(|loss| loss.parse::<f64>().unwrap());
        assert!((split - whole).abs() <= 2e-5, "step {step}: {split}, expected {whole}");
    }
    // 12 steps of 8 sequences are several epochs.
    succeed(&mut tune(&dir, "-b 8 -x 5 -o parts"));
    succeed(&mut tune(&dir, "-b 8 -x 12 -o parts -y 1"));
    assert_eq!(losses("parts"), want);
    let model = |run: &str| std::fs::read(dir.path().join(run).join("model_00000012.bin")).unwrap();
    assert!(model("parts") == model("whole"), "a resumed run is the same run");
    let refused = |flags: &str, words: &[&str]| common::refuse(&mut tune(&dir, flags), words);
    refused("-b 8 -x 20 -o parts -y 1 -t 64 -d 512", &["-t 64", "packed into sequences of 32 tokens"]);
    refused("-b 8 -x 20 -o parts -y 1 --skip-long-examples 1", &["--skip-long-examples", "packed"]);
    refused("-b 8 --shuffle documents", &["--shuffle", "packed documents"]);
    std::fs::remove_file(dir.path().join("sft_train_000001.mask")).unwrap();
    refused("-b 8", &["-i", "sft_train_000001.mask", "missing"]);
}

#[test]
fn bad_input_is_one_line() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let sft = |line: &str| common::warpsmith(dir.path(), &format!("sft {line} -o out"));
    let good = "{\"prompt\": \"a b c d e f g h\", \"response\": \"i\"}\n";
    write("good.jsonl", good);
    write("bad.jsonl", &format!("{good}{{\"prompt\": \"a\", \"response\": 1}}\n"));
    write("broken.jsonl", &format!("{good}{{\"prompt\"\n"));
    write("empty.jsonl", "");
    write("template.json", "{\"pair\": \"{prompt}\"}");
    for (line, words) in [
        ("absent.jsonl", &["absent.jsonl"][..]),
        ("bad.jsonl", &["bad.jsonl:2", "\"response\"", "expected a string, found a number"]),
        ("broken.jsonl", &["broken.jsonl:2", "not a JSON object"]),
        ("empty.jsonl", &["the input has no examples"]),
        ("good.jsonl --prompt-column question", &["good.jsonl:1", "\"question\"", "--prompt-column"]),
        ("good.jsonl --template template.json", &["--template", "template.json", "{response}"]),
        ("good.jsonl --template absent.json", &["--template", "absent.json"]),
        ("good.jsonl", &["1 example", "--val-examples"]),
    ] {
        common::refuse(&mut sft(line), words);
    }
    assert!(!dir.path().join("out").exists(), "nothing is left");

    succeed(&mut sft("good.jsonl --val good.jsonl"));
    let flags = "--layers 1 --heads 2 --channels 16 -b 1 -v 0 -x 1 -i out/sft_train_*.bin -t 8";
    let mut run = Command::new(TRAIN_GPT2);
    run.current_dir(dir.path()).args(flags.split(' '));
    let output = run.output().unwrap();
    let said = common::stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("1 of 1 example left out, as none of their answer is within 8 tokens"), "{said}");
    assert!(said.contains("no example has an answer within 8 tokens; raise -t"), "{said}");
    common::refuse(&mut common::warpsmith(dir.path(), "sample"), &["--model"]);
    common::refuse(&mut common::warpsmith(dir.path(), "sample --compare a"), &["--compare"]);
    common::refuse(&mut common::warpsmith(dir.path(), "sample -e a --compare a b"), &["--compare"]);
}
