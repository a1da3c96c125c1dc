//! The model on the CPU device, op by op, against PyTorch. `fixtures/README.md` says what was
//! recorded and how.

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;
use warpsmith::checkpoint;
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::buckets::rows_by_token;
use warpsmith::device::compare::{adamw_part, adamw_step, assert_close, assert_same_bits};
use warpsmith::device::cpu::{Cpu, matmul::Precision};
use warpsmith::model::activations::Recompute;
use warpsmith::model::backward::MicroStep;
use warpsmith::model::dropout;
use warpsmith::model::hooks::NoHooks;
use warpsmith::model::{BatchShape, GPT2, ModelOptions, init};
use warpsmith::ops::{AdamW, Device, DropoutState, Ops};
use warpsmith::optim::optimizer::{HyperParams, Muon, Optimizer, OptimizerOptions, Update};
use warpsmith::params::PARAMS;
use warpsmith::params::frozen::Frozen;
use warpsmith::rng::{Mt19937, identity_permutation};
use warpsmith::sharding::{Partition, Sharding};
use warpsmith::tensor::{Dtype, MemoryPlan, Tensor};

const MODELS: [&str; 2] = ["gpt2_tiny", "gpt2_tiny_no_qkv_bias"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The tiny model with its recorded weights.
struct Tiny {
    dev: Cpu,
    model: GPT2,
    optimizer: Optimizer,
}

impl Tiny {
    fn load(name: &str, shape: BatchShape, recompute: Recompute, logits_bytes: usize) -> Tiny {
        Self::load_with(OptimizerOptions::default(), name, shape, recompute, logits_bytes, DropoutRates::NONE)
    }

    fn load_with(
        choices: OptimizerOptions,
        name: &str,
        shape: BatchShape,
        recompute: Recompute,
        logits_bytes: usize,
        dropout: DropoutRates,
    ) -> Tiny {
        let file = checkpoint::load_model(&fixture(&format!("{name}/model.bin"))).unwrap();
        let config = ModelConfig { qkv_bias: name == "gpt2_tiny", ..file.config };
        let sharding = Sharding::NONE;
        let (BatchShape { B, T, .. }, min_rows, frozen) = (shape, 0, Frozen::default());
        let options = ModelOptions { B, T, min_rows, recompute, dropout, logits_bytes, sharding, frozen };
        let mut dev = Cpu::new(Precision::F32).unwrap();
        let mut plan = MemoryPlan::new();
        let model = GPT2::plan(&config, &options, dev.float_dtype(), &mut plan);
        let recipe = &json(&format!("{name}/reference.json"))["recipe"];
        let number = |key: &str| recipe[key].as_f64().unwrap() as f32;
        let hyper = HyperParams {
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            grad_clip: number("grad_clip"),
        };
        let layout = &model.weights.params.layout;
        let optimizer =
            Optimizer::plan(layout, Partition::WHOLE, Dtype::F32, false, (hyper, choices), &mut plan);
        dev.allocate(&plan).unwrap();
        model.weights.params.upload(&mut dev, 0, &file.params).unwrap();
        Tiny { dev, model, optimizer }
    }

    /// Runs forward and backward on one micro-batch.
    fn run(&mut self, shape: BatchShape, inputs: &[i32], targets: &[i32], at: MicroStep, dloss: f32) {
        self.model.load_dloss(&mut self.dev, dloss).unwrap();
        self.model.load_batch(&mut self.dev, shape, inputs, targets).unwrap();
        self.model.forward_to_train(&mut self.dev, &mut NoHooks, shape, at).unwrap();
        self.model.load_rows_by_token(&mut self.dev, &rows_by_token(inputs)).unwrap();
        self.model.backward(&mut self.dev, shape, at, &mut NoHooks).unwrap();
    }

    fn loss_and_norm(&mut self) -> (f32, f32) {
        let loss = self.model.loss_sum(&mut self.dev).unwrap();
        let norm_squared = self.model.acts.scalars.slice(1, 1);
        self.dev.norm_squared(norm_squared, &[self.model.grads().all()]).unwrap();
        (self.download(loss)[0], self.download(norm_squared)[0])
    }

    fn download(&mut self, tensor: Tensor) -> Vec<f32> {
        let mut host = vec![f32::NAN; tensor.len];
        self.dev.download(bytemuck::cast_slice_mut(&mut host), tensor).unwrap();
        host
    }
}

#[test]
fn logits_are_pytorchs() {
    for name in MODELS {
        for (file, T) in [("step_T16", 16), ("step_T11", 11)] {
            let shape = BatchShape::new(3, T);
            let bytes = std::fs::read(fixture(&format!("{name}/{file}.safetensors"))).unwrap();
            let recorded = SafeTensors::deserialize(&bytes).unwrap();
            let i32s =
                |key: &str| bytemuck::pod_collect_to_vec::<u8, i32>(recorded.tensor(key).unwrap().data());
            let want = bytemuck::pod_collect_to_vec::<u8, f32>(recorded.tensor("logits").unwrap().data());
            // All rows fit one chunk, so evaluate leaves all logits in the buffer.
            let mut tiny = Tiny::load(name, shape, Recompute::Gelu, 1 << 20);
            tiny.model.load_batch(&mut tiny.dev, shape, &i32s("tokens"), &i32s("targets")).unwrap();
            tiny.model.evaluate(&mut tiny.dev, &mut NoHooks, shape).unwrap();
            let (V, Vp) = (tiny.model.weights.config.V, tiny.model.weights.config.Vp);
            let padded = tiny.download(tiny.model.acts.logits);
            let got: Vec<f32> =
                padded.chunks_exact(Vp).take(shape.rows()).flat_map(|row| &row[..V]).copied().collect();
            assert_close(&format!("{name} {file} logits"), &got, &want, 1e-5);
        }
    }
}

#[test]
fn losses_logits_and_the_gradients_of_all_tensors_are_pytorchs() {
    for name in MODELS {
        for (file, T) in [("step_T16", 16), ("step_T11", 11)] {
            for recompute in [Recompute::Nothing, Recompute::Gelu, Recompute::GeluAndLayernorm] {
                single_step(name, file, BatchShape::new(3, T), recompute);
            }
        }
    }
}

fn single_step(name: &str, file: &str, shape: BatchShape, recompute: Recompute) {
    let bytes = std::fs::read(fixture(&format!("{name}/{file}.safetensors"))).unwrap();
    let recorded = SafeTensors::deserialize(&bytes).unwrap();
    let f32s = |key: &str| bytemuck::pod_collect_to_vec::<u8, f32>(recorded.tensor(key).unwrap().data());
    let i32s = |key: &str| bytemuck::pod_collect_to_vec::<u8, i32>(recorded.tensor(key).unwrap().data());
    let (inputs, targets) = (i32s("tokens"), i32s("targets"));
    let rows = shape.rows();

    // Logits of seven rows at a time, so the last chunk is ragged; buffers for a longer T than the
    // batch's.
    let mut tiny = Tiny::load(name, BatchShape::new(3, 16), recompute, 7 * 128 * 4);
    tiny.model.load_batch(&mut tiny.dev, shape, &inputs, &targets).unwrap();
    let losses = tiny.model.evaluate(&mut tiny.dev, &mut NoHooks, shape).unwrap();
    assert_close("losses", &losses, &f32s("losses"), 1e-5);

    // Poison everything that the first micro-step must overwrite or clear.
    for &grads in tiny.model.grads().units() {
        tiny.dev.fill(grads, f32::NAN).unwrap();
    }
    tiny.dev.fill(tiny.model.acts.losses, f32::NAN).unwrap();
    let at = MicroStep { first: true, fresh_grads: true, dropout: false };
    tiny.run(shape, &inputs, &targets, at, 1.0 / rows as f32);
    let loss_sum = tiny.loss_and_norm().0;
    assert_close("loss", &[loss_sum / rows as f32], &f32s("loss"), 1e-6);
    for spec in &PARAMS {
        let layers = 0..spec.layers(&tiny.model.weights.config);
        let grad: Vec<f32> = layers.flat_map(|l| tiny.download(tiny.model.grad(spec.param, l))).collect();
        let what = format!("{name} {file} {recompute:?} d{}", spec.name);
        assert_close(&what, &grad, &f32s(&format!("d{}", spec.name)), 1e-5);
    }
}

/// PyTorch has the masks that `dev/dropout_fixture.py` draws.
#[test]
fn losses_and_gradients_with_dropout_are_pytorchs() {
    let shape = BatchShape::new(3, 16);
    let bytes = std::fs::read(fixture("gpt2_tiny/dropout.safetensors")).unwrap();
    let recorded = SafeTensors::deserialize(&bytes).unwrap();
    let f32s = |key: &str| bytemuck::pod_collect_to_vec::<u8, f32>(recorded.tensor(key).unwrap().data());
    let i32s = |key: &str| bytemuck::pod_collect_to_vec::<u8, i32>(recorded.tensor(key).unwrap().data());
    let rates = DropoutRates { embd: 0.1, attn: 0.2, resid: 0.3 };
    for recompute in [Recompute::Nothing, Recompute::Gelu, Recompute::GeluAndLayernorm] {
        let mut tiny =
            Tiny::load_with(OptimizerOptions::default(), "gpt2_tiny", shape, recompute, 7 * 128 * 4, rates);
        let state = DropoutState { key: dropout::key(42, 3), first_row: 1000, unused: 0 };
        tiny.model.load_dropout(&mut tiny.dev, state).unwrap();
        for &grads in tiny.model.grads().units() {
            tiny.dev.fill(grads, f32::NAN).unwrap();
        }
        let at = MicroStep { first: true, fresh_grads: true, dropout: true };
        tiny.run(shape, &i32s("tokens"), &i32s("targets"), at, 1.0 / shape.rows() as f32);
        assert_close("losses", &tiny.download(tiny.model.acts.losses), &f32s("losses"), 1e-6);
        for spec in &PARAMS {
            let layers = 0..spec.layers(&tiny.model.weights.config);
            let grad: Vec<f32> = layers.flat_map(|l| tiny.download(tiny.model.grad(spec.param, l))).collect();
            let (what, want) = (format!("{recompute:?} d{}", spec.name), f32s(&format!("d{}", spec.name)));
            assert_close(&what, &grad, &want, 1e-5);
            let differences = grad.iter().zip(&want).map(|(got, want)| (got - want).abs());
            assert!(differences.fold(0.0, f32::max) <= 1e-6, "{what}");
        }
        // Evaluation has no dropout.
        let losses = tiny.model.evaluate(&mut tiny.dev, &mut NoHooks, shape).unwrap();
        let bytes = std::fs::read(fixture("gpt2_tiny/step_T16.safetensors")).unwrap();
        let plain = SafeTensors::deserialize(&bytes).unwrap();
        let want = bytemuck::pod_collect_to_vec::<u8, f32>(plain.tensor("losses").unwrap().data());
        assert_close("losses without dropout", &losses, &want, 1e-5);
    }
}

/// The forward pass keeps the gradient of GELU, or the backward pass puts it in place of its input.
#[test]
fn recomputing_leaves_the_bits_of_the_gradient_of_gelu() {
    let shape = BatchShape::new(3, 16);
    let tokens: Vec<i32> = (0..shape.rows() as i32).collect();
    let kept = |recompute| {
        let mut tiny = Tiny::load(MODELS[0], shape, recompute, 1 << 20);
        let at = MicroStep { first: true, fresh_grads: true, dropout: false };
        tiny.run(shape, &tokens, &tokens, at, 1.0 / shape.rows() as f32);
        let layers = 0..tiny.model.weights.config.L;
        layers.flat_map(|l| tiny.download(tiny.model.acts.fch.get(l, shape.rows()))).collect::<Vec<f32>>()
    };
    let gradient = kept(Recompute::Nothing);
    assert!(gradient.iter().all(|x| (-0.14..1.14).contains(x)));
    for recompute in [Recompute::Gelu, Recompute::GeluAndLayernorm] {
        assert_same_bits(&format!("{recompute:?}"), &kept(recompute), &gradient);
    }
}

#[test]
fn twenty_steps_of_training_are_pytorchs() {
    for name in MODELS {
        for grad_accum_steps in [1, 2] {
            let recorded =
                &json(&format!("{name}/reference.json"))[format!("train_accum{grad_accum_steps}")]["f64"];
            let (loss, norm) = train(OptimizerOptions::default(), name, grad_accum_steps, recorded);
            for (step, (got, want)) in loss.iter().zip(floats(&recorded["loss"])).enumerate() {
                let error = (got - want).abs() / want;
                assert!(error <= 1e-5, "{name} step {step}: loss {got}, expected {want}, off by {error:e}");
            }
            for (step, (got, want)) in norm.iter().zip(floats(&recorded["norm"])).enumerate() {
                let error = (got - want).abs() / want;
                assert!(error <= 1e-4, "{name} step {step}: norm {got}, expected {want}, off by {error:e}");
            }
        }
    }
}

/// Muon for the matrices of the blocks, and AdamW for the rest. In f32 PyTorch's own run is off by
/// 1e-7 of a loss and 3e-7 of a norm; a sum in another order may be off by some times that, and
/// every step adds to it.
#[test]
fn twenty_steps_of_muon_are_pytorchs() {
    let recorded = &json("gpt2_tiny/muon.json");
    let lr = json("gpt2_tiny/reference.json")["recipe"]["lr"].as_f64().unwrap();
    let number = |key: &str| recorded[key].as_f64().unwrap();
    let muon = Muon { lr_ratio: (number("muon_lr") / lr) as f32, momentum: number("muon_momentum") as f32 };
    let choices = OptimizerOptions { muon: Some(muon), ..OptimizerOptions::default() };
    let (loss, norm) = train(choices, "gpt2_tiny", 1, &recorded["f64"]);
    for (what, got, tolerance) in [("loss", loss, 5e-6), ("norm", norm, 2e-5)] {
        for (step, (got, want)) in got.iter().zip(floats(&recorded["f64"][what])).enumerate() {
            let error = (got - want).abs() / want;
            assert!(error <= tolerance, "step {step}: {what} {got}, expected {want}, off by {error:e}");
        }
    }
}

fn train(
    choices: OptimizerOptions,
    name: &str,
    grad_accum_steps: usize,
    recorded: &Value,
) -> (Vec<f64>, Vec<f64>) {
    let shape = BatchShape::new(3, 16);
    let rows = shape.rows();
    let tokens = floats(&json(&format!("{name}/reference.json"))["tokens"]);
    let tokens: Vec<i32> = tokens.into_iter().map(|t| t as i32).collect();
    let mut tiny = Tiny::load_with(choices, name, shape, Recompute::Gelu, 1 << 20, DropoutRates::NONE);
    let dloss = 1.0 / (rows * grad_accum_steps) as f32;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (step, lr) in floats(&recorded["lr"]).into_iter().enumerate() {
        for micro_step in 0..grad_accum_steps {
            let start = (step * grad_accum_steps + micro_step) * rows;
            let (inputs, targets) = (&tokens[start..start + rows], &tokens[start + 1..start + 1 + rows]);
            let first = micro_step == 0;
            tiny.run(shape, inputs, targets, MicroStep { first, fresh_grads: first, dropout: false }, dloss);
        }
        let (loss_sum, norm_squared) = tiny.loss_and_norm();
        let (params, grads) = (&tiny.model.weights.params, tiny.model.grads());
        let grad_scale = tiny.optimizer.clip_scale(norm_squared.sqrt());
        let update = Update { lr: lr as f32, grad_scale, t: step + 1 };
        for unit in 0..params.units().len() {
            tiny.optimizer.update(&mut tiny.dev, unit, params, grads, update).unwrap();
        }
        losses.push(f64::from(loss_sum * dloss));
        norms.push(f64::from(norm_squared.sqrt()));
    }
    assert_eq!(losses.len(), 20);
    (losses, norms)
}

#[test]
fn a_fresh_model_is_the_one_pytorch_draws() {
    let recorded = json("init.json");
    let number = |key: &str| recorded["config"][key].as_u64().unwrap() as usize;
    let config = ModelConfig::new(number("maxT"), number("L"), number("NH"), number("C"));
    let mut dev = Cpu::new(Precision::F32).unwrap();
    let mut plan = MemoryPlan::new();
    let options = ModelOptions {
        B: 1,
        T: 1,
        min_rows: 0,
        recompute: Recompute::Gelu,
        dropout: DropoutRates::NONE,
        logits_bytes: 0,
        sharding: Sharding::NONE,
        frozen: Frozen::default(),
    };
    let model = GPT2::plan_for_evaluation(&config, &options, dev.float_dtype(), &mut plan);
    dev.allocate(&plan).unwrap();
    let seed = recorded["seed"].as_u64().unwrap() as u32;
    init::initialize(&mut dev, &config, &[&model.weights.params], seed).unwrap();
    for spec in &PARAMS {
        let mut values = Vec::new();
        for l in 0..spec.layers(&config) {
            let tensor = model.weights.get(spec.param, l);
            let mut layer = vec![f32::NAN; tensor.len];
            dev.download(bytemuck::cast_slice_mut(&mut layer), tensor).unwrap();
            values.extend(layer);
        }
        let want = &recorded["tensors"][spec.name];
        let first = floats(&want["first"]);
        let got: Vec<f64> = values.iter().take(first.len()).map(|&v| f64::from(v)).collect();
        assert_eq!(got, first, "{}", spec.name);
        let bits = values.iter().fold(0, |xor, v| xor ^ v.to_bits());
        assert_eq!(
            u64::from(bits),
            want["xor_of_bits"].as_u64().unwrap(),
            "{}: bits of all values",
            spec.name
        );
    }
}

#[test]
fn random_numbers_are_pytorchs() {
    let recorded = json("mt19937.json");
    let cases = |key: &str| recorded[key].as_array().unwrap().clone();
    for case in cases("normal") {
        let mut rng = Mt19937::new(42);
        let mut got = vec![f32::NAN; case["size"].as_u64().unwrap() as usize];
        rng.normal_fill(&mut got, 0.0, 1.0);
        assert_recorded(&got, &case);
        assert_eq!(u64::from(rng.randint32() & 0xff_ffff), case["next_low24"].as_u64().unwrap());
    }
    for case in cases("uniform") {
        let mut rng = Mt19937::new(42);
        let mut got = vec![f32::NAN; case["size"].as_u64().unwrap() as usize];
        rng.uniform(&mut got, 0.0, 1.0);
        assert_recorded(&got, &case);
    }
    for case in cases("permutations") {
        let mut rng = Mt19937::new(case["seed"].as_u64().unwrap() as u32);
        let mut got = identity_permutation(case["size"].as_u64().unwrap() as usize);
        rng.random_permutation(&mut got);
        assert_eq!(got.into_iter().map(f64::from).collect::<Vec<_>>(), floats(&case["values"]));
    }
}

/// Compares with recorded numbers; of long sequences only both ends and a checksum are recorded.
fn assert_recorded(got: &[f32], case: &Value) {
    let narrowed = |value: &Value| floats(value).into_iter().map(|v| v as f32).collect::<Vec<_>>();
    if got.len() < 1000 {
        return assert_eq!(got, narrowed(&case["values"]));
    }
    assert_eq!(got[..16], narrowed(&case["first"]));
    assert_eq!(got[got.len() - 16..], narrowed(&case["last"]));
    let bits = got.iter().fold(0, |xor, v| xor ^ v.to_bits());
    assert_eq!(u64::from(bits), case["xor_of_bits"].as_u64().unwrap());
}

#[test]
fn adamw_is_pytorchs() {
    let recorded = json("adamw.json");
    let both = |value: &Value| -> Vec<f32> {
        ["matrix", "vector"].iter().flat_map(|part| floats(&value[part])).map(|v| v as f32).collect()
    };
    let number = |key: &str| recorded["recipe"][key].as_f64().unwrap() as f32;
    let start = both(&recorded["start"]);
    let (len, matrix) = (start.len(), floats(&recorded["start"]["matrix"]).len());
    let mut plan = MemoryPlan::new();
    let [params, grads, m, v] =
        ["params", "grads", "m", "v"].map(|name| plan.add("test", name, Dtype::F32, len));
    let mut dev = Cpu::new(Precision::F32).unwrap();
    dev.allocate(&plan).unwrap();
    dev.upload(params, bytemuck::cast_slice(&start)).unwrap();
    let mut download = vec![f32::NAN; len];
    for (t, step) in (1..).zip(recorded["steps"].as_array().unwrap()) {
        dev.upload(grads, bytemuck::cast_slice(&both(&step["grads"]))).unwrap();
        let args = AdamW {
            lr: step["lr"].as_f64().unwrap() as f32,
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            t,
            ..adamw_step(params, m, v, grads)
        };
        for (start, len, weight_decay) in [(0, matrix, number("weight_decay")), (matrix, len - matrix, 0.0)] {
            dev.adamw(AdamW { weight_decay, ..adamw_part(args, start, len) }).unwrap();
        }
        dev.download(bytemuck::cast_slice_mut(&mut download), params).unwrap();
        assert_close(&format!("parameters after step {t}"), &download, &both(&step["params"]), 1e-6);
    }
    for (name, tensor) in [("exp_avg", m), ("exp_avg_sq", v)] {
        dev.download(bytemuck::cast_slice_mut(&mut download), tensor).unwrap();
        assert_close(name, &download, &both(&recorded["end"][name]), 1e-6);
    }
}
