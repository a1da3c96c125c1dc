//! Sharding (`-z`) changes memory, not results.

use super::{DATA, Losses, assert_alike, corpus, finish, run, start, validations};
use crate::common::{Corpus, TRAIN_GPT2, TRAIN_GPT2CU, forget_after, stderr, stdout};

#[test]
fn sharding_changes_no_loss() {
    let corpus = corpus();
    // Three validation batches: one rank has fewer than the other.
    let flags = "-x 12 -v 5 -m 3";
    let alone = run(&corpus, TRAIN_GPT2, 1, flags, "alone");
    for (world_size, stage) in [(2, 1), (2, 2), (4, 2), (2, 3), (4, 3)] {
        let out = format!("{world_size}-{stage}");
        let sharded = run(&corpus, TRAIN_GPT2, world_size, &format!("{flags} -z {stage}"), &out);
        assert_alike(&sharded, &alone, 1e-5, 1e-4);
        let [sharded, alone] = [&out, "alone"].map(|dir| validations(&corpus.path(dir)));
        assert_eq!(sharded.len(), alone.len());
        for (a, b) in sharded.iter().zip(&alone) {
            assert!((a / b - 1.0).abs() <= 1e-4, "stage {stage}: validation loss {a}, expected {b}");
        }
    }
}

#[test]
fn sharded_kernels_train_alike() {
    let corpus = corpus();
    for (dtype, loss, norm) in [("f32", 1e-5, 1e-4), ("bf16", 2e-3, 2e-2)] {
        let flags = format!("--device emulated --deterministic 1 --dtype {dtype} -d 64 -x 3");
        let alone = run(&corpus, TRAIN_GPT2CU, 1, &flags, &format!("{dtype}-alone"));
        for stage in 1..=3 {
            let out = format!("{dtype}-{stage}");
            let sharded = run(&corpus, TRAIN_GPT2CU, 2, &format!("{flags} -z {stage}"), &out);
            assert_alike(&sharded, &alone, loss, norm);
        }
    }
}

/// Everything besides training that reads parameters, with any number of passes on one rank.
#[test]
fn sharded_parameters_are_sampled_from_and_evaluated() {
    let corpus = Corpus::new();
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    let flags = format!(
        "{DATA} --layers 3 --heads 2 --channels 16 --context 128 -b 1 -t 16 -d 96 -x 2 -v 1 -m 3 -s 1 -g 8 \
         --prompt Once -h 1 --hellaswag-data {questions}"
    );
    let shown = |world_size, stage| {
        let ranks = start(&corpus, TRAIN_GPT2, world_size, &format!("{flags} -z {stage}"));
        let outputs = finish(ranks);
        assert!(outputs.iter().all(|output| output.status.success()), "{}", stderr(&outputs[0]));
        let text = stdout(&outputs[0]);
        let results = text.lines().skip_while(|line| !line.starts_with("val loss"));
        // Without durations and memory.
        let results = results.take_while(|line| !line.starts_with("memory:"));
        results.filter(|line| !line.contains("ms")).map(str::to_owned).collect::<Vec<_>>()
    };
    let alone = shown(1, 0);
    for what in ["val loss", "HellaSwag", "generating", "Once"] {
        assert!(alone.iter().any(|line| line.contains(what)), "{what} in {alone:?}");
    }
    for (world_size, stage) in [(2, 3), (3, 3), (2, 1)] {
        assert_eq!(shown(world_size, stage), alone, "{world_size} ranks, stage {stage}");
    }
}

#[test]
fn a_run_resumes_with_another_stage_and_number_of_processes() {
    let corpus = corpus();
    let flags = |stage: usize| format!("-x 24 -n 8 -y 1 -z {stage}");
    let whole = run(&corpus, TRAIN_GPT2, 1, &flags(0), "whole");
    for (before, after) in [((4, 3), (1, 0)), ((2, 1), (4, 3)), ((1, 0), (2, 2)), ((4, 2), (2, 0))] {
        let out = format!("{}-{}-{}-{}", before.0, before.1, after.0, after.1);
        run(&corpus, TRAIN_GPT2, before.0, &flags(before.1), &out);
        forget_after(&corpus.path(&out), 16);
        let resumed = run(&corpus, TRAIN_GPT2, after.0, &flags(after.1), &out);
        assert_alike(&resumed, &whole, 1e-5, 1e-4);
    }
    // Sums in the same order: sharding changes no bit, neither of a checkpoint nor of later steps.
    let flags = |stage: usize| format!("-x 24 -n 8 -y 1 --grad-clip 0 -z {stage}");
    for (before, after) in [(1, 0), (0, 1), (3, 2), (2, 3)] {
        let [whole, parts] = [format!("whole-{before}{after}"), format!("parts-{before}{after}")];
        let want = run(&corpus, TRAIN_GPT2, 2, &flags(after), &whole);
        run(&corpus, TRAIN_GPT2, 2, &flags(before), &parts);
        forget_after(&corpus.path(&parts), 16);
        let resumed = run(&corpus, TRAIN_GPT2, 2, &flags(after), &parts);
        let bits =
            |losses: &Losses| losses.iter().map(|(step, loss, _)| (*step, loss.clone())).collect::<Vec<_>>();
        assert_eq!(bits(&resumed), bits(&want), "{before}, then {after}");
        for file in ["model_00000016.bin", "state_00000016_00000.bin", "state_00000024_00000.bin"] {
            let [whole, parts] =
                [&whole, &parts].map(|dir| std::fs::read(corpus.path(dir).join(file)).unwrap());
            assert!(whole == parts, "{file} of stages {before} and {after}");
        }
    }
}
