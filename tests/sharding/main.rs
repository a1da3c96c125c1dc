//! Ranks as threads of one process. They take the same steps at every ZeRO stage, and however late
//! a rank or its messages are.

#[path = "../common/mod.rs"]
mod common;
mod recipe;

use common::Corpus;
use recipe::*;
use warpsmith::config::{DropoutRates, Lora, ModelConfig};
use warpsmith::model::BatchShape;
use warpsmith::model::activations::Recompute;
use warpsmith::optim::optimizer::StateType;
use warpsmith::params::{self, PARAMS, ParamLayout};
use warpsmith::sharding::ZeroStage;
use warpsmith::tensor::Dtype;

#[test]
fn every_stage_takes_the_same_steps() {
    let corpus = Corpus::new();
    for layers in [1, 2, 3] {
        let steps = if layers == 3 { 30 } else { 5 };
        let alone = run(&Recipe { steps, ..Recipe::cpu(layers, 1, 4) }, &corpus);
        for world_size in [2, 4] {
            let recipe = Recipe { steps, ..Recipe::cpu(layers, world_size, 4 / world_size) };
            let replicated = run(&recipe, &corpus);
            assert_alike("ranks", &replicated, &alone, 1e-5);
            for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
                let what = format!("{layers} layers, {world_size} ranks, {stage:?}");
                let sharded = run(&Recipe { stage, ..recipe }, &corpus);
                assert_alike(&what, &sharded, &replicated, 1e-5);
                // Sharded gradients are summed over ranks first, then over micro-steps.
                if stage == ZeroStage::Zero1 || recipe.grad_accum_steps == 1 {
                    assert_same_tensors(&what, &sharded, &replicated);
                }
            }
        }
    }
}

const DROPOUT: DropoutRates = DropoutRates { embd: 0.1, attn: 0.2, resid: 0.3 };

/// Each sequence of a step has its masks, whichever rank and micro-step it falls to.
#[test]
fn masks_do_not_depend_on_ranks_stages_and_micro_batches() {
    let corpus = Corpus::new();
    let alone = Recipe { dropout: DROPOUT, ..Recipe::cpu(2, 1, 4) };
    let want = run(&alone, &corpus);
    let none = run(&Recipe { dropout: DropoutRates::NONE, ..alone }, &corpus);
    let differs = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() > 1e-3;
    assert!(want.norms.iter().zip(&none.norms).all(differs), "{:?}, {:?}", want.norms, none.norms);
    for (B, grad_accum_steps) in [(2, 2), (4, 1)] {
        let recipe = Recipe { shape: BatchShape::new(B, 16), grad_accum_steps, ..alone };
        assert_alike(&format!("B = {B}"), &run(&recipe, &corpus), &want, 1e-5);
    }
    for world_size in [2, 4] {
        for stage in ZeroStage::ALL {
            let together = Recipe { world_size, stage, grad_accum_steps: 4 / world_size, ..alone };
            let what = format!("{world_size} ranks, {stage:?}");
            assert_alike(&what, &run(&together, &corpus), &want, 1e-5);
        }
    }
    let pairs = Recipe { world_size: 2, grad_accum_steps: 1, shape: BatchShape::new(2, 16), ..alone };
    assert_alike("2 ranks, B = 2", &run(&pairs, &corpus), &want, 1e-5);
}

/// The backward pass draws the masks again, and recomputed activations have those of the forward
/// pass.
#[test]
fn masks_do_not_depend_on_recomputation() {
    let corpus = Corpus::new();
    let recipe = |recompute| Recipe { dropout: DROPOUT, recompute, ..Recipe::cpu(3, 1, 2) };
    let want = run(&recipe(Recompute::Nothing), &corpus);
    for recompute in [Recompute::Gelu, Recompute::GeluAndLayernorm] {
        assert_same_tensors(&format!("{recompute:?}"), &run(&recipe(recompute), &corpus), &want);
    }
}

#[test]
fn every_stage_takes_the_same_steps_of_muon() {
    let corpus = Corpus::new();
    for layers in [1, 2, 3] {
        let alone = run(&Recipe { muon: true, ..Recipe::cpu(layers, 1, 4) }, &corpus);
        assert_ne!(alone.losses, run(&Recipe::cpu(layers, 1, 4), &corpus).losses);
        for world_size in [2, 4] {
            let recipe = Recipe { muon: true, ..Recipe::cpu(layers, world_size, 4 / world_size) };
            let replicated = run(&recipe, &corpus);
            assert_alike("ranks", &replicated, &alone, 1e-4);
            for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
                let what = format!("{layers} layers, {world_size} ranks, {stage:?}");
                let sharded = run(&Recipe { stage, ..recipe }, &corpus);
                assert_alike(&what, &sharded, &replicated, 1e-4);
                if stage == ZeroStage::Zero1 || recipe.grad_accum_steps == 1 {
                    assert_same_tensors(&what, &sharded, &replicated);
                }
            }
        }
    }
}

/// The random bits of rounding follow the parameters, not the ranks.
#[test]
fn a_narrow_state_has_the_same_bits_however_it_is_divided() {
    let corpus = Corpus::new();
    for muon in [false, true] {
        let recipe = Recipe { muon, state: StateType::Bf16, ..Recipe::cpu(2, 2, 1) };
        let replicated = run(&recipe, &corpus);
        let wide = run(&Recipe { state: StateType::F32, ..recipe }, &corpus);
        assert_ne!(replicated.tensors, wide.tensors);
        assert_alike("bf16 state", &replicated, &wide, 2e-2);
        for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
            let what = format!("muon: {muon}, {stage:?}");
            assert_same_tensors(&what, &run(&Recipe { stage, ..recipe }, &corpus), &replicated);
        }
    }
}

#[test]
fn kernels_take_the_same_steps_of_muon_in_every_stage() {
    let corpus = Corpus::new();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let recipe = Recipe { muon: true, state: StateType::Bf16, ..Recipe::emulated(dtype, 2) };
        let replicated = run(&recipe, &corpus);
        for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
            let what = format!("{dtype:?}, {stage:?}");
            let sharded = run(&Recipe { stage, ..recipe }, &corpus);
            assert_alike(&what, &sharded, &replicated, if dtype == Dtype::F32 { 1e-4 } else { 2e-2 });
            if stage == ZeroStage::Zero1 {
                assert_same_tensors(&what, &sharded, &replicated);
            }
        }
    }
}

#[test]
fn recomputing_clipping_and_uneven_ranks_change_nothing() {
    let corpus = Corpus::new();
    for recompute in [Recompute::Nothing, Recompute::GeluAndLayernorm] {
        let alone = Recipe { recompute, grad_clip: 0.5, ..Recipe::cpu(3, 1, 6) };
        let want = run(&alone, &corpus);
        for stage in ZeroStage::ALL {
            let together = Recipe { stage, world_size: 3, grad_accum_steps: 2, ..alone };
            assert_alike(&format!("{recompute:?}, {stage:?}"), &run(&together, &corpus), &want, 1e-5);
        }
    }
}

#[test]
fn sums_after_every_micro_step_are_the_same_sums() {
    let corpus = Corpus::new();
    for stage in ZeroStage::ALL {
        let recipe = Recipe { stage, ..Recipe::cpu(2, 2, 3) };
        let last = run(&recipe, &corpus);
        let every = run(&Recipe { reduce_every_micro_step: true, ..recipe }, &corpus);
        assert_alike(&format!("{stage:?}"), &every, &last, 1e-5);
    }
}

#[test]
fn delays_change_no_bit() {
    let corpus = Corpus::new();
    for stage in ZeroStage::ALL {
        let recipe = Recipe { stage, grad_clip: 0.5, steps: 3, ..Recipe::cpu(3, 3, 2) };
        let want = run(&recipe, &corpus);
        for seed in [100, 200, 300] {
            assert_eq!(run(&Recipe { seed, ..recipe }, &corpus), want, "{stage:?}");
        }
    }
}

#[test]
fn kernels_take_the_same_steps_in_every_stage() {
    let corpus = Corpus::new();
    for (dtype, dropout) in
        [(Dtype::F32, DropoutRates::NONE), (Dtype::Bf16, DropoutRates::NONE), (Dtype::F32, DROPOUT)]
    {
        let recipe = Recipe { dropout, ..Recipe::emulated(dtype, 2) };
        let replicated = run(&recipe, &corpus);
        for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
            let what = format!("{dtype:?}, {dropout}, {stage:?}");
            let sharded = run(&Recipe { stage, ..recipe }, &corpus);
            // Two sums in bf16 are rounded once more.
            assert_alike(&what, &sharded, &replicated, if dtype == Dtype::F32 { 1e-5 } else { 2e-2 });
            if stage == ZeroStage::Zero1 {
                assert_same_tensors(&what, &sharded, &replicated);
            }
        }
    }
}

/// Micro-steps in which ranks communicate are queued without them.
#[test]
fn graphs_change_no_bit() {
    let corpus = Corpus::new();
    for stage in ZeroStage::ALL {
        let plain = Recipe { stage, grad_accum_steps: 4, steps: 4, ..Recipe::emulated(Dtype::Bf16, 2) };
        let graphs = Recipe { graphs: true, ..plain };
        assert_eq!(run(&graphs, &corpus), run(&plain, &corpus), "{stage:?}");
    }
}

/// The memory savings of each stage, in bytes of one of four ranks.
#[test]
fn memory_falls_with_each_stage() {
    let corpus = Corpus::new();
    let recipe = Recipe { steps: 1, ..Recipe::cpu(8, 4, 1) };
    let memory = ZeroStage::ALL.map(|stage| run(&Recipe { stage, ..recipe }, &corpus).memory);
    let bytes = |stage: usize, arena: &str| {
        memory[stage].iter().find(|(name, _)| name == arena).map_or(0, |(_, bytes)| *bytes)
    };
    for (stage, memory) in memory.iter().enumerate() {
        println!("stage {stage}: {memory:?}");
    }
    let all = bytes(0, "parameters");
    let quarter = |stage, arena| bytes(stage, arena) * 4;
    let close = |a: usize, b: usize| a.abs_diff(b) <= b / 50;
    assert!(close(bytes(0, "optimizer state"), 2 * all));
    for stage in 1..4 {
        assert!(close(quarter(stage, "optimizer state"), 2 * all), "stage {stage}");
    }
    assert!(close(bytes(1, "gradients"), all) && close(quarter(2, "gradients"), all));
    assert!(close(bytes(2, "parameters"), all) && close(quarter(3, "parameters"), all));
    // The embeddings, and two of eight layers.
    let layer = recipe.config;
    let resident = 4 * (512 * layer.C + layer.maxT * layer.C + 2 * 12 * layer.C * layer.C);
    for (stage, arena) in [(2, "full gradients"), (3, "full gradients"), (3, "gathered parameters")] {
        let found = bytes(stage, arena);
        assert!(
            found >= resident && found <= resident * 5 / 4,
            "{arena}: {found}, expected about {resident}"
        );
    }
    assert_eq!([bytes(1, "full gradients"), bytes(2, "gathered parameters")], [0, 0]);
}

/// Whether each element of a file is trained.
fn trained(recipe: &Recipe) -> Vec<bool> {
    let (config, frozen, files) = (&recipe.config, recipe.frozen(), ParamLayout::new(&recipe.config));
    let mut trained = vec![false; files.len()];
    for spec in &PARAMS {
        let len = spec.len_per_layer(config);
        for l in frozen.trained_layers(spec, config) {
            trained[files.range(spec.param).start + l * len..][..len].fill(true);
        }
    }
    trained
}

/// Layers at the bottom, with the embeddings or without; one in the middle; tensors of all layers,
/// among them matrices whose bias is trained, and biases whose matrix is; all but the last
/// layernorm.
const FROZEN: [&str; 6] =
    ["wte,wpe,h.0-1", "h.0-1", "wpe,h.1", "qkvw,fcb,h.2.mlp,ln_f", "wte,ln_1,h.0.attn", "wte,wpe,h.0-2"];

/// Frozen parameters stay, and the gradients of the others are those of a run that trains all.
fn freezes(recipe: &Recipe, corpus: &Corpus) {
    let all = Recipe { frozen: None, ..*recipe };
    let (one, whole) =
        (run(&Recipe { steps: 1, ..*recipe }, corpus), run(&Recipe { steps: 1, ..all }, corpus));
    let start = run(&Recipe { steps: 0, ..all }, corpus);
    assert_eq!(one.losses, whole.losses);
    assert!(one.norms[0] < whole.norms[0]);
    let end = run(recipe, corpus);
    for (i, trains) in trained(recipe).into_iter().enumerate() {
        let [params, m, v] =
            [0, 1, 2].map(|kind| (&end.tensors[kind], &one.tensors[kind], &whole.tensors[kind]));
        if trains {
            // After one step m and v are the gradient, scaled.
            assert_eq!((m.1[i].to_bits(), v.1[i].to_bits()), (m.2[i].to_bits(), v.2[i].to_bits()), "{i}");
        } else {
            assert_eq!((params.0[i], m.0[i], v.0[i]), (start.tensors[0][i], 0.0, 0.0), "{i}");
        }
    }
    let bytes = |outcome: &Outcome, arena: &str| {
        outcome.memory.iter().find(|(name, _)| name == arena).map_or(0, |(_, bytes)| *bytes)
    };
    for arena in ["gradients", "optimizer state"] {
        assert!(bytes(&one, arena) < bytes(&whole, arena), "{arena}");
    }
}

#[test]
fn what_is_frozen_stays_and_takes_no_memory() {
    let corpus = Corpus::new();
    for frozen in FROZEN {
        freezes(&Recipe { frozen: Some(frozen), ..Recipe::cpu(3, 1, 2) }, &corpus);
        freezes(&Recipe { frozen: Some(frozen), ..Recipe::emulated(Dtype::F32, 1) }, &corpus);
    }
    freezes(&Recipe { frozen: Some(FROZEN[3]), ..Recipe::emulated(Dtype::Bf16, 1) }, &corpus);
}

#[test]
fn ranks_and_stages_freeze_alike() {
    let corpus = Corpus::new();
    for frozen in FROZEN {
        let frozen = Some(frozen);
        let alone = run(&Recipe { frozen, ..Recipe::cpu(3, 1, 4) }, &corpus);
        for world_size in [2, 4] {
            let recipe = Recipe { frozen, ..Recipe::cpu(3, world_size, 4 / world_size) };
            let replicated = run(&recipe, &corpus);
            assert_alike("ranks", &replicated, &alone, 1e-5);
            for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
                let what = format!("{frozen:?}, {world_size} ranks, {stage:?}");
                let sharded = run(&Recipe { stage, ..recipe }, &corpus);
                assert_alike(&what, &sharded, &replicated, 1e-5);
                if stage == ZeroStage::Zero1 || recipe.grad_accum_steps == 1 {
                    assert_same_tensors(&what, &sharded, &replicated);
                }
                let late = Recipe { seed: 100, stage, ..recipe };
                assert_eq!(run(&late, &corpus), sharded, "{what}, delayed");
            }
        }
    }
}

#[test]
fn kernels_freeze_alike_in_every_stage() {
    let corpus = Corpus::new();
    for frozen in [FROZEN[0], FROZEN[3]] {
        let recipe = Recipe { frozen: Some(frozen), ..Recipe::emulated(Dtype::Bf16, 2) };
        let replicated = run(&recipe, &corpus);
        for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
            let what = format!("{frozen}, {stage:?}");
            let sharded = run(&Recipe { stage, graphs: true, ..recipe }, &corpus);
            assert_alike(&what, &sharded, &replicated, 2e-2);
            if stage == ZeroStage::Zero1 {
                assert_same_tensors(&what, &sharded, &replicated);
            }
        }
    }
}

/// A run that trains adapters, at a rate of dropout.
fn with_adapters(recipe: Recipe, dropout: DropoutRates) -> Recipe {
    let lora = Some(Lora { rank: 5, alpha: 12.0, targets: [true; 4] });
    Recipe { config: ModelConfig { lora, ..recipe.config }, dropout, ..recipe }
}

/// Gradients and state are those of the adapters alone, and what is frozen keeps its bits.
#[test]
fn adapters_alone_are_trained_and_take_memory() {
    let corpus = Corpus::new();
    for recipe in [Recipe::cpu(3, 1, 2), Recipe::emulated(Dtype::F32, 1), Recipe::emulated(Dtype::Bf16, 1)] {
        let recipe = with_adapters(Recipe { steps: 4, ..recipe }, DropoutRates::NONE);
        let (start, end) = (run(&Recipe { steps: 0, ..recipe }, &corpus), run(&recipe, &corpus));
        let own = ParamLayout::new(&recipe.config).adapters().start;
        assert_eq!(start.tensors[0][..own], end.tensors[0][..own]);
        assert!(end.tensors[1][..own].iter().all(|&m| m == 0.0));
        for (spec, kind) in params::all(&recipe.config).skip(16).flat_map(|spec| [(spec, 0), (spec, 1)]) {
            let range = ParamLayout::new(&recipe.config).range(spec.param);
            let changed = range.clone().any(|i| start.tensors[kind][i] != end.tensors[kind][i]);
            assert!(changed, "{} of kind {kind}", spec.name);
            // A has three rows of padding, and each row of B has three columns.
            let (rows, columns) = (spec.shape)(&recipe.config);
            let is_padding = |i: usize| if rows == 8 { i / columns % 8 >= 5 } else { i % 8 >= 5 };
            let padding = range.clone().filter(|i| is_padding(i - range.start));
            assert!(padding.into_iter().all(|i| end.tensors[kind][i] == 0.0), "{} is padded", spec.name);
        }
        let bytes = |arena: &str| end.memory.iter().find(|(name, _)| name == arena).map_or(0, |(_, n)| *n);
        let (adapters, all) = (ParamLayout::new(&recipe.config).adapters().len(), bytes("parameters"));
        let size = if recipe.kernels == Some(Dtype::Bf16) { 2 } else { 4 };
        // Each layer's is filled up to 128 elements.
        let room = |n: usize| n * adapters..=n * (adapters + 4 * 128);
        assert!(all >= size * (own + adapters));
        assert!(room(size).contains(&bytes("gradients")), "{}", bytes("gradients"));
        let state = if size == 2 { 12 } else { 8 };
        assert!(room(state).contains(&bytes("optimizer state")), "{}", bytes("optimizer state"));
    }
}

#[test]
fn ranks_stages_and_micro_batches_train_the_same_adapters() {
    let corpus = Corpus::new();
    for dropout in [DropoutRates::NONE, DROPOUT] {
        let alone = with_adapters(Recipe { steps: 8, ..Recipe::cpu(3, 1, 4) }, dropout);
        let want = run(&alone, &corpus);
        let wider = Recipe { shape: BatchShape::new(2, 16), grad_accum_steps: 2, ..alone };
        assert_alike("B = 2", &run(&wider, &corpus), &want, 1e-5);
        for world_size in [2, 4] {
            let recipe = Recipe { world_size, grad_accum_steps: 4 / world_size, ..alone };
            let replicated = run(&recipe, &corpus);
            assert_alike("ranks", &replicated, &want, 1e-5);
            for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
                let what = format!("{world_size} ranks, {stage:?}");
                let sharded = run(&Recipe { stage, ..recipe }, &corpus);
                assert_alike(&what, &sharded, &replicated, 1e-5);
                if stage == ZeroStage::Zero1 || recipe.grad_accum_steps == 1 {
                    assert_same_tensors(&what, &sharded, &replicated);
                }
                assert_eq!(run(&Recipe { seed: 100, stage, ..recipe }, &corpus), sharded, "{what}, delayed");
            }
        }
    }
}

#[test]
fn kernels_train_the_same_adapters_in_every_stage() {
    let corpus = Corpus::new();
    let alone = with_adapters(Recipe { steps: 4, ..Recipe::emulated(Dtype::Bf16, 1) }, DROPOUT);
    assert_eq!(run(&Recipe { graphs: true, ..alone }, &corpus), run(&alone, &corpus), "as graphs");
    for (dtype, recompute) in [(Dtype::F32, Recompute::Gelu), (Dtype::Bf16, Recompute::Nothing)] {
        let recipe = with_adapters(Recipe { recompute, ..Recipe::emulated(dtype, 2) }, DROPOUT);
        let replicated = run(&recipe, &corpus);
        for stage in [ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3] {
            let what = format!("{dtype:?}, {stage:?}");
            let sharded = run(&Recipe { stage, graphs: true, ..recipe }, &corpus);
            assert_alike(&what, &sharded, &replicated, if dtype == Dtype::F32 { 1e-5 } else { 2e-2 });
            if stage == ZeroStage::Zero1 {
                assert_same_tensors(&what, &sharded, &replicated);
            }
        }
    }
}
