use super::*;
use crate::config::{DropoutRates, ModelConfig};
use crate::data::buckets::rows_by_token;
use crate::data::loader::Batch;
use crate::device::cpu::{Cpu, matmul::Precision};
use crate::model::activations::Recompute;
use crate::model::{BatchShape, ModelOptions};
use crate::ops::{Access, Ops};
use crate::optim::optimizer::{HyperParams, OptimizerOptions};
use crate::parallel::Collective;
use crate::parallel::environment::Process;
use crate::params::frozen::Frozen;
use crate::replica::peers::Peers;
use crate::replica::{Replica, ReplicaOptions, ReplicaPlan};
use crate::sharding::{Partition, Sharding, ZeroStage};

const SHAPE: BatchShape = BatchShape::new(2, 8);

fn tiny(L: usize) -> ModelConfig {
    ModelConfig { maxT: 8, V: 50, Vp: 64, L, NH: 2, C: 16, qkv_bias: true, lora: None }
}

/// One rank of `of`, at a ZeRO stage.
fn plan(config: ModelConfig, stage: ZeroStage, of: usize, dev: &dyn Ops) -> ReplicaPlan {
    let sharding = match of {
        1 => Sharding::NONE,
        _ => Sharding { stage, partition: Partition { index: 0, of } },
    };
    let BatchShape { B, T, .. } = SHAPE;
    let recompute = Recompute::Gelu;
    // Logits of half a batch at a time.
    let logits_bytes = B * T / 2 * config.Vp * dev.float_dtype().size();
    let model = ModelOptions {
        B,
        T,
        min_rows: 0,
        recompute,
        dropout: DropoutRates::NONE,
        logits_bytes,
        sharding,
        frozen: Frozen::default(),
    };
    let hyper = HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 0.0 };
    let options = ReplicaOptions {
        model,
        hyper,
        optimizer: OptimizerOptions::default(),
        use_master_weights: true,
        decode_context: None,
    };
    ReplicaPlan::new(config, options, dev).unwrap()
}

/// Runs one step, whose micro-batches differ.
fn step(replica: &mut Replica, micro_steps: usize) {
    let mut first = 0;
    let next_batch = || {
        let tokens = |first: i32| (first..).step_by(7).take(SHAPE.rows()).map(|t| t % 50).collect::<Vec<_>>();
        let (inputs, targets) = (tokens(first), tokens(first + 1));
        first += 3;
        Ok(Batch { rows_by_token: rows_by_token(&inputs), inputs, targets, packed: None })
    };
    let stats = replica.forward_backward(next_batch, SHAPE, micro_steps, 1, 1.0, || 0.0).unwrap();
    replica.update(0, 1e-3, stats.norm, 1.0).unwrap();
    replica.finish_params().unwrap();
}

/// Records one step of a rank, and returns the plan of its memory too.
fn record(config: ModelConfig, stage: ZeroStage, of: usize, micro_steps: usize) -> (MemoryPlan, Vec<Event>) {
    let log = Log::default();
    let dev = log.device(Dtype::F32);
    let plan = plan(config, stage, of, &dev);
    let memory = plan.memory.clone();
    let process = Process { world_size: of, ..Process::ALONE };
    let peers = match of {
        1 => Peers::alone(),
        _ => Peers::new(process, Box::new(log.communicator(0, of))),
    };
    let mut replica = plan.allocate(Box::new(dev), peers, false).unwrap();
    step(&mut replica, micro_steps);
    (memory, log.take())
}

/// The planned name of the tensor that starts at, or last before, `tensor`.
fn name(memory: &MemoryPlan, tensor: Tensor) -> &'static str {
    let arena = &memory.arenas[tensor.arena];
    arena.tensors.iter().rev().find(|(_, planned)| planned.offset <= tensor.offset).unwrap().0
}

/// An event with the names of the tensors that it writes.
fn brief(memory: &MemoryPlan, event: &Event) -> String {
    let name = |tensor| name(memory, tensor);
    match event {
        Event::Call(call) => {
            let text = format!("{call:?}");
            let method = text.split(['(', ' ']).next().unwrap();
            let written = call.tensors().into_iter().filter(|(_, access)| *access != Access::Read);
            let written: Vec<_> = written.map(|(tensor, _)| name(tensor)).collect();
            format!("{method} {}", written.join(" "))
        }
        Event::Copy { dst, src } => format!("copy {} {}", name(*dst), name(*src)),
        Event::Upload { dst, .. } => format!("upload {}", name(*dst)),
        Event::Download { src } => format!("download {}", name(*src)),
        Event::Synchronize => "synchronize".to_owned(),
        Event::Lend(tensor) => format!("lend {} of {}", tensor.len, name(*tensor)),
        Event::Reclaim(tensor) => format!("reclaim {} of {}", tensor.len, name(*tensor)),
        Event::Start { work, operations } => {
            let one = |o: &Operation| format!("{} {} {}", o.collective, o.buffer.len, o.buffer.dtype);
            format!("{work}: {}", operations.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Event::Wait(work) => format!("wait for {work}"),
    }
}

#[track_caller]
fn assert_lines(found: Vec<String>, expected: &str) {
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(found, expected, "\n{}\n", found.join("\n"));
}

#[test]
fn a_step_is_recorded_call_by_call() {
    let (memory, events) = record(tiny(1), ZeroStage::Zero0, 1, 1);
    let found = events.iter().map(|event| brief(&memory, event)).collect();
    assert_lines(
        found,
        "
        upload scalars
        upload inputs
        upload targets
        upload rows_by_token
        EncoderForward encoded
        LayernormForward ln1 ln1_mean ln1_rstd
        MatmulForward qkv
        AttentionForward atty lse
        MatmulResidualLayernorm residual2 ln2 ln2_mean ln2_rstd
        MatmulForward fch_gelu fch
        MatmulResidualLayernorm residual3 lnf lnf_mean lnf_rstd
        Fill losses
        Fill gradients
        MatmulForward logits
        Classifier losses logits
        MatmulBackward scratch_btc gradients
        MatmulForward logits
        Classifier losses logits
        MatmulBackward scratch_btc gradients
        LayernormBackward dresidual gradients gradients
        Fill gradients
        GeluRecompute fch_gelu fch
        MatmulBackward scratch_bt4c gradients gradients
        MatmulBackward scratch_btc gradients gradients
        LayernormBackward dresidual gradients gradients
        MatmulBackward scratch_btc gradients gradients
        AttentionBackward scratch_bt4c
        MatmulBackward scratch_btc gradients gradients
        LayernormBackward dresidual gradients gradients
        EncoderBackward gradients gradients
        Sum scalars
        upload scalars
        NormSquared scalars
        download scalars
        AdamW parameters m v
        AdamW parameters m v
        AdamW parameters m v
        AdamW parameters m v
        ",
    );
}

#[test]
fn collectives_and_waits_are_recorded_between_calls() {
    let (memory, events) = record(tiny(2), ZeroStage::Zero2, 4, 1);
    let moves = events.iter().filter(|event| !matches!(event, Event::Call(_) | Event::Upload { .. }));
    assert_lines(
        moves.map(|event| brief(&memory, event)).collect(),
        "
        lend 3584 of full gradients
        work 1: reduce-scatter 3584 f32
        lend 3584 of full gradients
        work 2: reduce-scatter 3584 f32
        lend 1536 of full gradients
        work 3: reduce-scatter 1536 f32
        wait for work 2
        reclaim 3584 of full gradients
        reclaim 3584 of full gradients
        copy gradients full gradients
        wait for work 1
        copy gradients full gradients
        wait for work 3
        reclaim 1536 of full gradients
        copy gradients full gradients
        lend 3 of scalars
        work 4: all-reduce 3 f32
        wait for work 4
        reclaim 3 of scalars
        download scalars
        lend 1536 of parameters
        work 5: all-gather 1536 f32
        lend 3584 of parameters
        work 6: all-gather 3584 f32
        lend 3584 of parameters
        work 7: all-gather 3584 f32
        wait for work 6
        reclaim 1536 of parameters
        reclaim 3584 of parameters
        wait for work 7
        reclaim 3584 of parameters
        wait for work 5
        ",
    );
}

/// The parameters, gradients and moments of a replica of one rank.
fn state(replica: &mut Replica) -> Vec<Vec<u8>> {
    let Replica { dev, model, optimizer, .. } = replica;
    let tensors =
        [&model.weights.params, model.grads(), &optimizer.m, &optimizer.v].map(|buffer| buffer.all());
    let download = |tensor: Tensor| {
        let mut bytes = vec![0; tensor.size_bytes()];
        dev.download(&mut bytes, tensor).unwrap();
        bytes
    };
    tensors.map(download).to_vec()
}

#[test]
fn a_replayed_record_has_the_bits_of_the_direct_run() {
    let fresh = || {
        let dev = Cpu::new(Precision::F32).unwrap();
        let plan = plan(tiny(2), ZeroStage::Zero0, 1, &dev);
        let mut replica = plan.allocate(Box::new(dev), Peers::alone(), false).unwrap();
        replica.initialize(42).unwrap();
        replica
    };
    let (mut direct, mut replayed) = (fresh(), fresh());
    let initial = state(&mut direct);
    step(&mut direct, 2);
    for event in record(tiny(2), ZeroStage::Zero0, 1, 2).1 {
        match event {
            Event::Call(call) => call.apply(replayed.dev.as_mut()).unwrap(),
            Event::Upload { dst, bytes } => replayed.dev.upload(dst, &bytes).unwrap(),
            Event::Download { .. } => {}
            event => panic!("{event:?} on a single rank"),
        }
    }
    let found = state(&mut replayed);
    assert!(found == state(&mut direct));
    assert!(found.iter().zip(&initial).all(|(found, initial)| found != initial));
}

/// A model of 1.5 billion parameters: what is recorded takes no memory of its size.
#[test]
fn one_rank_of_a_thousand_is_recorded() {
    let config = ModelConfig::from_descriptor("d48").unwrap();
    let (_, events) = record(config, ZeroStage::Zero3, 1024, 2);
    let gathered = events.iter().filter_map(|event| match event {
        Event::Start { operations, .. } => Some(operations[0]),
        _ => None,
    });
    let gathers = gathered.filter(|operation| operation.collective == Collective::AllGather);
    // Each pass but the first finds two of the 48 layers still resident.
    assert_eq!(gathers.clone().count(), 1 + 48 + 3 * 46);
    assert!(gathers.skip(1).all(|gather| gather.buffer.len == 30_801_920));
}

#[test]
fn tensors_of_a_call_can_be_replaced() {
    let (_, events) = record(tiny(1), ZeroStage::Zero0, 1, 1);
    for event in events {
        let Event::Call(call) = event else { continue };
        let mut moved = call.clone();
        moved.for_each_tensor(|tensor, _| tensor.arena += 10);
        let arenas = |call: &Call| call.tensors().iter().map(|(t, _)| t.arena).collect::<Vec<_>>();
        assert_eq!(arenas(&moved), arenas(&call).iter().map(|arena| arena + 10).collect::<Vec<_>>());
        // No tensor is left out.
        assert_eq!(format!("{call:?}").matches("arena: ").count(), call.tensors().len(), "{call:?}");
    }
}
