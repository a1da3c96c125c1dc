//! CUDA graphs of micro-steps: a step asks the driver for little, what is repeated is always the
//! same, and no bit changes.
#![cfg(emulated)]

use std::sync::{Arc, Mutex};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::buckets::rows_by_token;
use warpsmith::data::loader::Batch;
use warpsmith::device::cuda::driver::{DeviceInfo, Driver, Graph};
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::kernel::{Arg, KernelSpec, Launch, Launcher};
use warpsmith::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::model::activations::Recompute;
use warpsmith::model::hooks::NoHooks;
use warpsmith::model::{BatchShape, ModelOptions, dropout};
use warpsmith::ops::Place;
use warpsmith::optim::optimizer::{HyperParams, OptimizerOptions};
use warpsmith::params::ParamLayout;
use warpsmith::params::frozen::Frozen;
use warpsmith::replica::peers::Peers;
use warpsmith::replica::{Replica, ReplicaOptions, ReplicaPlan};
use warpsmith::sharding::{ParamBuffer, Sharding};
use warpsmith::tensor::Dtype;

/// One call of a driver.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Upload,
    Download,
    /// Its name, its geometry and the bytes of its arguments.
    Launch(&'static str, Launch, Vec<u8>),
    Copy(u64, u64, usize),
    SetBytes(u64, u8, usize),
    Capture,
    Graph,
}

/// A GPU without memory and SMs, which notes what it is asked for. What is captured is not asked
/// for.
struct Paper {
    info: DeviceInfo,
    next: u64,
    graphs: usize,
    is_capturing: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Paper {
    fn new(capability: (u32, u32), asked: Arc<Mutex<Vec<Asked>>>) -> Self {
        let info = DeviceInfo {
            name: "a GPU on paper".to_owned(),
            capability,
            sm_count: 132,
            memory_bytes: 80 << 30,
            shared_bytes: 227 * 1024,
            // Nothing is timed.
            emulated: true,
        };
        Paper { info, next: 1 << 32, graphs: 0, is_capturing: false, asked }
    }

    fn note(&mut self, asked: Asked) -> anyhow::Result<()> {
        if !self.is_capturing {
            self.asked.lock().unwrap().push(asked);
        }
        Ok(())
    }
}

impl Launcher for Paper {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, args: &[Arg]) -> anyhow::Result<()> {
        // SAFETY: an argument borrows a value of so many bytes, none of which are padding.
        let bytes = |arg: &Arg| unsafe { std::slice::from_raw_parts(arg.value.cast::<u8>(), arg.bytes) };
        self.note(Asked::Launch(kernel.name, launch, args.iter().flat_map(bytes).copied().collect()))
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> anyhow::Result<TensorMap> {
        let &TiledMatrix { address, rows, columns, box_rows, box_columns } = matrix;
        let mut map = [0; 16];
        map[0] = address;
        for (word, size) in map[1..].iter_mut().zip([rows, columns, box_rows, box_columns]) {
            *word = size as u64;
        }
        Ok(TensorMap(map))
    }
}

impl Driver for Paper {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&mut self, bytes: usize) -> anyhow::Result<u64> {
        let address = self.next;
        self.next += bytes.next_multiple_of(1 << 20) as u64;
        Ok(address)
    }

    fn upload(&mut self, _dst: u64, _src: &[u8]) -> anyhow::Result<()> {
        assert!(!self.is_capturing);
        self.note(Asked::Upload)
    }

    fn download(&mut self, dst: &mut [u8], _src: u64) -> anyhow::Result<()> {
        assert!(!self.is_capturing);
        dst.fill(0);
        self.note(Asked::Download)
    }

    fn copy(&mut self, dst: u64, src: u64, bytes: usize) -> anyhow::Result<()> {
        self.note(Asked::Copy(dst, src, bytes))
    }

    fn set_bytes(&mut self, dst: u64, value: u8, bytes: usize) -> anyhow::Result<()> {
        self.note(Asked::SetBytes(dst, value, bytes))
    }

    fn synchronize(&mut self) -> anyhow::Result<()> {
        unreachable!("a step does not wait")
    }

    fn begin_capture(&mut self) -> anyhow::Result<()> {
        self.note(Asked::Capture)?;
        self.is_capturing = true;
        Ok(())
    }

    fn end_capture(&mut self) -> anyhow::Result<Graph> {
        self.is_capturing = false;
        self.graphs += 1;
        Ok(Graph(self.graphs - 1))
    }

    fn launch_graph(&mut self, graph: Graph) -> anyhow::Result<()> {
        assert!(graph.0 < self.graphs);
        self.note(Asked::Graph)
    }

    fn lend(&mut self, address: u64, _bytes: usize) -> (u64, Place) {
        (address, Place::Host)
    }

    fn reclaim(&mut self, _address: u64, _bytes: usize) {}

    fn start_timer(&mut self) -> anyhow::Result<()> {
        unreachable!("nothing is timed")
    }

    fn stop_timer(&mut self) -> anyhow::Result<Option<f32>> {
        unreachable!("nothing is timed")
    }
}

/// A run: its model, a micro-batch, micro-steps per step.
#[derive(Clone, Copy)]
struct Recipe {
    config: ModelConfig,
    shape: BatchShape,
    grad_accum_steps: usize,
    dtype: Dtype,
    recompute: Recompute,
    dropout: DropoutRates,
}

/// GPT-2 124M with 8 micro-steps of 64 x 1024 tokens, which is cheap where nothing is computed.
const DROPOUT: DropoutRates = DropoutRates { embd: 0.1, attn: 0.3, resid: 0.2 };

const LARGE: Recipe = Recipe {
    config: ModelConfig {
        maxT: 1024,
        V: 50257,
        Vp: 50304,
        L: 12,
        NH: 12,
        C: 768,
        qkv_bias: true,
        lora: None,
    },
    shape: BatchShape::new(64, 1024),
    grad_accum_steps: 8,
    dtype: Dtype::Bf16,
    recompute: Recompute::Gelu,
    dropout: DROPOUT,
};

const TINY: Recipe = Recipe {
    config: ModelConfig { maxT: 24, V: 503, Vp: 512, L: 2, NH: 1, C: 64, qkv_bias: true, lora: None },
    shape: BatchShape::new(2, 24),
    grad_accum_steps: 3,
    dtype: Dtype::Bf16,
    recompute: Recompute::Gelu,
    dropout: DROPOUT,
};

impl Recipe {
    fn replica(&self, driver: Box<dyn Driver>, graphs: bool) -> Replica {
        let (dtype, tf32, gelu_fusion, matmul) = (self.dtype, false, 2, MatmulChoice::Own);
        let options = CudaOptions { dtype, tf32, gelu_fusion, deterministic: true, matmul, graphs };
        let dev = Box::new(Cuda::new(driver, options));
        let BatchShape { B, T, .. } = self.shape;
        let model = ModelOptions {
            B,
            T,
            min_rows: 0,
            recompute: self.recompute,
            dropout: self.dropout,
            logits_bytes: 1 << 28,
            sharding: Sharding::NONE,
            frozen: Frozen::default(),
        };
        let hyper = HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        let options = ReplicaOptions {
            model,
            hyper,
            optimizer: OptimizerOptions::default(),
            use_master_weights: true,
            decode_context: None,
        };
        let plan = ReplicaPlan::new(self.config, options, dev.as_ref()).unwrap();
        plan.allocate(dev, Peers::alone(), false).unwrap()
    }

    /// A batch of which every one has another number of different tokens.
    fn batch(&self, shape: BatchShape, number: usize) -> Batch {
        let token = |i: usize| ((i * i + number) % (number + 3) * 7 % self.config.V) as i32;
        let inputs: Vec<i32> = (0..shape.rows()).map(token).collect();
        let targets = (1..=shape.rows()).map(token).collect();
        Batch { rows_by_token: rows_by_token(&inputs), inputs, targets, packed: None }
    }

    /// Takes a step, and returns its loss and norm.
    fn step(&self, replica: &mut Replica, step: usize, loss_scale: f32) -> (f32, f32) {
        let mut number = step * self.grad_accum_steps;
        replica.dropout_key = Some(dropout::key(42, step));
        let next_batch = || {
            number += 1;
            Ok(self.batch(self.shape, number))
        };
        let (steps, counted) = (self.grad_accum_steps, self.grad_accum_steps * self.shape.rows());
        let stats =
            replica.forward_backward(next_batch, self.shape, steps, counted, loss_scale, || 0.0).unwrap();
        replica.update(step, 1e-3 / (step + 1) as f32, stats.norm, loss_scale).unwrap();
        (stats.loss, stats.norm)
    }

    /// The calls of each of some steps.
    fn asked(&self, capability: (u32, u32), graphs: bool, steps: usize) -> Vec<Vec<Asked>> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut replica = self.replica(Box::new(Paper::new(capability, asked.clone())), graphs);
        let mut of_step = |step| {
            asked.lock().unwrap().clear();
            self.step(&mut replica, step, 65536.0 / (step + 1) as f32);
            std::mem::take(&mut *asked.lock().unwrap())
        };
        (0..steps).map(&mut of_step).collect()
    }
}

/// A step of 8 micro-steps makes fewer than a hundred calls, and captures nothing after the third.
#[test]
fn a_step_makes_few_calls() {
    for capability in [(9, 0), (8, 0)] {
        let steps = LARGE.asked(capability, true, 5);
        let count = |asked: &[Asked], is: fn(&Asked) -> bool| asked.iter().filter(|a| is(a)).count();
        println!("{capability:?}: {:?} calls", steps.iter().map(Vec::len).collect::<Vec<_>>());
        for asked in &steps[3..] {
            assert_eq!(count(asked, |a| *a == Asked::Graph), 8);
            assert_eq!(count(asked, |a| *a == Asked::Capture), 0);
            assert_eq!(count(asked, |a| *a == Asked::Download), 1, "the host waits once");
            assert!(asked.len() < 100, "{} calls", asked.len());
        }
        assert!(LARGE.asked(capability, false, 1)[0].len() > 2000);
    }
}

/// Between uploads, where all may be part of a graph, kernels, geometry and arguments are the same
/// in every step, though data, loss scale, learning rate and step differ.
#[test]
fn steps_differ_only_in_what_is_uploaded() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        for (capability, recompute) in
            [((9, 0), Recompute::Nothing), ((9, 0), Recompute::GeluAndLayernorm), ((8, 0), Recompute::Gelu)]
        {
            let recipe = Recipe { dtype, recompute, ..LARGE };
            let steps = recipe.asked(capability, false, 2);
            let passes: Vec<Vec<&[Asked]>> = steps
                .iter()
                .map(|asked| asked.split(|a| *a == Asked::Upload).filter(|part| !part.is_empty()).collect())
                .collect();
            // The last is the norm, whose scalars are read, and the update.
            assert_eq!(passes[0].len(), 8 + 1);
            for (one, other) in passes[0].iter().zip(&passes[1]).take(8) {
                assert!(one.len() > 200);
                let differs = one.iter().zip(*other).find(|(a, b)| a != b);
                assert!(one.len() == other.len() && differs.is_none(), "{dtype}: {differs:?}");
            }
            // All but the first and the last, which goes on with the sum of the losses.
            assert!(passes[0][2..7].iter().all(|pass| *pass == passes[0][1]), "one list for all");
            assert!(passes[0][7].starts_with(passes[0][1]));
            assert_ne!(passes[0][8], passes[1][8]);
        }
    }
}

/// Loss and norm of each step, the evaluations between them, and the state at the end.
#[derive(Debug, PartialEq)]
struct Outcome {
    steps: Vec<(f32, f32)>,
    evaluations: Vec<Vec<f32>>,
    state: Vec<Vec<f32>>,
}

fn train(recipe: &Recipe, graphs: bool, options: EmulatorOptions) -> Outcome {
    let driver = emulated::open(recipe.dtype, options).unwrap();
    let mut replica = recipe.replica(driver, graphs);
    replica.initialize(42).unwrap();
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for step in 0..5 {
        let loss_scale = if recipe.dtype == Dtype::F16 { [1024.0, 512.0][step / 2 % 2] } else { 1.0 };
        steps.push(recipe.step(&mut replica, step, loss_scale));
        let shape = BatchShape::new(3, 16 - 5 * (step % 2));
        let batch = recipe.batch(shape, step);
        let Replica { dev, model, .. } = &mut replica;
        model.load_batch(dev.as_mut(), shape, &batch.inputs, &batch.targets).unwrap();
        evaluations.push(model.evaluate(dev.as_mut(), &mut NoHooks, shape).unwrap());
    }
    let Replica { dev, optimizer, zero, .. } = &mut replica;
    let stored = [zero.params(), &optimizer.m, &optimizer.v].into_iter().chain(&optimizer.master);
    let stored: Vec<ParamBuffer> = stored.cloned().collect();
    let mut download = |buffer: &ParamBuffer| {
        let mut values = vec![0.0; ParamLayout::new(&recipe.config).len()];
        zero.download(dev.as_mut(), buffer, None, 0, &mut values).unwrap();
        values
    };
    let state = stored.iter().map(&mut download).collect();
    Outcome { steps, evaluations, state }
}

#[test]
fn graphs_change_no_bit() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let recipe = Recipe { dtype, ..TINY };
        let plain = train(&recipe, false, EmulatorOptions::default());
        assert!(plain.steps.iter().all(|(loss, norm)| loss.is_finite() && *norm > 0.0), "{:?}", plain.steps);
        assert_eq!(plain.steps.len(), 5);
        let graphs = train(&recipe, true, EmulatorOptions::default());
        assert_eq!((&plain.steps, &plain.evaluations), (&graphs.steps, &graphs.evaluations), "{dtype}");
        assert!(plain.state == graphs.state, "{dtype}");
    }
}

#[test]
fn graphs_run_under_the_checker() {
    let recipe = Recipe { grad_accum_steps: 2, ..TINY };
    let checked = EmulatorOptions { check: true, ..EmulatorOptions::default() };
    assert!(train(&recipe, true, checked) == train(&recipe, false, EmulatorOptions::default()));
}
