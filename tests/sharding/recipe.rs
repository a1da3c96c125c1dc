//! Runs of ranks that are threads, and their outcomes.

use crate::common::Corpus;
use std::time::Duration;
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::loader::{DataLoader, LoaderOptions, Packing, Sample};
use warpsmith::device::cpu::{Cpu, matmul::Precision};
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::model::activations::Recompute;
use warpsmith::model::dropout;
use warpsmith::model::{BatchShape, ModelOptions};
use warpsmith::ops::Ops;
use warpsmith::optim::optimizer::{HyperParams, Muon, OptimizerOptions, StateType};
use warpsmith::parallel::environment::Process;
use warpsmith::parallel::queue::HostQueue;
use warpsmith::parallel::transport::testing::{Delayed, Threads};
use warpsmith::params::frozen::Frozen;
use warpsmith::params::{self, ParamLayout, ParamSpec};
use warpsmith::replica::peers::Peers;
use warpsmith::replica::{Replica, ReplicaOptions, ReplicaPlan};
use warpsmith::sharding::{Partition, Sharding, ZeroStage};
use warpsmith::tensor::Dtype;

/// The timeout of a rank that waits for another: nothing here takes as long.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A run.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub config: ModelConfig,
    pub world_size: usize,
    pub stage: ZeroStage,
    /// Micro-steps of each rank.
    pub grad_accum_steps: usize,
    pub reduce_every_micro_step: bool,
    pub recompute: Recompute,
    /// 0: not clipped. A sharded norm is summed in another order, so clipping changes last bits.
    pub grad_clip: f32,
    pub muon: bool,
    pub state: StateType,
    /// The type of the emulated device; `None` for the CPU.
    pub kernels: Option<Dtype>,
    /// Whether micro-steps without collectives are CUDA graphs.
    pub graphs: bool,
    /// Seed of the delays of ranks and messages; 0 for none.
    pub seed: u64,
    pub steps: usize,
    /// A micro-batch.
    pub shape: BatchShape,
    pub dropout: DropoutRates,
    /// Parameters that are not trained, as `--freeze` names them.
    pub frozen: Option<&'static str>,
}

impl Recipe {
    pub fn cpu(layers: usize, world_size: usize, grad_accum_steps: usize) -> Self {
        Recipe {
            config: ModelConfig {
                maxT: 16,
                V: 503,
                Vp: 512,
                L: layers,
                NH: 2,
                C: 16,
                qkv_bias: true,
                lora: None,
            },
            world_size,
            stage: ZeroStage::Zero0,
            grad_accum_steps,
            reduce_every_micro_step: false,
            recompute: Recompute::Gelu,
            grad_clip: 0.0,
            muon: false,
            state: StateType::F32,
            kernels: None,
            graphs: false,
            seed: 0,
            steps: 5,
            shape: BatchShape::new(1, 16),
            dropout: DropoutRates::NONE,
            frozen: None,
        }
    }

    pub fn frozen(&self) -> Frozen {
        match (self.config.lora, self.frozen) {
            (Some(_), _) => Frozen::all_but_adapters(&self.config),
            (None, Some(names)) => Frozen::parse(names, &self.config).unwrap(),
            (None, None) => Frozen::default(),
        }
    }

    pub fn emulated(dtype: Dtype, world_size: usize) -> Self {
        let config =
            ModelConfig { maxT: 16, V: 503, Vp: 512, L: 3, NH: 1, C: 64, qkv_bias: true, lora: None };
        Recipe { config, kernels: Some(dtype), steps: 2, ..Recipe::cpu(3, world_size, 2) }
    }

    pub fn device(&self) -> Box<dyn Ops> {
        let Some(dtype) = self.kernels else { return Box::new(Cpu::new(Precision::F32).unwrap()) };
        let driver = emulated::open(dtype, EmulatorOptions::default()).unwrap();
        let (tf32, gelu_fusion, deterministic, matmul) = (false, 0, true, MatmulChoice::Own);
        let graphs = self.graphs;
        Box::new(Cuda::new(driver, CudaOptions { dtype, tf32, gelu_fusion, deterministic, matmul, graphs }))
    }

    pub fn sharding(&self, rank: usize) -> Sharding {
        match self.world_size {
            1 => Sharding::NONE,
            of => Sharding { stage: self.stage, partition: Partition { index: rank, of } },
        }
    }

    pub fn options(&self, rank: usize) -> ReplicaOptions {
        let model = ModelOptions {
            B: self.shape.B,
            T: self.shape.T,
            min_rows: 0,
            recompute: self.recompute,
            dropout: self.dropout,
            logits_bytes: 1 << 20,
            sharding: self.sharding(rank),
            frozen: self.frozen(),
        };
        let hyper =
            HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: self.grad_clip };
        let muon = self.muon.then_some(Muon { lr_ratio: 20.0, momentum: 0.95 });
        let optimizer = OptimizerOptions { muon, state: self.state, ..OptimizerOptions::default() };
        ReplicaOptions { model, hyper, optimizer, use_master_weights: true, decode_context: None }
    }

    pub fn loader(&self, corpus: &Corpus, rank: usize) -> DataLoader {
        DataLoader::open(LoaderOptions {
            pattern: corpus.path("x_train_*.bin").to_str().unwrap(),
            flag: "-i",
            B: self.shape.B,
            T: self.shape.T,
            rank,
            num_processes: self.world_size,
            sample: Sample::Sequence,
            shuffle: true,
            packing: Packing::default(),
            V: self.config.V,
        })
        .unwrap()
    }
}

/// The results of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub losses: Vec<f32>,
    pub norms: Vec<f32>,
    /// At the end, in the order of files: parameters, m, v and, if there are any, master weights.
    pub tensors: Vec<Vec<f32>>,
    /// Name and bytes of each arena of a rank.
    pub memory: Vec<(String, usize)>,
}

/// Runs one rank from its plan to its last step.
pub fn rank(recipe: &Recipe, corpus: &Corpus, peers: Peers) -> Outcome {
    let rank = peers.process.rank;
    let dev = recipe.device();
    let plan = ReplicaPlan::new(recipe.config, recipe.options(rank), dev.as_ref()).unwrap();
    let memory = plan.memory.arenas.iter().map(|arena| (arena.name.to_owned(), arena.size_bytes)).collect();
    let mut replica = plan.allocate(dev, peers, recipe.reduce_every_micro_step).unwrap();
    replica.initialize(42).unwrap();
    replica.initialize_adapters(43).unwrap();
    let mut loader = recipe.loader(corpus, rank);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..recipe.steps {
        // Ranks, too, are late now and then.
        let late = if recipe.seed > 0 { (recipe.seed + 7 * rank as u64 + 3 * step as u64) % 5 } else { 0 };
        std::thread::sleep(Duration::from_millis(late));
        replica.dropout_key = Some(dropout::key(42, step));
        let steps = recipe.grad_accum_steps;
        let counted = loader.counted(steps * recipe.world_size);
        let stats = replica
            .forward_backward(|| loader.next_batch(), recipe.shape, steps, counted, 1.0, || 0.0)
            .unwrap();
        replica.update(step, 1e-3, stats.norm, 1.0).unwrap();
        losses.push(stats.loss);
        norms.push(stats.norm);
    }
    replica.finish_params().unwrap();
    let Replica { zero, dev, optimizer, .. } = &mut replica;
    let params = zero.params().clone();
    let stored = [&params, &optimizer.m, &optimizer.v].into_iter().chain(&optimizer.master);
    let layout = ParamLayout::new(&recipe.config);
    let mut tensors = Vec::new();
    for (kind, buffer) in stored.enumerate() {
        let mut all = Vec::new();
        // There is no v of Muon's matrices.
        let of_muon = |spec: &ParamSpec| recipe.muon && kind == 2 && spec.is_block_matrix();
        for spec in params::all(&recipe.config).filter(|spec| !of_muon(spec)) {
            let range = layout.range(spec.param);
            let mut values = vec![f32::NAN; range.len()];
            zero.download(dev.as_mut(), buffer, None, range.start, &mut values).unwrap();
            all.extend(values);
        }
        tensors.push(all);
    }
    Outcome { losses, norms, tensors, memory }
}

/// Runs all ranks and returns the outcome of rank 0. Losses and norms must be the same on all.
pub fn run(recipe: &Recipe, corpus: &Corpus) -> Outcome {
    if recipe.world_size == 1 {
        return rank(recipe, corpus, Peers::alone());
    }
    let all: Vec<Outcome> = std::thread::scope(|scope| {
        let links = Threads::of(recipe.world_size, TIMEOUT).into_iter().enumerate();
        let ranks: Vec<_> = links
            .map(|(index, links)| {
                let process = Process { rank: index, world_size: recipe.world_size, ..Process::ALONE };
                let queue = match recipe.seed {
                    0 => HostQueue::new(links).unwrap(),
                    seed => HostQueue::new(Delayed::new(links, seed + index as u64)).unwrap(),
                };
                scope.spawn(move || rank(recipe, corpus, Peers::new(process, Box::new(queue))))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for other in &all {
        assert_eq!((&other.losses, &other.norms), (&all[0].losses, &all[0].norms));
    }
    all.into_iter().next().unwrap()
}

#[track_caller]
pub fn assert_alike(what: &str, got: &Outcome, want: &Outcome, tolerance: f32) {
    let pairs = |a: &[f32], b: &[f32]| a.iter().copied().zip(b.iter().copied()).collect::<Vec<_>>();
    for (got, want) in pairs(&got.losses, &want.losses).into_iter().chain(pairs(&got.norms, &want.norms)) {
        // Fails for NaN, too.
        assert!((got / want - 1.0).abs() <= tolerance, "{what}: {got}, expected {want}");
    }
}

/// Compares all tensors of two runs bit by bit.
#[track_caller]
pub fn assert_same_tensors(what: &str, got: &Outcome, want: &Outcome) {
    assert_eq!(got.tensors.len(), want.tensors.len());
    for (name, (got, want)) in
        ["params", "m", "v", "master"].iter().zip(got.tensors.iter().zip(&want.tensors))
    {
        let differs = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "{what}: first element of {name} that differs");
        assert!(want.iter().any(|&x| x != 0.0) && want.iter().all(|x| x.is_finite()), "{what}: {name}");
    }
}
