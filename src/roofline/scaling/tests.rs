use super::cluster::Cluster;
use super::links::{LINKS, Link, links};
use super::memory::Memory;
use super::timeline::{Times, simulate};
use super::{Batch, Outcome, Plan, Question};
use crate::config::ModelConfig;
use crate::model::activations::Recompute;
use crate::ops::Call;
use crate::optim::optimizer::OptimizerKind;
use crate::parallel::Collective::*;
use crate::recorder::Event;
use crate::roofline::calls::Kernels;
use crate::roofline::gpu::{GPUS, Gpu};
use crate::roofline::kernels::StepShape;
use crate::roofline::record::Records;
use crate::roofline::recording::Recording;
use crate::roofline::report::Budget;
use crate::sharding::ZeroStage;
use ZeroStage::*;

/// A network without latency: GB/s within machines and between them.
fn cluster(within: f64, across: f64, per_node: usize) -> Cluster {
    let link = |bus_gbs| Link { bus_gbs, hop_us: 0.0, ..LINKS[0] };
    Cluster { within: link(within), across: link(across), per_node, base_us: 0.0 }
}

#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-4, "found {found}, expected {expected}");
}

fn step(B: usize, tokens: usize) -> StepShape {
    StepShape {
        B,
        T: 1024,
        micro_steps: tokens / (B * 1024),
        recompute: Recompute::Gelu,
        logits_rows: 16_384,
        optimizer: OptimizerKind::Adamw,
    }
}

fn question<'a>(name: &str, gpu: &'a Gpu, B: usize, batch: Batch, gpus: &[usize]) -> Question<'a> {
    let tokens = if let Batch::Total(tokens) = batch { tokens } else { B * 1024 };
    Question {
        config: ModelConfig::from_descriptor(name).unwrap(),
        step: step(B, tokens),
        batch,
        gpu,
        cluster: Cluster::new(links(gpu, &[]).unwrap(), 8),
        stages: ZeroStage::ALL.to_vec(),
        gpus: gpus.to_vec(),
    }
}

fn outcomes(question: Question) -> Vec<Outcome> {
    Plan::new(question, &Records::default()).rows.into_iter().map(|row| row.outcome.unwrap()).collect()
}

#[test]
fn a_gpu_alone_has_nobody_to_talk_to() {
    let config = ModelConfig::from_descriptor("d12").unwrap();
    let budget = Budget::new(&config, &step(64, 524_288), &GPUS[0], &Records::default());
    for outcome in outcomes(question("d12", &GPUS[0], 64, Batch::Total(524_288), &[1])) {
        assert_eq!((outcome.micro_steps, outcome.times.communication_ms()), (8, 0.0));
        near(outcome.times.exposed_ms(), 0.0);
        near(outcome.efficiency, 1.0);
        // The same step that `warpsmith roofline` predicts.
        near(outcome.times.step_ms, budget.total_ms().realistic);
    }
}

#[test]
fn measured_kernels_replace_predicted_ones() {
    let mut records = Records::default();
    records.add(r#"{"kernels": [{"kernel": "adamw", "shape": "124475904", "us": 5000}]}"#).unwrap();
    let ask = || question("d12", &GPUS[0], 64, Batch::MicroBatchEach, &[1, 2]);
    let plan = Plan::new(ask(), &records);
    let (measured, predicted) = (plan.rows[1].outcome.as_ref().unwrap(), outcomes(ask())[1]);
    let budget = Budget::new(&ask().config, &ask().step, &GPUS[0], &Records::default());
    let adamw =
        budget.rows.iter().find(|row| row.kernel.name == "adamw").unwrap().prediction.realistic_us / 1e3;
    near(measured.times.step_ms - predicted.times.step_ms, 5.0 - adamw);
    assert!(plan.to_string().contains("1 of 30 kernels' times are measured"), "{plan}");
}

#[test]
fn a_ring_carries_all_parts_but_one() {
    // 80 MB at 10 GB/s take 8 ms; each of eight ranks sends seven eighths, twice for an all-reduce.
    let ring = cluster(10.0, 1.0, 8);
    near(ring.ms(ReduceScatter, 80e6, 8), 7.0);
    near(ring.ms(AllGather, 80e6, 8), 7.0);
    near(ring.ms(AllReduce, 80e6, 8), 14.0);
    near(ring.ms(AllReduce, 80e6, 2), 8.0);
    // Seven hops of 5 us per pass, and 8 us in total.
    let mut slow = cluster(10.0, 1.0, 8);
    (slow.within.hop_us, slow.base_us) = (5.0, 8.0);
    near(slow.ms(AllReduce, 0.0, 8), 0.078);
    near(slow.ms(AllGather, 80e6, 8), 7.043);
}

#[test]
fn machines_add_up_inside_first() {
    // Four machines of eight. Inside: 800 MB at 100 GB/s, seven eighths of 8 ms. Between: an eighth
    // of that, 100 MB at 10 GB/s, three quarters of 10 ms.
    let two_levels = cluster(100.0, 10.0, 8);
    near(two_levels.ms(ReduceScatter, 800e6, 32), 7.0 + 7.5);
    near(two_levels.ms(AllGather, 800e6, 32), 7.0 + 7.5);
    near(two_levels.ms(AllReduce, 800e6, 32), 29.0);
    // One GPU per machine: a ring of machines.
    near(cluster(100.0, 10.0, 1).ms(AllReduce, 80e6, 8), 14.0);
    let mut slow = cluster(100.0, 10.0, 8);
    (slow.within.hop_us, slow.across.hop_us) = (1.0, 10.0);
    near(slow.ms(AllGather, 0.0, 32), (7.0 + 30.0) / 1e3);
}

/// Parameters of a layer and of the shared unit, in the ratio of 3 to 4.
const LAYER: usize = 28_416;
const SHARED: usize = 37_888;

/// Milliseconds of the calls of a step that take any: 1 for the embedding, 5 per layer forward and
/// 10 backward, 7 for the head, 1 for the embedding backward, 1 for the norm and 2 for the update
/// of all parameters.
fn event_ms(event: &Event, all: usize) -> f64 {
    let share = |len: usize| len as f64 / all as f64;
    match event {
        Event::Call(Call::EncoderForward(_) | Call::EncoderBackward(_)) => 1.0,
        Event::Call(Call::AttentionForward { .. }) => 5.0,
        Event::Call(Call::Classifier(_)) => 7.0,
        Event::Call(Call::AttentionBackward { .. }) => 10.0,
        Event::Call(Call::NormSquared { src, .. }) => share(src.iter().map(|t| t.len).sum()),
        Event::Call(Call::AdamW(a)) => 2.0 * share(a.params.len),
        _ => 0.0,
    }
}

/// Layers of 3 units of length and 4 units of other parameters, on two GPUs: at a rate of 1 an
/// all-reduce takes 6 and 8 ms, and a reduce-scatter 3 and 4.
fn play_layers(
    L: usize,
    stage: ZeroStage,
    micro_steps: usize,
    rate: f64,
    event_ms: impl Fn(&Event, usize) -> f64,
) -> Times {
    let config = ModelConfig { maxT: 16, V: 768, Vp: 768, L, NH: 3, C: 48, qkv_bias: true, lora: None };
    let step = StepShape {
        B: 1,
        T: 16,
        micro_steps,
        recompute: Recompute::Gelu,
        logits_rows: 16,
        optimizer: OptimizerKind::Adamw,
    };
    let mut recording = Recording::new(&config, &step, stage, 2);
    let layout = &recording.weights().params.layout;
    assert_eq!([layout.len(0), layout.len(L)], [LAYER, SHARED]);
    let all = L * LAYER + SHARED;
    let gbs = rate * (2 * LAYER) as f64 / 6.0 / 1e6;
    simulate(&mut recording, |event| event_ms(event, all), &cluster(gbs, 1.0, 8), 2, None)
}

fn play(stage: ZeroStage, micro_steps: usize, rate: f64) -> Times {
    play_layers(2, stage, micro_steps, rate, event_ms)
}

#[track_caller]
fn check(times: Times, [compute, all_reduce, reduce_scatter, all_gather, step]: [f64; 5]) {
    // The three scalars of a step, too, take some time.
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.02, "{expected}: {times:?}");
    near(times.compute_ms, compute);
    near(times.all_reduce_ms, all_reduce);
    near(times.reduce_scatter_ms, reduce_scatter);
    near(times.all_gather_ms, all_gather);
    near(times.step_ms, step);
    near(times.exposed_ms(), step - compute);
}

#[test]
fn the_queue_of_sums_is_the_one_worked_out_by_hand() {
    // Backward passes end at 28 and 38, their reductions at 34 and 44; the shared unit is ready at
    // 39 and reduced by 52; norm, update.
    check(play(Zero0, 1, 1.0), [42.0, 20.0, 0.0, 0.0, 55.0]);
    // The micro-step before it sends nothing.
    check(play(Zero0, 2, 1.0), [81.0, 20.0, 0.0, 0.0, 94.0]);
}

#[test]
fn a_divided_update_is_gathered_until_the_next_pass_needs_it() {
    // The update of the shared unit ends 0.6 before the step does, so it arrives at 3.4, the layers
    // at 6.4 and 9.4. The second layer waits for nothing: backward passes end at 33.4 and 43.4;
    // reduce-scatters at 36.4, 46.4, 50.4; half of norm and update.
    check(play(Zero1, 1, 1.0), [40.5, 0.0, 10.0, 10.0, 51.9]);
    check(play(Zero1, 2, 1.0), [79.5, 0.0, 10.0, 10.0, 90.9]);
}

#[test]
fn divided_gradients_leave_after_each_micro_step() {
    // The first micro-step's reductions end at 50.4, before the second one's head at 55.4; its own
    // end at 89.4.
    check(play(Zero2, 2, 1.0), [79.5, 0.0, 20.0, 10.0, 90.9]);
    // Ten times slower: the second layer arrives at 99.4, the first reductions end at 221.4, which
    // the second head waits for, and its own at 338.4.
    check(play(Zero2, 2, 0.1), [79.5, 0.0, 200.0, 100.0, 339.9]);
}

#[test]
fn divided_parameters_come_one_layer_ahead() {
    // Embeddings arrive at 4, the first layer at 7, the second at 10; both stay. Reductions end at
    // 37, 47, 51.
    check(play(Zero3, 1, 1.0), [40.5, 0.0, 10.0, 10.0, 52.5]);
    // Each pass except the first of a step finds two of the four layers still resident.
    let times = play_layers(4, Zero3, 2, 1.0, event_ms);
    near(times.all_gather_ms, 4.0 + 3.0 * (4 + 2 + 2 + 2) as f64);
}

/// A layer's last matmul is fused with the next layer's first layernorm, and so waits for that
/// layer's parameters.
#[test]
fn a_fused_layernorm_needs_the_next_layer_early() {
    let fused_ms = |event: &Event, all| match event {
        Event::Call(Call::AttentionForward { .. }) => 2.0,
        Event::Call(Call::MatmulResidualLayernorm { matmul, .. }) if matmul.C > matmul.OC => 3.0,
        _ => event_ms(event, all),
    };
    // The first layers arrive at 7 and 10, and the last matmul of layer 0 ends at 13. Then the
    // third layer is gathered until 16, the fourth from 19 to 22; each keeps a matmul waiting for a
    // millisecond. Forward ends at 30, layers backward at 47, 57, 67, 77, sums at 84.
    let times = play_layers(4, Zero3, 1, 1.0, fused_ms);
    check(times, [70.5, 0.0, 16.0, 22.0, 85.5]);
}

/// The other work of ZeRO-2: a rank's shard of each reduced unit is stored after the first
/// micro-step and added after the others.
#[test]
fn shards_are_copied_and_added() {
    let config = ModelConfig::from_descriptor("d12").unwrap();
    let mut recording = Recording::new(&config, &step(4, 3 * 4096), Zero2, 8);
    let mut kernels = Kernels::new(recording.weights());
    let mut found = Vec::new();
    recording.step(|event| found.extend(kernels.of(&event)));
    let count = |name| found.iter().filter(|kernel| kernel.name == name).count();
    assert_eq!(["copy", "add", "adamw"].map(count), [13, 2 * 13, 13]);
    let layer = found.iter().find(|kernel| kernel.name == "add").unwrap();
    assert_eq!((layer.shape.as_str(), layer.bytes), ("886016", 3.0 * 2.0 * 886_016.0));
}

#[test]
fn fast_networks_hide_all_and_endlessly_slow_ones_nothing() {
    for stage in ZeroStage::ALL {
        near(play(stage, 2, 1e9).exposed_ms(), 0.0);
        let times = play(stage, 2, 1e-6);
        let share = times.exposed_ms() / times.communication_ms();
        assert!(share > 0.999 && share <= 1.0, "{stage:?} {share}");
    }
}

#[test]
fn faster_links_never_make_a_step_slower() {
    for stage in ZeroStage::ALL {
        let steps = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0].map(|gbs| play(stage, 3, gbs).step_ms);
        assert!(steps.windows(2).all(|pair| pair[1] < pair[0]), "{stage:?} {steps:?}");
    }
}

#[test]
fn more_gpus_are_faster_and_less_efficient() {
    for name in ["d12", "d24", "d36", "d48"] {
        for gpu in &GPUS {
            let counts = [1, 2, 4, 8, 16, 32];
            let all = outcomes(question(name, gpu, 16, Batch::Total(524_288), &counts));
            for (i, stage) in all.chunks(counts.len()).enumerate() {
                for pair in stage.windows(2) {
                    assert!(pair[1].tokens_per_s > pair[0].tokens_per_s, "{name} {} {i}", gpu.name);
                    // Each micro-step of ZeRO-2 and 3 adds up a shard, which is smaller on more
                    // GPUs.
                    if i < 2 {
                        // With more GPUs a larger share of micro-steps is the first of a step,
                        // which overwrites gradients and so saves a little.
                        assert!(pair[1].efficiency < pair[0].efficiency + 2e-3, "{name} {} {i}", gpu.name);
                    }
                }
            }
        }
    }
}

fn memory(name: &str, stage: ZeroStage, gpus: usize) -> Memory {
    let config = ModelConfig::from_descriptor(name).unwrap();
    Memory::of(&Recording::new(&config, &step(4, 4096), stage, gpus).memory)
}

#[test]
fn each_stage_divides_what_it_says() {
    let check = |name: &str, stage, gpus, stored: f64, resident: f64| {
        let m = memory(name, stage, gpus);
        // Units are padded to equal partitions.
        let near = |found: f64, expected: f64| (found - expected).abs() <= 1e-4 * expected;
        assert!(near(m.parameters + m.gradients + m.state, stored), "{name} {stage:?}: {m:?}");
        let staging = if stage > Zero0 && gpus > 1 { 262_144.0 } else { 0.0 };
        assert!(near(m.buffers, resident + staging), "{name} {stage:?}: {m:?}");
    };
    // 124,475,904 parameters, 12 layers of 7,087,872 among them; on eight GPUs 16, 5.5, 3.75 and 2
    // bytes each, and two layers and the embeddings in bf16 for each kind of sharded tensor.
    let resident = 2.0 * (39_421_440.0 + 2.0 * 7_087_872.0);
    check("d12", Zero0, 8, 1_991_614_464.0, 0.0);
    check("d12", Zero1, 8, 684_617_472.0, 0.0);
    check("d12", Zero2, 8, 466_784_640.0, resident);
    check("d12", Zero3, 8, 248_951_808.0, 2.0 * resident);
    // 1,557,686,400, of which 48 layers of 30,740,800.
    check("d48", Zero0, 8, 24_922_982_400.0, 0.0);
    check("d48", Zero1, 8, 8_567_275_200.0, 0.0);
    check("d48", Zero2, 8, 5_841_324_000.0, 287_219_200.0);
    check("d48", Zero3, 8, 3_115_372_800.0, 574_438_400.0);
    // A single GPU has no one to shard with.
    for stage in ZeroStage::ALL {
        check("d48", stage, 1, 24_922_982_400.0, 0.0);
    }
}

#[test]
fn each_stage_saves_and_so_does_each_gpu() {
    for name in ["d12", "d24", "d36", "d48"] {
        let total = |stage, gpus| memory(name, stage, gpus).total();
        for gpus in [2, 4, 8, 64, 1024] {
            let stages = ZeroStage::ALL.map(|stage| total(stage, gpus));
            assert!(stages.windows(2).all(|pair| pair[1] < pair[0]), "{name} {gpus} {stages:?}");
            // More GPUs pad each unit more: over a thousand, that takes what smaller shards save.
            assert!(gpus > 64 || total(Zero3, 2 * gpus) < total(Zero3, gpus), "{name} {gpus}");
            let twice = total(Zero0, 2 * gpus) / total(Zero0, gpus);
            assert!((1.0..1.02).contains(&twice), "{name} {gpus} {twice}");
        }
    }
}

#[test]
fn what_cannot_be_shared_out_is_said() {
    let ask = |B, tokens| question("d12", &GPUS[0], B, Batch::Total(tokens), &[16]);
    let refusal = |B, tokens, gpus| ask(B, tokens).micro_steps(gpus).unwrap_err();
    assert_eq!(ask(64, 524_288).micro_steps(4), Ok(2));
    assert_eq!(refusal(64, 524_288, 16), "8 micro-batches are fewer than the GPUs: -b 32 would do");
    assert_eq!(refusal(4, 49_152, 8), "12 micro-batches are not a multiple of the GPUs: -b 3 would do");
    assert_eq!(refusal(64, 524_288, 3), "512 sequences cannot be divided evenly: another -d is needed");
    assert_eq!(refusal(64, 524_288, 1024), "fewer sequences (512) than GPUs: a larger -d is needed");
    assert_eq!(refusal(64, 524_288, 12), "not a whole number of machines of 8 GPUs");
    let text = Plan::new(ask(64, 524_288), &Records::default()).to_string();
    assert_eq!(text.matches("-b 32 would do\n").count(), 4, "{text}");
    let each = Question { batch: Batch::MicroBatchEach, ..ask(64, 524_288) };
    assert_eq!(each.micro_steps(1024), Ok(1));
}

#[test]
fn every_gpu_has_links_and_memory() {
    for gpu in &GPUS {
        let [within, across] = links(gpu, &[]).unwrap();
        assert!(!within.across && across.across && within.bus_gbs < within.peak_gbs, "{}", gpu.name);
    }
    let link = |name| Link::named(name).unwrap();
    let of = |gpu, asked: &[_]| links(Gpu::named(gpu).unwrap(), asked);
    let [within, across] = of("h100", &[link("hdr"), link("pcie5")]).unwrap();
    assert_eq!((within.name, across.name), ("pcie5", "hdr"));
    let refusal = |gpu, links: &[_]| of(gpu, links).unwrap_err().to_string();
    assert_eq!(
        refusal("4090", &[link("nvlink4")]),
        "expected a link that 4090 has, such as pcie4, found nvlink4"
    );
    let twice = refusal("h100", &[link("pcie4"), link("pcie5")]);
    assert_eq!(twice, "expected one link within a machine, found pcie5 too");
    assert!(Link::named("token-ring").unwrap_err().to_string().starts_with("expected one of nvlink3, "));
}

/// Each rank orthogonalizes a share of the matrices, from stage 1 on.
#[test]
fn muon_is_divided_among_ranks() {
    let config = ModelConfig::from_descriptor("d12").unwrap();
    let step = StepShape { optimizer: OptimizerKind::Muon, ..step(4, 4096) };
    let flops = |stage, ranks| {
        let mut recording = Recording::new(&config, &step, stage, ranks);
        let mut kernels = Kernels::new(recording.weights());
        let mut all = Vec::new();
        recording.step(|event| all.extend(kernels.of(&event)));
        all.iter().filter(|kernel| kernel.name.starts_with("muon")).map(|kernel| kernel.flops).sum::<f64>()
    };
    let alone = flops(Zero0, 1);
    near(flops(Zero0, 8) / alone, 1.0);
    near(flops(Zero1, 8) / alone, 1.0 / 8.0);
    for stage in [Zero2, Zero3] {
        near(flops(stage, 2) / alone, 1.0 / 2.0);
    }
}
