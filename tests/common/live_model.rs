//! A model with random weights of a lively size and one batch, whose gradients are compared with
//! differences of its loss.

use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::buckets::rows_by_token;
use warpsmith::model::activations::Recompute;
use warpsmith::model::backward::MicroStep;
use warpsmith::model::hooks::NoHooks;
use warpsmith::model::{BatchShape, GPT2, ModelOptions, dropout};
use warpsmith::ops::{DropoutState, Ops, download_f32, plan_scratch, upload_f32};
use warpsmith::params::frozen::Frozen;
use warpsmith::params::{self, ParamSpec};
use warpsmith::rng::Mt19937;
use warpsmith::sharding::Sharding;
use warpsmith::tensor::{MemoryPlan, Tensor};

const SHAPE: BatchShape = BatchShape::new(2, 24);
const AT: MicroStep = MicroStep { first: true, fresh_grads: true, dropout: true };

/// A model that trains its adapters, if it has any, and otherwise all parameters.
pub struct LiveModel {
    pub dev: Box<dyn Ops>,
    pub model: GPT2,
}

impl LiveModel {
    pub fn new(
        mut dev: Box<dyn Ops>,
        config: ModelConfig,
        recompute: Recompute,
        dropout: DropoutRates,
    ) -> Self {
        let frozen = config.lora.map_or_else(Frozen::default, |_| Frozen::all_but_adapters(&config));
        let options = ModelOptions {
            B: SHAPE.B,
            T: SHAPE.T,
            min_rows: 0,
            recompute,
            dropout,
            logits_bytes: 1 << 20,
            sharding: Sharding::NONE,
            frozen,
        };
        let mut plan = MemoryPlan::new();
        let model = GPT2::plan(&config, &options, dev.float_dtype(), &mut plan);
        plan_scratch(dev.as_ref(), &[model.limits()], &mut plan).unwrap();
        dev.allocate(&plan).unwrap();
        let mut rng = Mt19937::new(7);
        for spec in params::all(&config) {
            for l in 0..spec.layers(&config) {
                let tensor = model.weights.get(spec.param, l);
                let mut values = vec![0.0; tensor.len];
                rng.normal_fill(&mut values, if spec.name.ends_with("nw") { 1.0 } else { 0.0 }, 0.1);
                upload_f32(dev.as_mut(), tensor, &values).unwrap();
            }
        }
        let tokens: Vec<i32> = (0..=SHAPE.rows() as i32).map(|i| i * i % config.V as i32).collect();
        let (inputs, targets) = (&tokens[..SHAPE.rows()], &tokens[1..]);
        model.load_batch(dev.as_mut(), SHAPE, inputs, targets).unwrap();
        model.load_rows_by_token(dev.as_mut(), &rows_by_token(inputs)).unwrap();
        model.load_dloss(dev.as_mut(), 1.0 / SHAPE.rows() as f32).unwrap();
        let state = DropoutState { key: dropout::key(5, 6), first_row: 48, unused: 0 };
        model.load_dropout(dev.as_mut(), state).unwrap();
        LiveModel { dev, model }
    }

    /// The losses of all rows, with dropout.
    pub fn losses(&mut self) -> Vec<f32> {
        let LiveModel { dev, model } = self;
        let losses = model.acts.losses;
        dev.fill(losses, 0.0).unwrap();
        model.forward_to_train(dev.as_mut(), &mut NoHooks, SHAPE, AT).unwrap();
        model.losses(dev.as_mut(), SHAPE).unwrap();
        self.download(losses)
    }

    pub fn backward(&mut self) {
        let LiveModel { dev, model } = self;
        model.forward_to_train(dev.as_mut(), &mut NoHooks, SHAPE, AT).unwrap();
        model.backward(dev.as_mut(), SHAPE, AT, &mut NoHooks).unwrap();
    }

    pub fn download(&mut self, tensor: Tensor) -> Vec<f32> {
        let mut host = vec![f32::NAN; tensor.len];
        download_f32(self.dev.as_mut(), &mut host, tensor).unwrap();
        host
    }

    /// The gradient of layer `l` of a parameter.
    pub fn gradient(&mut self, spec: &ParamSpec, l: usize) -> Vec<f32> {
        self.download(self.model.grad(spec.param, l))
    }

    /// Moves each tensor of each layer along its gradient, and compares the change of the loss.
    pub fn check_gradients(&mut self, specs: impl Iterator<Item = &'static ParamSpec>) {
        self.backward();
        for spec in specs {
            for l in 0..spec.layers(&self.model.weights.config) {
                self.check_gradient(spec, l);
            }
        }
    }

    fn check_gradient(&mut self, spec: &ParamSpec, l: usize) {
        let weights = self.model.weights.get(spec.param, l);
        let (at, gradient) = (self.download(weights), self.gradient(spec, l));
        let squared: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
        // The gradient's own direction, in which the loss changes by 0.004 in all.
        let step = 0.002 / squared;
        let mut mean_at = |sign: f64| {
            let moved: Vec<f32> =
                at.iter().zip(&gradient).map(|(&w, &g)| w + (sign * step) as f32 * g).collect();
            upload_f32(self.dev.as_mut(), weights, &moved).unwrap();
            let losses = self.losses();
            losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
        };
        let change = (mean_at(1.0) - mean_at(-1.0)) / (2.0 * step * squared);
        upload_f32(self.dev.as_mut(), weights, &at).unwrap();
        assert!((change - 1.0).abs() <= 0.005, "d{}, layer {l}: {change} of the expected change", spec.name);
    }
}
