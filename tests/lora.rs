//! LoRA: the gradients of adapters, the same on the emulated device, PEFT's training, and runs.

mod common;
#[path = "common/live_model.rs"]
mod live_model;

use common::{
    Corpus, forget_after, losses, refuse, refuse_in_the_end, stdout, succeed, warpsmith, write_small_model,
};
use live_model::LiveModel;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use warpsmith::checkpoint::{self, Adapter};
use warpsmith::config::{DropoutRates, Lora, ModelConfig};
use warpsmith::data::buckets::rows_by_token;
use warpsmith::data::loader::Batch;
use warpsmith::device::compare::assert_close;
use warpsmith::device::cpu::{Cpu, matmul::Precision};
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::model::activations::Recompute;
use warpsmith::model::{BatchShape, ModelOptions};
use warpsmith::ops::{Ops, upload_f32};
use warpsmith::optim::optimizer::{HyperParams, OptimizerOptions};
use warpsmith::params::frozen::Frozen;
use warpsmith::params::{self, ADAPTERS, ParamLayout, ParamSpec};
use warpsmith::replica::peers::Peers;
use warpsmith::replica::{Replica, ReplicaOptions, ReplicaPlan};
use warpsmith::sharding::Sharding;
use warpsmith::tensor::Dtype;

const CONFIG: ModelConfig =
    ModelConfig { maxT: 24, V: 61, Vp: 128, L: 2, NH: 2, C: 128, qkv_bias: true, lora: None };
const DROPOUT: DropoutRates = DropoutRates { embd: 0.2, attn: 0.3, resid: 0.4 };

/// Every matrix, one of each kind, and those whose products meet in the MLP.
const TARGETS: [[bool; 4]; 5] = [
    [true; 4],
    [true, false, false, false],
    [false, true, false, false],
    [false, false, true, false],
    [false, false, false, true],
];

fn with_lora(rank: usize, targets: [bool; 4]) -> ModelConfig {
    ModelConfig { lora: Some(Lora { rank, alpha: 1.5 * rank as f32, targets }), ..CONFIG }
}

fn cpu() -> Box<dyn Ops> {
    Box::new(Cpu::new(Precision::F32).unwrap())
}

fn kernels(dtype: Dtype) -> Box<dyn Ops> {
    let driver = emulated::open(dtype, EmulatorOptions::default()).unwrap();
    let (tf32, gelu_fusion, deterministic, graphs) = (false, 2, true, false);
    let options = CudaOptions { dtype, tf32, gelu_fusion, deterministic, matmul: MatmulChoice::Own, graphs };
    Box::new(Cuda::new(driver, options))
}

fn adapters(config: &ModelConfig) -> impl Iterator<Item = &'static ParamSpec> {
    params::all(config).filter(|spec| spec.is_adapter())
}

#[test]
fn gradients_of_adapters_are_those_of_the_loss() {
    for targets in TARGETS {
        for dropout in [DropoutRates::NONE, DROPOUT] {
            let config = with_lora(8, targets);
            LiveModel::new(cpu(), config, Recompute::Gelu, dropout).check_gradients(adapters(&config));
        }
    }
}

/// A query-key-value projection without a bias, too.
#[test]
fn gradients_do_not_depend_on_recomputation() {
    for targets in TARGETS {
        for qkv_bias in [true, false] {
            let config = ModelConfig { qkv_bias, ..with_lora(8, targets) };
            let of = |recompute| {
                let mut model = LiveModel::new(cpu(), config, recompute, DROPOUT);
                model.backward();
                adapters(&config).flat_map(|spec| [0, 1].map(|l| model.gradient(spec, l))).collect::<Vec<_>>()
            };
            let want = of(Recompute::Nothing);
            assert!(want.iter().flatten().all(|g| g.is_finite()) && want.iter().flatten().any(|&g| g != 0.0));
            for recompute in [Recompute::Gelu, Recompute::GeluAndLayernorm] {
                assert!(of(recompute) == want, "{targets:?}, {recompute:?}");
            }
        }
    }
}

#[test]
fn kernels_have_the_gradients_of_the_cpu() {
    for (recompute, dropout) in
        [(Recompute::Nothing, DropoutRates::NONE), (Recompute::GeluAndLayernorm, DROPOUT)]
    {
        let config = with_lora(16, [true; 4]);
        let mut want = LiveModel::new(cpu(), config, recompute, dropout);
        let mut got = LiveModel::new(kernels(Dtype::F32), config, recompute, dropout);
        assert_close("losses", &got.losses(), &want.losses(), 1e-5);
        got.backward();
        want.backward();
        for spec in adapters(&config) {
            for l in 0..CONFIG.L {
                let what = format!("d{}, layer {l}", spec.name);
                assert_close(&what, &got.gradient(spec, l), &want.gradient(spec, l), 1e-5);
            }
        }
    }
}

/// W + alpha / r B A has the losses of W with its adapter.
#[test]
fn merged_weights_have_the_same_losses() {
    for targets in TARGETS {
        let config = with_lora(8, targets);
        let mut with = LiveModel::new(cpu(), config, Recompute::Gelu, DropoutRates::NONE);
        let mut merged = LiveModel::new(cpu(), CONFIG, Recompute::Gelu, DropoutRates::NONE);
        let before = merged.losses();
        for (target, pair) in params::lora::TARGETS.into_iter().zip(ADAPTERS.chunks(2)) {
            if !targets[params::lora::TARGETS.iter().position(|&t| t == target).unwrap()] {
                continue;
            }
            for l in 0..CONFIG.L {
                let tensor = merged.model.weights.get(target, l);
                let mut weight = merged.download(tensor);
                let [a, b] = [0, 1].map(|i| with.model.weights.get(pair[i].param, l));
                let (a, b) = (with.download(a), with.download(b));
                let C = a.len() / 8;
                for (i, w) in weight.iter_mut().enumerate() {
                    let (o, c) = (i / C, i % C);
                    *w += 1.5 * (0..8).map(|k| b[8 * o + k] * a[C * k + c]).sum::<f32>();
                }
                upload_f32(merged.dev.as_mut(), tensor, &weight).unwrap();
            }
        }
        let found = with.losses();
        assert_close("losses", &found, &merged.losses(), 1e-5);
        assert!(found.iter().zip(&before).any(|(a, b)| (a - b).abs() > 0.01), "adapters that change nothing");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2_tiny").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The tiny model with the adapters that PEFT started from.
fn tiny(recipe: &Value, shape: BatchShape) -> Replica {
    let mut model = checkpoint::load_model(&fixture("model.bin")).unwrap();
    let adapter = Adapter::read(&fixture("lora/start"), &model.config).unwrap();
    model.config.lora = Some(adapter.lora);
    model.params.extend(adapter.values);
    let number = |key: &str| recipe[key].as_f64().unwrap() as f32;
    let betas = floats(&recipe["betas"]);
    let hyper = HyperParams {
        beta1: betas[0] as f32,
        beta2: betas[1] as f32,
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        grad_clip: number("grad_clip"),
    };
    let options = ModelOptions {
        B: shape.B,
        T: shape.T,
        min_rows: 0,
        recompute: Recompute::Gelu,
        dropout: DropoutRates::NONE,
        logits_bytes: 1 << 20,
        sharding: Sharding::NONE,
        frozen: Frozen::all_but_adapters(&model.config),
    };
    let (optimizer, use_master_weights) = (OptimizerOptions::default(), false);
    let options =
        ReplicaOptions { model: options, hyper, optimizer, use_master_weights, decode_context: None };
    let dev = cpu();
    let plan = ReplicaPlan::new(model.config, options, dev.as_ref()).unwrap();
    let mut replica = plan.allocate(dev, Peers::alone(), false).unwrap();
    replica.load(&model.params).unwrap();
    replica
}

/// Twenty steps of AdamW with clipping, from a start and to an end that PEFT wrote. It computes in
/// f64, so the distance is that of f32, which each step adds to.
#[test]
fn twenty_steps_are_those_of_peft() {
    let run = json(&fixture("lora/run.json"));
    let shape = BatchShape::new(3, 16);
    let mut replica = tiny(&run["recipe"], shape);
    let tokens: Vec<i32> =
        floats(&json(&fixture("reference.json"))["tokens"]).into_iter().map(|t| t as i32).collect();
    let batch = |step: usize| {
        let inputs = tokens[step * shape.rows()..][..shape.rows()].to_vec();
        let targets = tokens[step * shape.rows() + 1..][..shape.rows()].to_vec();
        Ok(Batch { rows_by_token: rows_by_token(&inputs), inputs, targets, packed: None })
    };
    let lr = run["recipe"]["lr"].as_f64().unwrap() as f32;
    let (losses, norms) = (floats(&run["losses"]), floats(&run["norms"]));
    assert_eq!((losses.len(), norms.iter().filter(|&&norm| norm > 1.0).count() > 0), (20, true));
    for (step, (loss, norm)) in losses.into_iter().zip(norms).enumerate() {
        let stats = replica.forward_backward(|| batch(step), shape, 1, shape.rows(), 1.0, || 0.0).unwrap();
        for (what, got, want, tolerance) in
            [("loss", stats.loss, loss, 2e-6), ("norm", stats.norm, norm, 1e-5)]
        {
            let error = (f64::from(got) / want - 1.0).abs();
            assert!(error <= tolerance, "step {step}: {what} {got}, expected {want}, off by {error:e}");
        }
        replica.update(step, lr, stats.norm, 1.0).unwrap();
    }
    let Replica { zero, dev, model, .. } = &mut replica;
    let (config, params) = (model.weights.config, zero.params().clone());
    let own = ParamLayout::new(&config).adapters();
    let mut found = vec![f32::NAN; own.len()];
    zero.download(dev.as_mut(), &params, None, own.start, &mut found).unwrap();
    let want = Adapter::read(&fixture("lora/end"), &config.without_lora()).unwrap();
    assert_eq!(Some(want.lora), config.lora);
    let error = found.iter().zip(&want.values).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(error <= 2e-5, "adapters are off by {error:e}");
    assert!(found.iter().all(|x| x.is_finite()));

    // Merged, in one model without adapters.
    let mut merged = checkpoint::load_model(&fixture("model.bin")).unwrap();
    want.merge_into(&mut merged);
    replica.load(&[merged.params, vec![0.0; own.len()]].concat()).unwrap();
    let mean = floats(&run["after"]).iter().sum::<f64>() / shape.rows() as f64;
    for _ in 0..2 {
        let stats = replica.forward_backward(|| batch(0), shape, 1, shape.rows(), 1.0, || 0.0).unwrap();
        let error = (f64::from(stats.loss) / mean - 1.0).abs();
        assert!(error <= 2e-6, "merged: loss {}, expected {mean}, off by {error:e}", stats.loss);
        // And apart.
        let plain = checkpoint::load_model(&fixture("model.bin")).unwrap();
        replica.load(&[plain.params, want.values.clone()].concat()).unwrap();
    }
}

const LORA: &str = "--lora-rank 5 --lora-alpha 7.5 --lora-targets all -l 1e-2 -c 0.1 -d 64 -n 3 -y 1";

fn bytes(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a checkpoint, of two runs.
fn same_files(corpus: &Corpus, step: usize) {
    corpus.assert_same_files([
        format!("model_{step:08}.bin"),
        format!("state_{step:08}_00000.bin"),
        format!("adapter_{step:08}/adapter_model.safetensors"),
        format!("adapter_{step:08}/adapter_config.json"),
        "base.bin".to_owned(),
    ]);
}

#[test]
fn a_run_resumes_to_the_same_bits() {
    let corpus = Corpus::new();
    for dir in ["whole", "parts"] {
        let text = stdout(&succeed(&mut corpus.train_with(&format!("{LORA} -x 8 -nk 2 -o {dir}"))));
        let row = |name: &str, value: &str| {
            let expected = format!("| {name:<21} | {value:<50} |");
            assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
        };
        row("adapters", "rank 5, alpha 7.5, beside qkvw,attprojw,fcw,fcprojw");
        row("qkvw", "frozen");
        row("qkvw.lora_A", "trained: 160 parameters");
        // 16 and 48, 16 and 16, 16 and 64, 64 and 16 channels, in two layers.
        row("decayed", "2560 parameters in 16 tensors");
    }
    // Old checkpoints go with their adapters.
    assert!(
        !corpus.path("whole/adapter_00000003").exists() && !corpus.path("whole/model_00000003.bin").exists()
    );
    forget_after(&corpus.path("parts"), 6);
    // The adapters of the run are those of a run without flags.
    let flags = "-l 1e-2 -c 0.1 -d 64 -n 3 -y 1 -x 8 -nk 2 -o parts";
    let text = stdout(&succeed(&mut corpus.train_with(flags)));
    assert!(!text.contains("WARNING"), "{text}");
    assert_eq!(losses(&corpus.path("parts")), losses(&corpus.path("whole")));
    same_files(&corpus, 8);
}

#[test]
fn kernels_resume_a_run_to_the_same_bits() {
    let corpus = Corpus::new();
    write_small_model(&corpus.path("small.bin"));
    let flags = "--lora-rank 4 --lora-targets c_attn,mlp.c_fc -l 1e-2 -n 2 -y 1 -x 4";
    for dir in ["whole", "parts"] {
        succeed(&mut corpus.train_cu_with(&format!("{flags} -o {dir}")));
    }
    forget_after(&corpus.path("parts"), 2);
    succeed(&mut corpus.train_cu_with(&format!("{flags} -o parts")));
    assert_eq!(losses(&corpus.path("parts")), losses(&corpus.path("whole")));
    same_files(&corpus, 4);
    let config = json(&corpus.path("whole/adapter_00000004/adapter_config.json"));
    assert_eq!(config["target_modules"], serde_json::json!(["attn.c_attn", "mlp.c_fc"]));
    assert_eq!((&config["base_model_name_or_path"], &config["r"]), (&"small.bin".into(), &4.into()));
}

/// Two ranks write what one of them gathered, in the same calls, and one rank goes on from it.
#[test]
fn ranks_write_whole_checkpoints() {
    let corpus = Corpus::new();
    let run = |dir: &str, stage: usize| {
        let rank = |rank: usize| {
            let flags = format!("{LORA} --grad-clip 0 -x 6 -b 1 -d 32 -z {stage} -o {dir}");
            let mut command = corpus.train_with(&flags);
            common::as_rank(&mut command, rank, 2).stdout(Stdio::null()).spawn().unwrap()
        };
        for mut child in [rank(0), rank(1)] {
            assert!(child.wait().unwrap().success());
        }
    };
    run("whole", 0);
    for stage in [1, 2, 3] {
        let _ = std::fs::remove_dir_all(corpus.path("parts"));
        run("parts", stage);
        assert_eq!(losses(&corpus.path("parts")), losses(&corpus.path("whole")));
        same_files(&corpus, 6);
        forget_after(&corpus.path("parts"), 3);
        run("parts", stage);
        same_files(&corpus, 6);
    }
    for dir in ["whole", "parts"] {
        let flags = format!("{LORA} --grad-clip 0 -x 8 -b 1 -d 32 -o {dir}");
        succeed(&mut corpus.train_with(&flags));
    }
    same_files(&corpus, 8);
}

#[test]
fn checkpoints_are_merged_and_an_adapter_starts_another_run() {
    let corpus = Corpus::new();
    succeed(&mut corpus.train_with("-x 0 -o start"));
    let start = "-e start --lora-rank 3 --lora-targets c_proj -l 1e-1 -d 64";
    let train = |flags: &str| {
        let mut command = Command::new(common::TRAIN_GPT2);
        command
            .current_dir(corpus.dir.path())
            .args("-i x_train_*.bin -j x_val_*.bin -b 2 -t 16 -s 0".split(' '));
        command.args(flags.split(' '));
        stdout(&succeed(&mut command))
    };
    let first = train(&format!("{start} -v 5 -m 4 -x 10 -o first"));
    let val = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("val loss")).map(str::to_owned).collect()
    };
    let val_first = val(&first);
    assert!(val_first.len() == 3 && val_first[0] != val_first[2], "{first}");
    let same =
        |a: &str, b: &str| assert!(bytes(corpus.path(a)) == bytes(corpus.path(b)), "{a} and {b} differ");
    same("first/base.bin", "start/model_00000000.bin");
    let dir = corpus.dir.path();
    succeed(&mut warpsmith(dir, "convert first/base.bin merged.bin --adapter first/adapter_00000010"));
    same("merged.bin", "first/model_00000010.bin");
    // The adapters that a run ends with are those that another starts with.
    let second = train("-e start --adapter first/adapter_00000010 -v 5 -m 4 -x 0 -o second");
    assert_eq!(val(&second)[0], val_first[2]);
    same(
        "second/adapter_00000000/adapter_model.safetensors",
        "first/adapter_00000010/adapter_model.safetensors",
    );
    let eval = stdout(&succeed(&mut warpsmith(dir, "eval -e first -j x_val_*.bin -b 2 -t 16 -m 4")));
    let number =
        |text: &str| text.split_whitespace().nth(2).unwrap().trim_end_matches(',').parse::<f64>().unwrap();
    assert!((number(&eval) / number(&val_first[2]) - 1.0).abs() < 1e-5, "{eval}{}", val_first[2]);
}

#[test]
fn flags_that_do_not_fit_are_one_line() {
    let corpus = Corpus::new();
    let refuses = |flags: &str, words: &[&str]| refuse(&mut corpus.train_with(flags), words);
    refuses("-x 1 --lora-alpha 16", &["--lora-alpha: there are no adapters", "--lora-rank"]);
    refuses("-x 1 --lora-targets all", &["--lora-targets: there are no adapters"]);
    refuses("-x 1 --lora-rank 4 --lora-targets wte", &["--lora-targets", "expected qkvw, attprojw", "wte"]);
    refuses("-x 1 --lora-rank 0", &["--lora-rank"]);
    refuses("-x 1 --lora-rank 100000", &["--lora-rank 100000: expected at most 16384"]);
    refuses("-x 1 --lora-rank 4 --lora-alpha 0", &["--lora-alpha"]);
    refuses("-x 1 --lora-rank 4 --freeze wte", &["--freeze: with LoRA"]);
    refuses("-x 1 --lora-rank 4 --optimizer muon", &["--optimizer muon: adapters are trained by AdamW"]);
    refuses("-x 1 --lora-rank 4 --write-tensors 1", &["--write-tensors 1"]);
    let ends = |flags: &str, words: &[&str]| refuse_in_the_end(&mut corpus.train_with(flags), words);
    ends(
        "-x 1 --adapter nowhere",
        &["--adapter: belongs to the model that it was trained on", "a shape in -e"],
    );
    ends("-x 1 --lora-rank 4 --lr-scale fcw=2", &["--lr-scale: fcw: frozen"]);
    ends(
        "-x 1 --lora-rank 4 --lr-scale fcw.lora_B=2",
        &["--lr-scale: fcw.lora_B: the model has no such adapter"],
    );
    succeed(&mut corpus.train_with("-x 2 --lora-rank 4 --lr-scale qkvw.lora_B=16 -l 1e-3 -o out"));
    succeed(&mut corpus.train_with("-x 1 -l 1e-3 -o plain"));
    ends("-x 3 -y 1 -o out --lora-rank 8", &["--lora-rank 8: the run in -o has 4"]);
    ends(
        "-x 3 -y 1 -o out --lora-targets all",
        &["--lora-targets qkvw,attprojw,fcw,fcprojw: the run in -o has qkvw"],
    );
    ends("-x 3 -y 1 -o out --freeze wte", &["--freeze: with LoRA"]);
    ends("-x 3 -y 1 -o plain --lora-rank 4", &["--lora-rank 4: the run in -o has none"]);
    let dir = corpus.dir.path();
    let convert = |flags: &str| warpsmith(dir, &format!("convert plain out.bin --adapter {flags}"));
    refuse(&mut convert("nowhere"), &["--adapter: ", "adapter_config.json"]);
}

/// Adapters that are torn, foreign, or do not fit the model are refused by name, and a checkpoint
/// with them is passed over.
#[test]
fn damaged_adapters_are_one_line() {
    let corpus = Corpus::new();
    succeed(&mut corpus.train_with("-x 4 -n 2 --lora-rank 2 -l 1e-3 -o out"));
    let (dir, adapter) = (corpus.dir.path(), corpus.path("out/adapter_00000004"));
    let (weights, config) = (adapter.join("adapter_model.safetensors"), adapter.join("adapter_config.json"));
    let good = (bytes(weights.clone()), std::fs::read_to_string(&config).unwrap());
    let refuses = |words: &[&str]| {
        let line = "convert out/base.bin merged.bin --adapter out/adapter_00000004";
        refuse_in_the_end(&mut warpsmith(dir, line), words);
    };
    let edit = |from: &str, to: &str| {
        assert!(good.1.contains(from), "{from} in {}", good.1);
        std::fs::write(&config, good.1.replace(from, to)).unwrap();
    };
    for (from, to, word) in [
        ("\"LORA\"", "\"IA3\"", "expected peft_type LORA, found IA3"),
        ("\"r\": 2", "\"r\": 0", "expected a rank r"),
        (
            "\"r\": 2",
            "\"r\": 3",
            "expected tensor base_model.model.transformer.h.0.attn.c_attn.lora_A.weight of shape [3, 16], found [2, 16]",
        ),
        ("\"lora_alpha\": 8", "\"lora_alpha\": -1", "expected a lora_alpha above 0"),
        ("\"use_rslora\": false", "\"use_rslora\": true", "expected no use_rslora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "expected no bias"),
        ("{", "[", "adapter_config.json"),
    ] {
        edit(from, to);
        refuses(&[word]);
    }
    std::fs::write(&config, &good.1).unwrap();
    std::fs::write(&weights, &good.0[..good.0.len() - 4]).unwrap();
    refuses(&["adapter_model.safetensors: expected "]);
    let resume = |step: usize| {
        let output = succeed(&mut corpus.train_with("-x 4 -n 2 -y 1 -l 1e-3 -o out"));
        let text = stdout(&output) + &common::stderr(&output);
        assert!(text.contains(&format!("checkpoint of step {step}")), "{text}");
        text
    };
    assert!(resume(2).contains("adapter_00000004/adapter_model.safetensors"));
    assert!(bytes(weights.clone()) == good.0, "the same run writes the same adapters");
    let mut flipped = good.0.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, flipped).unwrap();
    assert!(resume(2).contains("checksum"));
    // Without the model that they belong to, no checkpoint is complete.
    let base = corpus.path("out/base.bin");
    let whole = bytes(base.clone());
    std::fs::write(&base, &whole[..whole.len() - 4]).unwrap();
    refuse_in_the_end(
        &mut corpus.train_with("-x 4 -n 2 -y 1 -o out"),
        &["no complete checkpoint", "base.bin"],
    );
}
