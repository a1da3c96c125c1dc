//! LoRA: the gradients of adapters, the same on the emulated device, and what adapters change.

#[path = "common/live_model.rs"]
mod live_model;

use live_model::LiveModel;
use warpsmith::config::{DropoutRates, Lora, ModelConfig};
use warpsmith::device::compare::assert_close;
use warpsmith::device::cpu::{Cpu, matmul::Precision};
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::model::activations::Recompute;
use warpsmith::ops::{Ops, upload_f32};
use warpsmith::params::{self, ADAPTERS, ParamSpec};
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
